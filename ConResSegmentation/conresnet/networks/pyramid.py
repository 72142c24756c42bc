"""Multi-scale pyramid of 3D U-Nets with auto-context (Roth et al., MICCAI 2018), and its U-Net, after Cicek [2]."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.networks import register_network
from conresnet.networks.blocks import (
    TRAINING_OUTPUTS,
    ConvNormActivation,
    PoolingEncoder,
    check_sizes,
    crop,
    segment_count,
    segment_probabilities,
)

LEVELS = 4
"""Resolution levels of each path (section 2.1)."""


class AnalysisPath(PoolingEncoder):
    """Two 3x3x3 convolutions per level, with 2x2x2 max pooling of stride 2 in between.

    As in [2], the second convolution of a level doubles the channels before the pooling: the features at 1/1, 1/2, 1/4
    and 1/8 have 2w, 4w, 8w, 16w ``channels``, where w is the base width.
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


@register_network(
    "unet",
    plans={
        "unet": {
            "title": "3D U-Net",
            "sentence": "The 3D U-Net that the pyramid is made of, on its own and at full resolution.",
        },
    },
)
class UNet(nn.Module):
    """3D U-Net (section 2.1): analysis and synthesis paths of four levels, joined by concatenation.

    Each 3x3x3 convolution is followed by batch normalization (section 3) and ReLU; a 1x1x1 convolution ends it. The
    text states no widths; those of [2], which it follows, are 32 and 64 channels at full size, doubling with every
    level. That gives "over 19 million learnable parameters": 19,070,888 with one input channel and 8 outputs.
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


# A description may ask for any number, and building very many would take forever.
_MOST_LEVELS = 8
# A planned window has sides that the first of two levels divides by 8, and that are not smaller than this.
_PLANNED_MULTIPLE, _SMALLEST_PLANNED = 16, 32


@register_network(
    "pyramid",
    window=(128, 128, 128),
    multiple=16,
    plans={
        "pyramid": {
            "title": "3D U-Net pyramid",
            "sentence": "Two 3D U-Nets at a quarter and at half of the resolution, trained together, for large organs "
            "in large scans.",
            # Batch norm however small the batch, because windows are larger in use than in training: group norm, which
            # sees the window, made a case that was learned by heart come back with a Dice of 0.94 instead of 1.
            "arguments": {"norm": "batch"},
        },
    },
)
class Pyramid(nn.Module):
    """S levels of 3D U-Net, from the coarsest to the finest (section 2.2, Fig. 1).

    The first level sees the image at the lowest resolution and "the largest amount of context". What each level
    predicts is upsampled by 2, cropped, and enters the next level together with the image at twice the resolution. All
    levels are trained together, end to end, on the sum of their losses (L_total).

    The image has the last level's resolution, and level s sees it averaged over 2^(S-s) voxels per axis. As the paper's
    level s works at 1/2^(S-s+1) of the data's resolution, the image's voxels must have twice the data's size.

    In training every level sees as many voxels as the first (paper section 3: 64x64x64 "in each level"). Level s sees
    the central part of the image, which has the first level's size in its own voxels, so the logits are smaller than
    the image and cover its center. Otherwise each level sees the whole image: the "larger input size" of inference.

    Two things differ from the paper. It takes each level's loss at that level's resolution; here the earlier levels'
    logits are upsampled to the image's, so that all have the same target. It centers every training window on a
    foreground voxel and deforms it elastically; here windows are drawn as for any network, and are bent only with
    ``augmentation.elastic``. (For centered windows set ``training.foreground_share=1``.) Chosen: the maps that are
    passed on are the segments' probabilities, upsampled by trilinear interpolation. Parameters with one input channel,
    8 outputs and two levels: 38,147,824.

    Args:
        levels: S, at least 1. Defaults to the paper's 2.
        base_width, norm: of every U-Net.
    """

    stages = 1

    def __init__(
        self,
        input_channels: int,
        outputs: int,
        levels: int = 2,
        exclusive: bool = True,
        base_width: int = 32,
        norm: str = "batch",
    ):
        super().__init__()
        if not 1 <= levels <= _MOST_LEVELS:
            raise ValueError(f"levels must be 1 to {_MOST_LEVELS}, not {levels}.")
        maps = segment_count(outputs, exclusive)
        self.input_channels = input_channels
        self.exclusive = exclusive
        self.provides = {"segmentation", "auxiliary"} if levels > 1 else {"segmentation"}
        # Sides that are multiples of it lose nothing to rounding at the coarsest scale of the first level.
        self.multiple = 8 * 2 ** (levels - 1)
        self.levels = nn.ModuleList(
            UNet(input_channels + maps * (level > 0), outputs, base_width, norm) for level in range(levels)
        )

    @staticmethod
    def plan_images(model: dict[str, Any]) -> dict[str, str]:
        """Double the voxel size and keep the voxels of the window: the last level works at 1/2 (2.2, S = 2).

        In training, that level sees the middle half of the window, which covers as much of a case as the whole window
        of another system. The first level sees twice as far. Raises UserError ``spacing-unknown`` if images keep their
        own spacing.
        """
        preparation, inference = model["preparation"], model["inference"]
        if preparation["spacing"] is None:
            raise UserError("spacing-unknown")
        preparation["spacing"] = [round(2 * mm, 4) for mm in preparation["spacing"]]
        sides = (-(-side // _PLANNED_MULTIPLE) * _PLANNED_MULTIPLE for side in inference["window"])
        inference["window"] = [max(side, _SMALLEST_PLANNED) for side in sides]
        return {
            "spacing": "doubled, because the levels work at 1/4 and 1/2",
            "window": "training uses its middle half",
        }

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
        """Every level's loss has the same weight (L_total of section 2.2)."""
        return (1.0,) * (len(self.levels) - 1)

    def answered(self, size: Sequence[int]) -> tuple[int, int, int]:
        """The size (S, H, W) of the central part of a window that the logits cover in training."""
        scale = 2 ** (len(self.levels) - 1)
        return tuple(-(-side // scale) for side in size)

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """The wanted logits of x (batch, channel, S, H, W) of any size.

        They are "segmentation", the last level's (batch, outputs, S', H', W'), and "auxiliary", those of the earlier
        levels. S', H', W' are S, H, W, or in training those of the central part that the level sees.
        """
        outputs, auxiliary = {}, []
        logits, begin = None, (0, 0, 0)
        for level, network in enumerate(self.levels):
            scale = 2 ** (len(self.levels) - 1 - level)
            image = _reduced(x, scale)
            window = logits.shape[2:] if self.training and level else image.shape[2:]
            previous_begin = begin
            begin = [(whole - side) // 2 for whole, side in zip(image.shape[2:], window, strict=True)]
            image = _part(image, begin, window)
            if level:
                context = segment_probabilities(_enlarged(logits, 2), self.exclusive)
                offset = [there - 2 * here for there, here in zip(begin, previous_begin, strict=True)]
                image = torch.cat([image, _part(context, offset, window)], dim=1)
            logits = network(image, ("segmentation",))["segmentation"]
            if scale > 1 and "auxiliary" in wanted:
                auxiliary.append(_centered(_enlarged(logits, scale), [scale * start for start in begin], x.shape[2:]))
        if "segmentation" in wanted:
            outputs["segmentation"] = logits
        if "auxiliary" in wanted and "auxiliary" in self.provides:
            outputs["auxiliary"] = auxiliary
        return outputs


def _part(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    s, h, w = (slice(start, start + side) for start, side in zip(begin, size, strict=True))
    return x[..., s, h, w]


def _reduced(x: Tensor, factor: int) -> Tensor:
    """Averages over factor^3 voxels, fewer at the borders."""
    kernel = [min(factor, side) for side in x.shape[2:]]
    return F.avg_pool3d(x, kernel, stride=factor, ceil_mode=True)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    """Each voxel becomes factor^3 voxels, aligned as in averaging by the same factor."""
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


def _centered(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """The largest part of ``x`` that is centered in a volume of ``size``, in which x begins at ``begin``."""
    ends = [start + side for start, side in zip(begin, x.shape[2:], strict=True)]
    margins = [max(start, whole - end) for start, end, whole in zip(begin, ends, size, strict=True)]
    offsets = [margin - start for margin, start in zip(margins, begin, strict=True)]
    return _part(x, offsets, [whole - 2 * margin for whole, margin in zip(size, margins, strict=True)])
