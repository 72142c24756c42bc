"""The maps a model can show beside its segmentation. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.package.description import ModelDescription

MAPS = {
    "probability": "How sure the network is of each segment, 0 to 1.",
    "residual": "Where each segment is predicted to change from the slice before, 0 to 1 (context residual, eq. 5).",
    "attention": "How much the residual path raises the features of a place, 0 to 1: the mean over channels of "
    "sigmoid(O_res) of the last module (eq. 6).",
    "features": "Sum over channels of the last module's features, before and after attention (Fig. 6).",
}

_HALF_MAXIMUM = float(np.finfo(np.float16).max)


def provided_maps(description: ModelDescription) -> set[str]:
    """The maps that a model can make, told from its description alone, as Slicer's process has to."""
    system = description.system
    # Of a system of several passes, the last one makes the maps.
    networks = system.networks[-1:] if system.type == "coarse_to_fine" else system.networks
    return set.intersection(*(_maps_of_network(network.type, network.arguments) for network in networks))


def residual_plane(description: ModelDescription) -> str:
    """Between slices of which plane a model predicts residuals: axial, coronal or sagittal; "" where it has none."""
    return description.residual_axis if "residual" in provided_maps(description) else ""


def map_components(description: ModelDescription) -> dict[str, int]:
    """How many components each map of a model has: one per segment, or one residual for all segments together."""
    segments = len(description.output.segments)
    arguments = description.system.networks[-1].arguments
    inner = arguments.get("network", {}).get("arguments", {})
    residuals = {**inner, **arguments}.get("residual_outputs")
    return {"probability": segments, "residual": 1 if residuals == 1 else segments, "attention": 1, "features": 2}


def _maps_of_network(kind: str, arguments: Mapping[str, Any]) -> set[str]:
    if kind == "auto_context":
        inner = arguments.get("network", {})
        return _maps_of_network(inner.get("type", ""), inner.get("arguments", {}))
    maps = {"probability"}
    if kind == "conresnet":
        maps.add("features")
        maps |= {name for name in ("residual", "attention") if arguments.get(f"{name}_mapping", True)}
    return maps


def check_maps(names: Iterable[str], provided: Collection[str], model: str) -> tuple[str, ...]:
    """The maps wanted, each once.

    Args:
        names: what the user asked for.
        provided: what the model has.
        model: its name, for messages.

    Raises:
        UserError: "map-unknown" or "map-unavailable".
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in MAPS:
            raise UserError("map-unknown", f"There is no map {name!r}; choose of {', '.join(MAPS)}.", map=name)
        if name not in provided:
            raise UserError(
                "map-unavailable",
                f"The model {model} has no {name} map; it has {', '.join(sorted(provided))}.",
                map=name,
                model=model,
            )
    return names


def to_half(values: np.ndarray) -> np.ndarray:
    """Values as float16; those out of its range become its largest."""
    return np.clip(values, -_HALF_MAXIMUM, _HALF_MAXIMUM).astype(np.float16)
