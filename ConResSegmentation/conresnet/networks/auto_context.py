"""Auto-context: a network that is asked again, knowing what it said (Chen et al., 2016, section 2.3)."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conresnet.networks import build_network, register_network
from conresnet.networks.blocks import TRAINING_OUTPUTS, segment_count, segment_probabilities

CONTEXTS = ("probability", "residual")
"""What a round may take of the one before."""

# A description may ask for any number, and building so many would take for ever.
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
    """Rounds of one kind of network; each but the first takes what the one before found beside the image.

    With VoxResNet and "probability" this is Auto-context VoxResNet (section 2.3, Fig. 2): a first network is trained on
    the images, then a second one on the images and the first's probability maps. The paper's second round brought the
    last clear gain, hence two by default. With ConResNet and "residual" it is what that paper's conclusion plans: the
    predicted residual as "a prior that highlights the error-prone regions", beside the image in a network that refines.

    The rounds are trained in stages, one after the other. The maps are made anew of the very window that a round looks
    at, by the earlier rounds as they are in use (evaluation, no gradient), so that training and inference see the same.

    Args:
        input_channels: images a case has, their preprocessed copies among them.
        outputs: segmentation channels: one a region (sigmoid), or background and labels (softmax).
        network: {"type": the name of a network, "arguments": its arguments but for the input channels and outputs}.
        rounds: how many, at least 2.
        context: what a round takes of the one before: "probability" (of each segment), "residual" (of each residual
            channel), or both.
        exclusive: whether the outputs are background and labels rather than regions.
        residual_axis: that of a network which has one; may be left to the network's own arguments.

    Raises:
        ValueError: an argument out of its range, or a context that the network does not provide.
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
        """Train the round ``stage`` (from 0) from now on; those before it stay as they are, batch statistics included.

        ``forward`` gives that round's outputs, in evaluation too; without this call it gives the last one's.
        """
        self.stage = stage
        for number, network in enumerate(self.rounds):
            network.requires_grad_(number == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AutoContext":
        """See ``nn.Module.train``; the rounds before the stage's stay in evaluation."""
        super().train(mode)
        self.rounds[: self.stage].eval()
        return self

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
        """Those of the stage's round."""
        return self.rounds[self.stage].auxiliary_weights(progress)

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """What the last round, or the stage's, gives of x (batch, channel, S, H, W); see that network."""
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
