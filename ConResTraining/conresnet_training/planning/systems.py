"""The systems that a plan can be for: what each is called, a sentence about it, and how it changes a plan.

`SYSTEMS` holds what the engine's networks and systems declare under ``plans`` (`conresnet.networks`,
`conresnet.systems`), those of other installed packages included. Slicer's own process lists them too, so nothing here
needs torch or pydantic until a network is planned.

Each option of ConResNet's study is one step away from a plan: the baseline is a system here (Table III); without
attention ``--set model.system.networks.0.arguments.attention_mapping=false`` (Table III); across the other axes
``--residual-axis H`` or ``W`` (Table IV); labels instead of regions ``--kind labels`` (Table V); with the boundary loss
``--set training.boundary=true`` (Table VI); lambda ``--set training.deep_supervision=0.1`` (Fig. 8).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conresnet.errors import UserError
from conresnet.networks import NetworkDeclaration, declared_network, network_class, network_names, provided_outputs
from conresnet.systems import System, declared_system, system_names

DEFAULT = "conresnet"
# Batches of fewer samples say too little about a batch's mean and variance.
FEWEST_FOR_BATCH_NORM = 8
# With more segments, separate residuals cost more than they bring.
MOST_RESIDUALS = 8

Network = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """What the data and the memory decide about any system's networks.

    Args:
        channels: images of a case that a network sees, preprocessed copies included.
        exclusive: each voxel has one label, the background being one of them; else segments are regions.
        base_width: channels of a network's first stage.
        residual_axis: "S", "H" or "W", for networks that compare slices.
        batch: samples per step.
    """

    channels: int
    segments: int
    exclusive: bool
    base_width: int
    residual_axis: str
    batch: int

    @classmethod
    def of(cls, model: Mapping[str, Any], base_width: int, residual_axis: str, batch: int) -> Frame:
        """That of a planned ``model.json``, by its inputs and segments."""
        channels = sum(1 + len(item.get("copies", ())) for item in model["inputs"])
        output = model["output"]
        segments, exclusive = len(output["segments"]), output["kind"] == "labels"
        return cls(channels, segments, exclusive, base_width, residual_axis, batch)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that it gives to every network that has them.

        Networks whose papers normalize by batch do so, unless batches are too small for it.
        """
        return {
            "input_channels": self.channels,
            "outputs": self.segments + self.exclusive,
            "residual_outputs": self.segments,
            "base_width": self.base_width,
            "residual_axis": self.residual_axis,
            "exclusive": self.exclusive,
            "norm": "batch" if self.batch >= FEWEST_FOR_BATCH_NORM else "group",
        }


def planned_network(kind: str, frame: Frame, chosen: Mapping[str, Any]) -> Network:
    """A network's type with every argument written out, as a plan names it.

    Args:
        chosen: arguments that differ from the frame's and from the network's defaults.
    """
    arguments = {}
    for name, parameter in inspect.signature(network_class(kind)).parameters.items():
        value = chosen.get(name, frame.arguments.get(name, parameter.default))
        if value is not inspect.Parameter.empty:
            arguments[name] = list(value) if isinstance(value, tuple) else value
    wraps = declared_network(kind).wraps
    if wraps:
        inner = planned_network(chosen[wraps]["type"], frame, chosen[wraps]["arguments"])
        own = {key: value for key, value in inner["arguments"].items() if key not in ("input_channels", "outputs")}
        # One line of the plan sets the axis of both.
        axis = own.pop("residual_axis", None)
        arguments.pop("residual_axis", None)
        arguments |= {wraps: {**inner, "arguments": own}} | ({"residual_axis": axis} if axis else {})
    return {"type": kind, "arguments": arguments}


def share_outputs(network: Network, segments: Sequence[str], pairs: Sequence[Sequence[str]]) -> None:
    """Let a network that can, with many segments, have one residual for all and one output per left-right pair.

    Residuals of 32 segments at three scales took a third of a training step on a CPU. The network is changed in place,
    or stays as it is without such arguments.

    Args:
        segments: names, in the order of the outputs.
        pairs: the names of each left segment and its right one; without any, no output is shared.
    """
    arguments = network["arguments"]
    has_residuals = "residual" in provided_outputs(network["type"], arguments)
    if len(segments) > MOST_RESIDUALS and has_residuals and "residual_outputs" in arguments:
        arguments["residual_outputs"] = 1
    if pairs and "pairs" in arguments and arguments["outputs"] == len(segments) + 1:
        arguments["pairs"] = [[segments.index(name) + 1 for name in pair] for pair in pairs]


@dataclass(frozen=True)
class CatalogEntry:
    """One system that can be planned.

    Args:
        sentence: what it is or does, for people.
        arguments: of the networks, where they differ from what the data decide and from their defaults.
        system: its type, one of ``conresnet.systems.system_names()``.
    """

    title: str
    sentence: str
    network: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    system: str = "single"

    @property
    def takes_residuals(self) -> bool:
        """Whether it compares neighboring slices, so that a residual axis means something."""
        return "residual" in provided_outputs(self.network, self.arguments)

    @property
    def kind(self) -> type[System]:
        return declared_system(self.system)

    @property
    def declaration(self) -> NetworkDeclaration:
        """What the network says of itself, or the one that it wraps."""
        return declared_network(_inner(self.network, self.arguments))

    def build(self, frame: Frame) -> Network:
        """Its network; where it has several, each of them."""
        return planned_network(self.network, frame, self.arguments)

    def stages(self, network: Network) -> int:
        """How many trainings of a network from ``build`` follow one another, each as long as the plan says."""
        import torch

        from conresnet.networks import build_network

        stages = len(self.kind.stages(self.kind.plan_arguments(None).values))
        if stages > 1:
            return stages
        with torch.device("meta"):
            return build_network(network["type"], network["arguments"]).stages

    def prepare(self, model: dict[str, Any]) -> dict[str, str]:
        """Change what a planned ``model.json`` says of the images; see ``System.plan_images``."""
        made = network_class(_inner(self.network, self.arguments))
        return {**self.kind.plan_images(model), **(made.plan_images(model) if hasattr(made, "plan_images") else {})}

    def describe(self, network: Network, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The "system" of a ``model.json``, for a network from ``build`` and the system's arguments."""
        networks = [{**network, "weights": f"{name}.safetensors"} for name in self.kind.files]
        return {"type": self.system, "networks": networks, "arguments": dict(arguments)}


def _inner(kind: str, arguments: Mapping[str, Any]) -> str:
    """The type of the network itself, or of the one that it wraps."""
    wraps = declared_network(kind).wraps
    return _inner(arguments[wraps]["type"], arguments[wraps]["arguments"]) if wraps else kind


def _catalog() -> Iterator[tuple[str, CatalogEntry]]:
    for name in network_names():
        plans = declared_network(name).plans or {name.replace("_", "-"): {"title": name, "sentence": ""}}
        yield from ((plan, CatalogEntry(network=name, **said)) for plan, said in plans.items())
    for name in system_names():
        if kind := declared_system(name):
            yield from ((plan, CatalogEntry(system=name, **said)) for plan, said in kind.plans.items())


def _rank(item: tuple[str, CatalogEntry]) -> tuple[bool, str]:
    """ConResNet and what is made of it come first, then all others by title."""
    title = item[1].title
    return not title.startswith("ConResNet"), title.casefold()


SYSTEMS: dict[str, CatalogEntry] = dict(sorted(_catalog(), key=_rank))
"""By the name for ``plan --system``, in the order in which people are shown them."""


def cataloged(name: str) -> CatalogEntry:
    """The system of a name. Raises UserError ``plan-system-unknown``, with the nearest name there is."""
    if name not in SYSTEMS:
        nearest = difflib.get_close_matches(name.casefold(), SYSTEMS, 1, 0)[0]
        raise UserError("plan-system-unknown", system=name, nearest=nearest)
    return SYSTEMS[name]
