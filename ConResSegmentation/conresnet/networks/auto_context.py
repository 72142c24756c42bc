"""Auto-context: a chain of networks, each of which also sees the previous result (Chen et al., 2016, section 2.3)."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conresnet.networks import build_network, register_network
from conresnet.networks.blocks import TRAINING_OUTPUTS, segment_count, segment_probabilities

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
            "sentence": "ConResNet twice: the second takes the first's residuals as a prior. Twice the steps, and no "
            "better where it was measured.",
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
        input_channels: images per case, including their preprocessed copies.
        outputs: segmentation channels: one per region (sigmoid), or background and labels (softmax).
        network: {"type": the name of a network, "arguments": its arguments except input channels and outputs}.
        rounds: how many, at least 2.
        context: what a round takes from the previous round: "probability" (of each segment), "residual" (of each
            residual channel), or both.
        exclusive: whether the outputs are background and labels rather than regions.
        residual_axis: of a network that has one; may also be in the network's own arguments.

    Raises:
        ValueError: an argument is out of range, or the network does not provide the context.
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
