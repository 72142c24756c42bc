"""Coarse-to-fine models with known results: their networks find segments by thresholds of the intensity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from scipy import ndimage

from conresnet.networks import build_network
from conresnet.package import parse_description
from conresnet.package.reader import ModelPackage
from conresnet.package.store import write_package
from engine.model_cases import Pointwise, description

FILES = ("coarse.safetensors", "fine.safetensors")
HUNDREDTHS = [{"step": "rescale", "from": [0, 100], "to": [0, 1]}]
_STEEP = 100.0


def coarse_to_fine(document: dict[str, Any], fine: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """A `model.json` with two networks like the one in ``document``; ``fine`` may describe the second one."""
    document = copy.deepcopy(document)
    coarse = document["system"]["networks"][0]
    fine = (fine or document)["system"]["networks"][0]
    networks = [{**copy.deepcopy(one), "weights": file} for one, file in zip((coarse, fine), FILES, strict=True)]
    document["system"] = {"type": "coarse_to_fine", "networks": networks, "arguments": {"margin": 3, **arguments}}
    document["inference"] |= {"tiling": "authors", "blending": "uniform"}
    return document


def threshold_weights(*levels: float, regions: bool = False) -> dict[str, torch.Tensor]:
    """Weights of a ``Pointwise`` network that finds one segment per level, where the intensity is above that level."""
    outputs = len(levels) + (not regions)
    state = Pointwise(1, outputs).state_dict()
    state = {name: torch.zeros_like(value) for name, value in state.items()}
    for index, level in enumerate(levels, start=int(not regions)):
        state["layer.weight"][index] = _STEEP
        state["layer.bias"][index] = -_STEEP * level / 100
    return state


def random_weights(document: dict[str, Any], index: int) -> dict[str, torch.Tensor]:
    """Random weights of one network in a description, uneven enough to find something."""
    network = document["system"]["networks"][index]
    with torch.random.fork_rng():
        torch.manual_seed(index)
        state = build_network(network["type"], network["arguments"]).state_dict()
    return {name: value * 3 if value.ndim == 5 else value for name, value in state.items()}


def write_pair(folder: Path, document: dict[str, Any], *weights: dict[str, torch.Tensor]) -> ModelPackage:
    """Write a package with the weights of the coarse and the fine network."""
    files = {file: safetensors.torch.save(state) for file, state in zip(FILES, weights, strict=True)}
    return write_package(parse_description(document), files, folder / "model")


def threshold_pair(
    folder: Path, coarse: Sequence[float], fine: Sequence[float], regions: bool = False, **settings: Any
) -> ModelPackage:
    """A CT model whose networks are thresholds; ``settings`` are the system's arguments,
    ``preparation`` and ``inference``."""
    placed = {key: settings.pop(key) for key in ("preparation", "inference") if key in settings}
    document = description("pointwise", segments=len(coarse), regions=regions, intensity=HUNDREDTHS, **placed)
    document["inputs"][0]["modality"] = "CT"
    weights = [threshold_weights(*levels, regions=regions) for levels in (coarse, fine)]
    return write_pair(folder, coarse_to_fine(document, **settings), *weights)


def without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
    """Components that are at least this share of the whole mask; the largest one in any case."""
    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    large = sizes >= smallest * sizes.sum()
    large[sizes.argmax()] = True
    large[0] = False
    return large[components] & mask


def box_around(masks: Sequence[np.ndarray], margin: int) -> tuple[slice, ...]:
    """Bounding box of all masks with a margin, clipped to the array."""
    places = np.argwhere(np.any(masks, axis=0))
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin + 1
    return tuple(slice(max(0, a), min(side, b)) for a, b, side in zip(low, high, masks[0].shape, strict=True))


def by_hand(
    array: np.ndarray, coarse: Sequence[float], fine: Sequence[float], margin: int, smallest: float
) -> list[np.ndarray]:
    """The expected result of a threshold pair, one mask per segment (as regions, which overlap)."""
    found = [without_small(array > level, smallest) for level in coarse]
    box = box_around(found, margin)
    inside = np.zeros(array.shape, dtype=bool)
    inside[box] = True
    return [without_small((array > level) & inside, smallest) for level in fine]
