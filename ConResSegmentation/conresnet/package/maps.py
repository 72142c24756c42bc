"""The maps that a model can give besides its segmentation, each described once. Torch-free.

A new map is one entry of `MAPS`, and the network's output that it shows. What is computed from the result instead, such
as the uncertainty, is in `conresnet.inference.results`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from conresnet.errors import UserError
from conresnet.networks import all_arguments, provided_outputs
from conresnet.package.description import AXES, ModelDescription
from conresnet.systems import declared_system


@dataclass(frozen=True)
class MapKind:
    """One kind of map.

    Args:
        title: title in lists.
        description: what it shows, as text for users.
        output: the network's output that it is made from, see `conresnet.networks.blocks`, or one that the system adds
            (`conresnet.systems.System.adds`).
        is_logit: whether that output goes through a sigmoid. (The segmentation is made probabilities in any case.)
        per_segment: whether it has one component per segment; else ``components``.
        components: number of components if not ``per_segment``.
        range: lowest and highest value it can have; None where it depends on the network.
        colors: name of its color table, by which Slicer and matplotlib know the same one.
        from_result: whether it is computed from the result, once that is known, and not window by window.
        follows_residual: whether it has the components of the residual map, see ``map_components``.
    """

    title: str
    description: str
    output: str
    is_logit: bool = False
    per_segment: bool = False
    components: int = 1
    range: tuple[float, float] | None = (0.0, 1.0)
    colors: str = "Inferno"
    from_result: bool = False
    follows_residual: bool = False


MAPS = {
    "probability": MapKind(
        "Probability",
        "Probability of each segment, 0 to 1.",
        "segmentation",
        is_logit=True,
        per_segment=True,
    ),
    "residual": MapKind(
        "Residual",
        "Where each segment is predicted to begin or end between a slice and the previous one, 0 to 1: bright "
        "along its boundary, dark where the model expects no change (context residual, eq. 5).",
        "residual",
        is_logit=True,
        per_segment=True,
        follows_residual=True,
    ),
    "attention": MapKind(
        "Attention",
        "How much weight the network gives to each voxel, 0 to 1; only differences between voxels are meaningful "
        "(mean over channels of sigmoid(O_res) of the last module, eq. 6).",
        "attention",
        colors="Viridis",
    ),
    "features": MapKind(
        "Features",
        "Sum over channels of the last module's features, before and after attention (Fig. 6).",
        "features",
        components=2,
        range=None,
        colors="Viridis",
    ),
    "uncertainty": MapKind(
        "Uncertainty",
        "How unsure the model is, 0 (certain) to 1 (all answers equally likely): predictive entropy of the "
        "probabilities; for overlapping regions, that of the least certain region.",
        "segmentation",
        colors="Magma",
        from_result=True,
    ),
    "disagreement": MapKind(
        "Disagreement",
        "How much the networks of an ensemble disagree, 0 to 1: the mutual information between the prediction and "
        "the choice of network.",
        "members",
        colors="Magma",
    ),
    "result_residual": MapKind(
        "Residual of the result",
        "Where each segment of the result begins or ends between a slice and the previous one, 0 or 1 (eq. 1).",
        "segmentation",
        per_segment=True,
        from_result=True,
        follows_residual=True,
    ),
    "residual_difference": MapKind(
        "Residual difference",
        "How far apart the predicted residual and the residual of the result are, 0 to 1: bright where the "
        "prediction and the segmentation disagree.",
        "residual",
        per_segment=True,
        from_result=True,
        follows_residual=True,
    ),
}

HALF_MAXIMUM = float(np.finfo(np.float16).max)


def provided_maps(description: ModelDescription) -> set[str]:
    """The maps that a model can give, read from its description alone, as Slicer's process has to."""
    system = description.system
    kind = declared_system(system.type)
    networks = kind.shown(system.networks) if kind else system.networks
    outputs = set.intersection(*(provided_outputs(item.type, item.arguments) for item in networks))
    return {name for name, map_kind in MAPS.items() if map_kind.output in {*outputs, *(kind.adds if kind else ())}}


def predicted_maps(names: Iterable[str]) -> tuple[str, ...]:
    """The maps that networks have to make for these: themselves, or the one that a map of the result is made from."""
    needed = ("residual" if MAPS[name].output == "residual" else name for name in names)
    return tuple(dict.fromkeys(name for name in needed if not MAPS[name].from_result))


def slice_axis(description: ModelDescription) -> int:
    """The axis of a model's arrays (0 to 2 for S, H, W) along which slices follow one another in its residual.

    S for a model that predicts none.
    """
    network = description.system.networks[0]
    return AXES.index(all_arguments(network.type, network.arguments).get("residual_axis", "S"))


def residual_plane(description: ModelDescription) -> str:
    """The plane of the slices between which a model predicts residuals; "" where it predicts none."""
    return description.residual_axis if "residual" in provided_maps(description) else ""


def map_components(description: ModelDescription) -> dict[str, int]:
    """How many components each map of a model has: one per segment, or one residual for all segments together.

    Maps of the result's residual are like the predicted one; a model that predicts none has one per segment.
    """
    segments = len(description.output.segments)
    network = description.system.networks[-1]
    shared = all_arguments(network.type, network.arguments).get("residual_outputs") == 1
    counts = {name: segments if kind.per_segment else kind.components for name, kind in MAPS.items()}
    return {name: 1 if shared and MAPS[name].follows_residual else count for name, count in counts.items()}


def check_maps(names: Iterable[str], description: ModelDescription) -> tuple[str, ...]:
    """The requested maps of a model, each once. Raises UserError ``map-unknown`` or ``map-unavailable``."""
    names, provided = tuple(dict.fromkeys(names)), provided_maps(description)
    for name in names:
        if name not in MAPS:
            raise UserError("map-unknown", map=name, known=", ".join(MAPS))
        if name not in provided:
            available = ", ".join(sorted(provided))
            raise UserError("map-unavailable", map=name, model=description.name, available=available)
    return names


def to_half(values: np.ndarray) -> np.ndarray:
    """Values as float16; those outside its range become its largest."""
    return np.clip(values, -HALF_MAXIMUM, HALF_MAXIMUM).astype(np.float16)
