"""The 3-D U-Net of the multi-scale pyramid (Roth et al., MICCAI 2018, section 2.1), after Cicek et al. [2]."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from conresnet.networks.blocks import ConvNormActivation, PoolingEncoder, check_sizes, crop
from conresnet.networks.outputs import TRAINING_OUTPUTS

LEVELS = 4
"""Resolution levels of each path (section 2.1)."""


class AnalysisPath(PoolingEncoder):
    """Two 3x3x3 convolutions a level and a 2x2x2 max pooling of stride 2 in between.

    As in [2], the second convolution of a level doubles the channels, before the pooling: the features at 1/1, 1/2,
    1/4 and 1/8 have 2w, 4w, 8w, 16w ``channels``, w the base width.
    """

    def __init__(self, input_channels: int, width: int, norm: str):
        channels = [width * 2 ** (level + 1) for level in range(LEVELS)]
        levels = (
            nn.Sequential(ConvNormActivation(inputs, count // 2, norm), ConvNormActivation(count // 2, count, norm))
            for inputs, count in zip((input_channels, *channels), channels, strict=False)
        )
        super().__init__(levels, channels)


class SynthesisLevel(nn.Module):
    """Deconvolution 2x2x2 of stride 2, concatenation with the analysis path's features, two 3x3x3 convolutions."""

    def __init__(self, inputs: int, channels: int, norm: str):
        super().__init__()
        self.deconvolution = nn.ConvTranspose3d(inputs, inputs, 2, stride=2, bias=False)
        self.convolutions = nn.Sequential(
            ConvNormActivation(inputs + channels, channels, norm), ConvNormActivation(channels, channels, norm)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolutions(torch.cat([skip, crop(self.deconvolution(x), skip.shape[2:])], dim=1))


class UNet(nn.Module):
    """3-D U-Net (section 2.1): analysis and synthesis paths of four levels, joined by concatenation.

    Each 3x3x3 convolution is followed by batch normalization (section 3) and ReLU; a 1x1x1 convolution ends it. The
    text names no widths; those of [2], which it follows, are 32 and 64 channels at full size, doubling with every
    level. So it has "over 19 million learnable parameters": 19,070,888 with one input channel and 8 outputs.

    Args:
        input_channels: images a case has.
        outputs: segmentation channels: one a region (sigmoid), or background and labels (softmax).
        base_width: channels of the first convolution, a multiple of 8. Defaults to 32.
        norm: "batch", as in the paper, or "group".

    Raises:
        ValueError: an argument out of its range.
    """

    provides = frozenset({"segmentation"})
    stages = 1

    def __init__(self, input_channels: int, outputs: int, base_width: int = 32, norm: str = "batch"):
        super().__init__()
        check_sizes(input_channels, outputs, base_width)
        self.input_channels = input_channels
        self.analysis = AnalysisPath(input_channels, base_width, norm)
        channels = self.analysis.channels
        self.synthesis = nn.ModuleList(
            SynthesisLevel(channels[level + 1], channels[level], norm) for level in reversed(range(LEVELS - 1))
        )
        self.head = nn.Conv3d(channels[0], outputs, 1)

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor]:
        """Logits (batch, outputs, S, H, W) of x (batch, channel, S, H, W) of any size, under "segmentation"."""
        *skips, y = self.analysis(x)
        for level in self.synthesis:
            y = level(y, skips.pop())
        return {"segmentation": self.head(y)} if "segmentation" in wanted else {}
