"""ResDSN (Zhu et al., 3DV 2018, section 3.4): encoder and decoder joined by sums, with deep supervision."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from conresnet.networks import register_network
from conresnet.networks.blocks import (
    TRAINING_OUTPUTS,
    ConvNormActivation,
    PoolingEncoder,
    check_sizes,
    crop,
    norm_layer,
)

AUXILIARY_WEIGHTS = (0.2, 0.4)
"""Xi_1 and Xi_2 of eq. 3: the branches from Conv2b and from Conv3b."""


class Deconvolution(nn.Sequential):
    """4x4x4 deconvolution of stride 2, norm, ReLU: twice the size."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        deconvolution = nn.ConvTranspose3d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        super().__init__(deconvolution, norm_layer(norm, outputs), nn.ReLU(inplace=True))


class Encoder(PoolingEncoder):
    """Conv1a to Conv4b of Fig. 3: one convolution, then three times two, and max pooling in between.

    Its features at 1/1, 1/2, 1/4 and 1/8 have w, 2w, 4w, 8w ``channels``, where w is the base width.
    """

    def __init__(self, input_channels: int, width: int, norm: str, short_residual: bool = False):
        channels = (width, 2 * width, 4 * width, 8 * width)
        later_steps = (
            nn.Sequential(
                ConvNormActivation(count // 2, count, norm),
                ConvNormActivation(count, count, norm, residual=short_residual),
            )
            for count in channels[1:]
        )
        super().__init__([ConvNormActivation(input_channels, width, norm), *later_steps], channels)


class DecoderStep(nn.Module):
    """A deconvolution, the sum with the encoder's features (the long residual connection), two convolutions."""

    def __init__(self, channels: int, norm: str, short_residual: bool):
        super().__init__()
        self.deconvolution = Deconvolution(2 * channels, channels, norm)
        self.convolutions = nn.Sequential(
            ConvNormActivation(channels, channels, norm),
            ConvNormActivation(channels, channels, norm, residual=short_residual),
        )

    def forward(self, x: Tensor, size: torch.Size, long_residual: Tensor | None) -> Tensor:
        x = crop(self.deconvolution(x), size)
        return self.convolutions(x if long_residual is None else x + long_residual)


@register_network(
    "resdsn",
    window=(64, 64, 64),
    plans={
        "resdsn": {
            "title": "ResDSN",
            "sentence": "An encoder and decoder with summed long connections and deep supervision, in one pass.",
        },
        "fresdsn": {
            "title": "FResDSN",
            "sentence": "ResDSN with both short and long residual connections.",
            "arguments": {"short_residual": True},
        },
        "sresdsn": {
            "title": "SResDSN",
            "sentence": "ResDSN with short residual connections instead of long ones.",
            "arguments": {"long_residual": False, "short_residual": True},
        },
        "dsn": {
            "title": "DSN",
            "sentence": "ResDSN without residual connections.",
            "arguments": {"long_residual": False},
        },
    },
)
class ResDSN(nn.Module):
    """ResDSN (section 3.4, Fig. 3) and its variants of Table 1.

    An encoder and a decoder of four resolution steps. The encoder has Conv1a and the pairs Conv2a to Conv4b, with max
    pooling in between. Each step of the decoder has a 4x4x4 deconvolution of stride 2 and two convolutions, the last
    being Res/Conv1b; a 1x1x1 convolution ends it. Norm and ReLU follow every convolution and deconvolution. The
    encoder's features are added to those of the deconvolution. Auxiliary branches lead from Conv2b and Conv3b through
    deconvolutions to full size.

    =========  =============  ==============
    Table 1    long_residual  short_residual
    =========  =============  ==============
    ResDSN     yes            no
    FResDSN    yes            yes
    SResDSN    no             yes
    DSN        no             no
    =========  =============  ==============

    Details that only Fig. 3 shows are chosen, except the 32 channels of Conv1a, which its caption states. The channels
    double with each step of the encoder and halve with each of the decoder, as the text says. A branch has one
    deconvolution per halving, each of which also halves the channels, and a 1x1x1 convolution. A short residual
    connection leads around the second convolution of a step. The decoder's layer names (Res/Conv3b, 2b, 1b) could also
    mean a single convolution per step; here a step has two, like those of the encoder. Parameters with one input
    channel and two outputs: 8,188,326.

    The paper trains by SGD with momentum 0.9, learning rate 0.01 and batches of 16, with flips and turns by 90 degrees:
    ``training.optimizer=sgd``, ``training.learning_rate=0.01``, ``training.batch=16``, ``augmentation.flip_axes=[S, H,
    W]`` and ``augmentation.quarter_turns=true`` in a plan.

    Args:
        long_residual: add the encoder's features to the decoder's.
        short_residual: add its input to the second convolution of each step.
        deep_supervision: build the auxiliary branches (eq. 2).
    """

    stages = 1

    def __init__(
        self,
        input_channels: int,
        outputs: int,
        base_width: int = 32,
        norm: str = "batch",
        long_residual: bool = True,
        short_residual: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__()
        check_sizes(input_channels, outputs, base_width)
        self.input_channels = input_channels
        self.long_residual = long_residual
        self.provides = {"segmentation", "auxiliary"} if deep_supervision else {"segmentation"}
        width = base_width
        self.encoder = Encoder(input_channels, width, norm, short_residual)
        self.decoder = nn.ModuleList(
            DecoderStep(channels, norm, short_residual) for channels in (4 * width, 2 * width, width)
        )
        self.head = nn.Conv3d(width, outputs, 1)
        if deep_supervision:
            half, quarter = Deconvolution(2 * width, width, norm), Deconvolution(4 * width, 2 * width, norm)
            self.branch_conv2b = nn.Sequential(half, nn.Conv3d(width, outputs, 1))
            self.branch_conv3b = nn.Sequential(
                quarter, Deconvolution(2 * width, width, norm), nn.Conv3d(width, outputs, 1)
            )

    @staticmethod
    def auxiliary_weights(progress: float) -> tuple[float, ...]:
        """Xi_1 and Xi_2 of eq. 3, the same throughout."""
        return AUXILIARY_WEIGHTS

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """The wanted logits of x (batch, channel, S, H, W) of any size: "segmentation" (batch, outputs, S, H, W), and
        "auxiliary", two of the same size, from Conv2b and Conv3b.
        """
        features = self.encoder(x)
        outputs = {}
        if "auxiliary" in wanted and "auxiliary" in self.provides:
            branches = (self.branch_conv2b(features[1]), self.branch_conv3b(features[2]))
            outputs["auxiliary"] = [crop(logits, x.shape[2:]) for logits in branches]
        if "segmentation" in wanted:
            y = features.pop()
            for step in self.decoder:
                finer = features.pop()
                y = step(y, finer.shape[2:], finer if self.long_residual else None)
            outputs["segmentation"] = self.head(y)
        return outputs
