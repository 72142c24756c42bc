"""VoxResNet (Chen et al., 2016): voxelwise residual network with four fused classifiers, and auto-context.

Auto-context (section 2.3) is a chain of networks of any kind, each of which also sees the previous result.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conresnet.networks import build_network, register_network
from conresnet.networks.blocks import (
    TRAINING_OUTPUTS,
    check_sizes,
    crop,
    norm_layer,
    segment_count,
    segment_probabilities,
)

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
        """The wanted logits of x (batch, channel, S, H, W) of any size: "segmentation" (batch, outputs, S, H, W), and
        "auxiliary", four of the same size.
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


CONTEXTS = ("probability", "residual")
"""The maps that a round may take from the previous round."""

# A description may ask for any number, and building very many would take forever.
_MOST_ROUNDS = 16


@register_network(
    "auto_context",
    wraps="network",
    plans={
        "conresnet-refined": {
            "title": "ConResNet, refined",
            "sentence": "ConResNet twice: the second takes the first's residuals as a prior. Trains for twice the "
            "steps, and was no better where it was measured.",
            "arguments": {
                "network": {"type": "conresnet", "arguments": {"norm": "group"}},
                "context": ["residual"],
            },
        },
        "voxresnet-auto-context": {
            "title": "VoxResNet with auto-context",
            "sentence": "VoxResNet twice: the second also takes the first's probabilities. Trains for twice the steps.",
            "arguments": {"network": {"type": "voxresnet", "arguments": {}}, "context": ["probability"]},
        },
    },
)
class AutoContext(nn.Module):
    """Rounds of one kind of network; each except the first sees the previous one's result besides the image.

    With VoxResNet and "probability" this is Auto-context VoxResNet (section 2.3, Fig. 2): a first network is trained on
    the images, then a second one on the images and the first's probability maps. In the paper the second round brought
    the last clear gain, hence two by default. With ConResNet and "residual" it is what that paper's conclusion plans:
    the predicted residual as "a prior that highlights the error-prone regions", next to the image in a network that
    refines.

    The rounds are trained in stages, one after the other. The maps are computed from the same window that a round sees,
    by the earlier rounds in evaluation mode and without gradient, so training and inference see the same.

    Args:
        network: {"type": the name of a network, "arguments": its arguments except input channels and outputs}.
        rounds: how many, at least 2.
        context: what a round takes from the previous round: "probability" (of each segment), "residual" (of each
            residual channel), or both.
        residual_axis: of a network that has one; may also be in the network's own arguments.

    ValueError is also raised if the network does not provide the context.
    """

    def __init__(
        self,
        input_channels: int,
        outputs: int,
        network: dict[str, Any],
        rounds: int = 2,
        context: Sequence[str] = ("probability",),
        exclusive: bool = True,
        residual_axis: str | None = None,
    ):
        super().__init__()
        if not 2 <= rounds <= _MOST_ROUNDS:
            raise ValueError(f"rounds must be 2 to {_MOST_ROUNDS}, not {rounds}.")
        if not context or len(set(context)) < len(context) or not set(context) <= set(CONTEXTS):
            raise ValueError(f"context must name one or more of {', '.join(CONTEXTS)}, each once, not {context!r}.")
        self.input_channels = input_channels
        self.context = tuple(context)
        self.exclusive = exclusive
        self.stages = rounds
        self.stage = rounds - 1
        first = _round(network, input_channels, outputs, residual_axis)
        channels = {"probability": segment_count(outputs, exclusive), "residual": 0}
        if "residual" in context:
            if "residual" not in first.provides:
                raise ValueError(f"The network {network['type']!r} gives no residual to take as context.")
            channels["residual"] = first.residual_outputs
        inputs = input_channels + sum(channels[name] for name in context)
        later = (_round(network, inputs, outputs, residual_axis) for _ in range(rounds - 1))
        self.rounds = nn.ModuleList([first, *later])
        self.provides = self.rounds[-1].provides

    def begin_stage(self, stage: int) -> None:
        """Train the round ``stage`` (from 0) from now on; earlier rounds, including batch statistics, do not change.

        ``forward`` then gives that round's outputs, also in evaluation; without this call it gives the last round's.
        """
        self.stage = stage
        for number, network in enumerate(self.rounds):
            network.requires_grad_(number == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AutoContext":
        """See ``nn.Module.train``; the rounds before the stage's stay in evaluation mode."""
        super().train(mode)
        self.rounds[: self.stage].eval()
        return self

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
        """Those of the stage's round."""
        return self.rounds[self.stage].auxiliary_weights(progress)

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """The outputs of the last round, or of the stage's, for x (batch, channel, S, H, W); see that network."""
        image = x
        for network in self.rounds[: self.stage]:
            image = torch.cat([x, *self._maps(network, image)], dim=1)
        return self.rounds[self.stage](image, wanted)

    @torch.no_grad()
    def _maps(self, network: nn.Module, image: Tensor) -> list[Tensor]:
        names = {"probability": "segmentation", "residual": "residual"}
        logits = network(image, [names[name] for name in self.context])
        maps = {"probability": lambda y: segment_probabilities(y, self.exclusive), "residual": torch.sigmoid}
        return [maps[name](logits[names[name]]).to(image.dtype) for name in self.context]


def _round(network: dict[str, Any], input_channels: int, outputs: int, residual_axis: str | None) -> nn.Module:
    if not isinstance(network, dict) or set(network) != {"type", "arguments"}:
        raise ValueError('network must be {"type": ..., "arguments": {...}}.')
    arguments = {**network["arguments"], "input_channels": input_channels, "outputs": outputs}
    if residual_axis is not None and arguments.setdefault("residual_axis", residual_axis) != residual_axis:
        raise ValueError(f"residual_axis is {residual_axis!r} here and {arguments['residual_axis']!r} in the network.")
    built = build_network(network["type"], arguments)
    if built.stages > 1:
        raise ValueError(f"The network {network['type']!r} is trained in stages itself.")
    return built
