"""The networks of the systems, with every argument written out, as a plan names them.

Plain data for `conresnet.networks.build_network`; nothing here needs torch.

The systems that a plan can be for: what each is called, a sentence on it for people, and how it changes a plan.

`SYSTEMS` is in the order in which people are shown them. Slicer's own process reads it too, so nothing here, nor in the
modules it stands on, needs torch or pydantic.

Each option of ConResNet's study is one away from a plan: the baseline is a system here (Table III); without attention
``--set model.system.networks.0.arguments.attention_mapping=false`` (Table III); across the other axes
``--residual-axis H`` or ``W`` (Table IV); labels instead of regions ``--kind labels`` (Table V); with the boundary loss
``--set training.boundary=true`` (Table VI); lambda ``--set training.deep_supervision=0.1`` (Fig. 8).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from conresnet.errors import UserError
from conresnet.package.description import FORMAT_VERSION
from conresnet.package.system_checks import COARSE_TO_FINE
from conresnet_training.planning.inputs import (
    PYRAMID_STEP,
    abdomen_of_ct,
    as_planned,
    half_resolution,
    slices_and_copies,
)

# Fewer samples a step than these tell too little of a batch's mean and variance.
FEWEST_FOR_BATCH_NORM = 8
# Segments beyond which residuals of each cost more than they bring.
MOST_RESIDUALS = 8


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
    def of(cls, model: dict[str, Any], base_width: int, residual_axis: str, batch: int) -> Frame:
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


def share_outputs(network: Network, segments: Sequence[str], pairs: Sequence[Sequence[str]]) -> None:
    """Let a ConResNet of many segments have one residual for all, and one output for the left and right of each pair.

    Residuals of 32 segments at three scales took a third of a training step on a processor.

    Args:
        network: changed in place; other kinds are left as they are.
        segments: names, in the order of the outputs.
        pairs: names of left and right ones.
    """
    arguments = network["arguments"]
    if network["type"] != "conresnet":
        return
    if len(segments) > MOST_RESIDUALS and arguments["residual_mapping"]:
        arguments["residual_outputs"] = 1
    if pairs and arguments["outputs"] == len(segments) + 1:
        arguments["pairs"] = [[segments.index(name) + 1 for name in pair] for pair in pairs]


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


if TYPE_CHECKING:
    from conresnet_training.planning.plan import Plan

DEFAULT = "conresnet"
# Sides of a window, as in the papers: ConResNet IV-B, VoxResNet 3.3, ResDSN 4.1, pyramid 3 (64 at each level).
CONRESNET_WINDOW, VOXRESNET_WINDOW, RESDSN_WINDOW, PYRAMID_WINDOW = (80, 160, 160), (80,) * 3, (64,) * 3, (128,) * 3
# m of the coarse-to-fine passes in voxels, which the ResDSN paper leaves open: chosen.
MARGIN = 20


@dataclass(frozen=True)
class Catalogued:
    """One system.

    Args:
        title: for lists.
        sentence: what it is or does, for people.
        build: makes its network; in coarse to fine, both.
        prepare: changes what a plan says of the images.
        largest_window: voxels (S, H, W) that a window is planned to have at the most, as in the system's paper.
        window_step: what the sides of a window are multiples of.
        stages: trainings one after the other, each of as many steps as the plan says.
        coarse_to_fine: whether one network looks at the whole case, and one at what that finds.
    """

    title: str
    sentence: str
    build: Build
    prepare: Callable[[dict[str, Any]], None] = as_planned
    largest_window: tuple[int, int, int] = CONRESNET_WINDOW
    # conresnet.inference.windows.MULTIPLE, which is no part of a help that shall come at once.
    window_step: int = 8
    stages: int = 1
    coarse_to_fine: bool = False

    @property
    def takes_residuals(self) -> bool:
        """Whether it compares neighboring slices, so that a residual axis means something."""
        smallest = Frame(channels=1, segments=1, exclusive=True, base_width=8, residual_axis="S", batch=1)
        return bool(all_arguments(self.build(smallest)).get("residual_mapping"))

    def system(self, frame: Frame) -> dict[str, Any]:
        """The "system" of a ``model.json``."""
        weights = ("coarse", "fine") if self.coarse_to_fine else ("network",)
        networks = [{**self.build(frame), "weights": f"{name}.safetensors"} for name in weights]
        if self.coarse_to_fine:
            return {"type": "coarse_to_fine", "networks": networks, "arguments": {"margin": MARGIN, **COARSE_TO_FINE}}
        return {"type": "single", "networks": networks}


SYSTEMS: dict[str, Catalogued] = {
    "conresnet": Catalogued(
        "ConResNet",
        "Learns where neighboring slices differ too, and with that draws outlines from slice to slice more surely.",
        conresnet,
    ),
    "conresnet-baseline": Catalogued(
        "ConResNet, baseline",
        "ConResNet without context residuals, to see what these add.",
        partial(conresnet, residuals=False),
    ),
    "conresnet-voxresnet": Catalogued(
        "ConResNet on VoxResNet",
        "ConResNet's decoder on the encoder of VoxResNet.",
        partial(conresnet, backbone="voxresnet"),
    ),
    "conresnet-resdsn": Catalogued(
        "ConResNet on ResDSN",
        "ConResNet's decoder on the encoder of ResDSN.",
        partial(conresnet, backbone="resdsn"),
    ),
    "conresnet-unet": Catalogued(
        "ConResNet on 3D U-Net",
        "ConResNet's decoder on the encoder of the 3D U-Net.",
        partial(conresnet, backbone="unet"),
    ),
    "conresnet-refined": Catalogued(
        "ConResNet, refined",
        "ConResNet twice: the second takes the first's residuals as a prior. Twice the steps, and no better where it "
        "was measured.",
        partial(auto_context, inner=conresnet, context=("residual",)),
        stages=2,
    ),
    "voxresnet": Catalogued(
        "VoxResNet",
        "A deep residual network for tissues of the brain, which sees a copy of each image with its contrast evened "
        "out too.",
        voxresnet,
        slices_and_copies,
        VOXRESNET_WINDOW,
    ),
    "voxresnet-auto-context": Catalogued(
        "VoxResNet with auto-context",
        "VoxResNet twice: the second takes the first's probabilities too. Trains for twice the steps.",
        partial(auto_context, inner=voxresnet, context=("probability",)),
        slices_and_copies,
        VOXRESNET_WINDOW,
        stages=2,
    ),
    "resdsn": Catalogued(
        "ResDSN",
        "An encoder and decoder with summed long connections and deep supervision, in one pass.",
        resdsn,
        largest_window=RESDSN_WINDOW,
    ),
    "fresdsn": Catalogued(
        "FResDSN",
        "ResDSN with short residual connections beside its long ones.",
        partial(resdsn, short_residual=True),
        largest_window=RESDSN_WINDOW,
    ),
    "sresdsn": Catalogued(
        "SResDSN",
        "ResDSN with short residual connections instead of its long ones.",
        partial(resdsn, long_residual=False, short_residual=True),
        largest_window=RESDSN_WINDOW,
    ),
    "dsn": Catalogued(
        "DSN",
        "ResDSN without residual connections.",
        partial(resdsn, long_residual=False),
        largest_window=RESDSN_WINDOW,
    ),
    "coarse-to-fine": Catalogued(
        "ResDSN, coarse to fine",
        "One ResDSN finds a small organ in the whole scan, another segments it in the box around it. Trains for twice "
        "the steps.",
        resdsn,
        abdomen_of_ct,
        RESDSN_WINDOW,
        stages=2,
        coarse_to_fine=True,
    ),
    "unet": Catalogued(
        "3D U-Net",
        "The 3D U-Net that the pyramid is made of, by itself at full resolution.",
        unet,
    ),
    "pyramid": Catalogued(
        "3D U-Net pyramid",
        "Two 3D U-Nets at a quarter and at half of the resolution, trained together, for large organs in large scans.",
        pyramid,
        half_resolution,
        PYRAMID_WINDOW,
        PYRAMID_STEP,
    ),
}


def catalogued(name: str) -> Catalogued:
    """The system of a name. Raises UserError ``system-unknown``, with the nearest name there is."""
    if name not in SYSTEMS:
        nearest = difflib.get_close_matches(name, SYSTEMS, 1, 0)[0]
        raise UserError("system-unknown", f"There is no system {name}; the nearest is {nearest}.", system=name)
    return SYSTEMS[name]


def change_system(plan: Plan, name: str) -> Plan:
    """The same plan for another system: the same data, targets, steps and augmentation.

    The window keeps its voxels, the networks their base width. Only a system that sees the images otherwise changes
    what is said of them.

    Args:
        plan: of a system that takes the images as the data alone decide, such as ConResNet.
        name: a key of `SYSTEMS`.

    Raises:
        UserError: ``system-unknown``; ``system-unchangeable`` where the plan's own system has changed what is said of
            the images; ``spacing-unknown``, see ``system_inputs.half_resolution``.
    """
    entry = catalogued(name)
    model = copy.deepcopy(plan.model)
    if _is_changed_for_its_system(model):
        sentence = (
            f"The plan {model['title']} prepares the images for its own system; make a plan for {entry.title} from the "
            "data, or change that of ConResNet."
        )
        raise UserError("system-unchangeable", sentence, system=name)
    arguments = all_arguments(model["system"]["networks"][0])
    entry.prepare(model)
    axis = arguments.get("residual_axis", "S")
    model["system"] = entry.system(Frame.of(model, arguments.get("base_width", 32), axis, plan.training.batch))
    model["format_version"] = FORMAT_VERSION
    # What an ROI meant before plans said it.
    model["preparation"].setdefault("roi", "cut")
    return type(plan).model_validate({**plan.model_dump(mode="json"), "model": model})


def _is_changed_for_its_system(model: dict[str, Any]) -> bool:
    system = model["system"]
    has_copies = any(item.get("copies") for item in model["inputs"])
    return has_copies or system["type"] == "coarse_to_fine" or system["networks"][0]["type"] == "pyramid"
