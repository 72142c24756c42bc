"""The networks of the systems, with every argument written out, as a plan names them.

Plain data for `conresnet.networks.build_network`; nothing here needs torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Fewer samples a step than these tell too little of a batch's mean and variance.
FEWEST_FOR_BATCH_NORM = 8


@dataclass(frozen=True)
class Frame:
    """What the data and the memory decide of any system's networks.

    Args:
        channels: images of a case that a network sees, preprocessed copies included.
        segments: output structures.
        exclusive: each voxel has one label, the background being one of them; else segments are regions.
        base_width: channels of a network's first stage.
        residual_axis: "S", "H" or "W", for those that take residuals.
        batch: samples a step.
    """

    channels: int
    segments: int
    exclusive: bool
    base_width: int
    residual_axis: str
    batch: int

    @classmethod
    def of(cls, model: dict[str, Any], base_width: int, residual_axis: str, batch: int) -> "Frame":
        """That of a plan's ``model``, by its inputs and segments."""
        channels = sum(1 + len(item.get("copies", ())) for item in model["inputs"])
        output = model["output"]
        segments, exclusive = len(output["segments"]), output["kind"] == "labels"
        return cls(channels, segments, exclusive, base_width, residual_axis, batch)

    @property
    def counts(self) -> dict[str, int]:
        """The arguments that every network has."""
        return {"input_channels": self.channels, "outputs": self.segments + self.exclusive}

    @property
    def norm(self) -> str:
        """Of the networks whose papers normalize by batch: as there, unless batches are too small for it."""
        return "batch" if self.batch >= FEWEST_FOR_BATCH_NORM else "group"


Network = dict[str, Any]
Build = Callable[[Frame], Network]


def conresnet(frame: Frame, backbone: str = "residual", residuals: bool = True) -> Network:
    """ConResNet on a backbone, its own by default; without ``residuals`` the paper's baseline."""
    arguments = {
        **frame.counts,
        "residual_outputs": frame.segments,
        "base_width": frame.base_width,
        "residual_axis": frame.residual_axis,
        "residual_mapping": residuals,
        "attention_mapping": residuals,
        "dropout": 0.1,
        "backbone": backbone,
        "norm": "group" if backbone == "residual" else frame.norm,
    }
    return {"type": "conresnet", "arguments": arguments}


def voxresnet(frame: Frame) -> Network:
    """VoxResNet."""
    return _with_norm("voxresnet", frame)


def resdsn(frame: Frame, long_residual: bool = True, short_residual: bool = False) -> Network:
    """ResDSN, or one of its variants by the residual connections that it has (ResDSN paper, Table 1)."""
    connections = {"long_residual": long_residual, "short_residual": short_residual, "deep_supervision": True}
    return _with_norm("resdsn", frame, **connections)


def unet(frame: Frame) -> Network:
    """The 3-D U-Net."""
    return _with_norm("unet", frame)


def pyramid(frame: Frame) -> Network:
    """Two 3-D U-Nets, at a quarter and at half of the resolution.

    Normalized by batch however small, since their windows are larger in use than in training: group norm, which sees
    the window, made a case that was learned by heart come back with a Dice of 0.94 instead of 1.
    """
    return _with_norm("pyramid", frame, levels=2, exclusive=frame.exclusive, norm="batch")


def auto_context(frame: Frame, inner: Build, context: Sequence[str]) -> Network:
    """A network twice, one after the other: the second takes what the first has found too.

    Args:
        context: what it takes of it, "probability" or "residual".
    """
    network = inner(frame)
    own = {key: value for key, value in network["arguments"].items() if key not in frame.counts}
    # One line of the plan says the axis for both.
    axis = {key: own.pop(key) for key in ("residual_axis",) if key in own}
    arguments = {
        **frame.counts,
        "network": {"type": network["type"], "arguments": own},
        "rounds": 2,
        "context": list(context),
        "exclusive": frame.exclusive,
        **axis,
    }
    return {"type": "auto_context", "arguments": arguments}


def all_arguments(network: Network) -> dict[str, Any]:
    """The arguments of a network, and of the one that it is made of where there is one."""
    arguments = network["arguments"]
    return {**arguments.get("network", {}).get("arguments", {}), **arguments}


def _with_norm(kind: str, frame: Frame, **arguments: Any) -> Network:
    common = {**frame.counts, "base_width": frame.base_width, "norm": frame.norm}
    return {"type": kind, "arguments": common | arguments}
