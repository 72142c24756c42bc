"""VoxResNet (Chen et al., 2016): voxelwise residual network with four fused classifiers."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from conresnet.networks import register_network
from conresnet.networks.blocks import TRAINING_OUTPUTS, check_sizes, crop, norm_layer

LAST_AUXILIARY_WEIGHT = 1e-3
"""Final weight of the auxiliary classifiers (paper 2.2), which begins at 1."""


class PreActivation(nn.Sequential):
    """Norm and ReLU before a layer: "full pre-activation, i.e., using asymmetric after-addition activation"."""

    def __init__(self, channels: int, layer: nn.Module, norm: str):
        super().__init__(norm_layer(norm, channels), nn.ReLU(inplace=True), layer)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)


class VoxRes(nn.Module):
    """VoxRes module (Fig. 1b): eq. 1 with two pre-activated 3x3x3 convolutions as F."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.first = PreActivation(channels, _conv(channels, channels), norm)
        self.second = PreActivation(channels, _conv(channels, channels), norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).add_(x)


class Trunk(nn.Module):
    """Features at four scales: 17 convolutions, three of them with stride 2.

    Before the first VoxRes module there are two convolutions at full size and one of stride 2. Then follow two modules
    at each of 1/2, 1/4 and 1/8, with a convolution of stride 2 in between: 3 + 2x2 + 1 + 2x2 + 1 + 2x2.

    Attributes:
        channels: of the features at 1/1 (w), 1/2, 1/4 and 1/8 (2w each), where w is the base width.
    """

    def __init__(self, input_channels: int, width: int, norm: str):
        super().__init__()
        self.channels = (width, 2 * width, 2 * width, 2 * width)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_conv(input_channels, width), PreActivation(width, _conv(width, width), norm)),
                self._halving_level(width, 2 * width, norm),
                self._halving_level(2 * width, 2 * width, norm),
                self._halving_level(2 * width, 2 * width, norm),
            ]
        )

    @staticmethod
    def _halving_level(inputs: int, outputs: int, norm: str) -> nn.Sequential:
        halving = PreActivation(inputs, _conv(inputs, outputs, stride=2), norm)
        return nn.Sequential(halving, VoxRes(outputs, norm), VoxRes(outputs, norm))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features, finest first; odd sides are rounded up when halved."""
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class Classifier(nn.Sequential):
    """An auxiliary classifier, C1 to C4 of Fig. 1a: a deconvolution to full size and two convolutions."""

    def __init__(self, inputs: int, width: int, outputs: int, scale: int, norm: str):
        if scale == 1:
            deconvolution = nn.ConvTranspose3d(inputs, width, 3, padding=1, bias=False)
        else:
            deconvolution = nn.ConvTranspose3d(inputs, width, scale, stride=scale, bias=False)
        super().__init__(
            PreActivation(inputs, deconvolution, norm),
            PreActivation(width, _conv(width, width), norm),
            PreActivation(width, nn.Conv3d(width, outputs, 1), norm),
        )


_SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "keep"}


@register_network(
    "voxresnet",
    window=(80, 80, 80),
    plans={
        "voxresnet": {
            "title": "VoxResNet",
            "sentence": "A deep residual network for brain tissue, which also sees a contrast-equalized copy of each "
            "image.",
        },
    },
)
class VoxResNet(nn.Module):
    """VoxResNet (paper 2.2, Fig. 1a): 25 convolutions, 4 deconvolutions, 1/8 at the deepest.

    The trunk has 17 convolutions (see ``Trunk``); each of the four classifiers has a deconvolution to full size and two
    convolutions: 17 + 4 x 2 = 25. The prediction fuses the classifiers as the sum of their logits.

    The paper states the width of the layers only in its Fig. 1. Chosen: w channels at full size and 2w below, w in the
    classifiers, w = 32; deconvolutions whose kernel equals their stride (3x3x3 with stride 1 at full size). Parameters
    with 6 input channels and 4 outputs: 2,974,096.

    Args:
        input_channels: images per case, including their preprocessed copies (paper 3.1).
        outputs: segmentation channels: one per region (sigmoid), or background and labels (softmax).
        base_width: w, a multiple of 8.
        norm: "batch", as in the paper, or "group".

    Raises:
        ValueError: an argument is out of range.
    """

    provides = frozenset({"segmentation", "auxiliary"})
    stages = 1

    def __init__(self, input_channels: int, outputs: int, base_width: int = 32, norm: str = "batch"):
        super().__init__()
        check_sizes(input_channels, outputs, base_width)
        self.input_channels = input_channels
        self.trunk = Trunk(input_channels, base_width, norm)
        self.classifiers = nn.ModuleList(
            Classifier(channels, base_width, outputs, 2**level, norm)
            for level, channels in enumerate(self.trunk.channels)
        )

    @staticmethod
    def plan_images(model: dict[str, Any]) -> dict[str, str]:
        """Normalize each slice on its own, and add a contrast-equalized copy of each image (paper 3.1).

        The copy is the image minus its Gaussian-smoothed version, then contrast-limited adaptive histogram
        equalization. The paper states neither the width of the Gaussian nor the contrast limit: chosen.

        Args:
            model: a planned ``model.json``, changed in place.
        """
        for item in model["inputs"]:
            clips = [step for step in item["intensity"] if step["step"] not in ("z_score", "rescale")]
            item["intensity"] = [*clips, dict(_SLICES)]
            smoothed = {"step": "subtract_gaussian", "sigma_mm": 5.0}
            equalized = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}
            item["copies"] = [[smoothed, equalized, dict(_SLICES)]]
        return {}

    @staticmethod
    def auxiliary_weights(progress: float) -> tuple[float, ...]:
        """w_alpha of eq. 3 after ``progress`` (0..1) of the training: from 1 "till marginal values (i.e., 10^-3)".

        The paper does not state the curve; here the weight falls by the same factor per step.
        """
        return (LAST_AUXILIARY_WEIGHT**progress,) * 4

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """Compute the wanted outputs.

        Args:
            x: (batch, channel, S, H, W) of any size.
            wanted: any of "segmentation" (batch, outputs, S, H, W) and "auxiliary", four of the same size.

        Returns:
            dict of logits under the wanted names.
        """
        features, size = self.trunk(x), x.shape[2:]
        # One by one, so that without auxiliary outputs the full-size features of only one classifier exist at a time.
        logits = (crop(classify(y), size) for classify, y in zip(self.classifiers, features, strict=True))
        outputs = {}
        if "auxiliary" in wanted:
            outputs["auxiliary"] = logits = list(logits)
        if "segmentation" in wanted:
            outputs["segmentation"] = sum(logits)
        return outputs
