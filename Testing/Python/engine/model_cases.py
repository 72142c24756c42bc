"""Small models for end-to-end tests, from image to segmentation: some random, some with known results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from conresnet.inference.segmentation import LoadedModel, load_model
from conresnet.networks import NETWORKS, build_network
from conresnet.package import parse_description
from conresnet.package.reader import ModelPackage
from conresnet.package.store import write_package

WEIGHTS = "network.safetensors"
COLOR = [200, 100, 50]


class Pointwise(nn.Module):
    """Computes the logits of each voxel from that voxel alone, so the result does not depend on the windows."""

    def __init__(self, input_channels: int, outputs: int):
        super().__init__()
        self.provides = {"segmentation"}
        self.layer = nn.Conv3d(input_channels, outputs, 1)

    def forward(self, x: Tensor, wanted=("segmentation",)) -> dict[str, Tensor]:
        return {"segmentation": self.layer(x)}


class Smooth(nn.Module):
    """Three 3x3x3 convolutions without a norm: the receptive field extends three voxels in each direction."""

    def __init__(self, input_channels: int, outputs: int):
        super().__init__()
        self.provides = {"segmentation"}
        widths = [input_channels, 8, 8, outputs]
        self.layers = nn.ModuleList(nn.Conv3d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, wanted=("segmentation",)) -> dict[str, Tensor]:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return {"segmentation": self.layers[-1](x)}


def use_test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow packages to use the networks in this file."""
    monkeypatch.setitem(NETWORKS.classes, "pointwise", Pointwise)
    monkeypatch.setitem(NETWORKS.classes, "smooth", Smooth)


def description(
    network: str = "conresnet",
    channels: int = 1,
    segments: int = 2,
    regions: bool = False,
    preparation: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    intensity: Sequence[dict[str, Any]] = ({"step": "z_score", "over": "foreground", "outside": "keep"},),
    copies: Sequence[list[dict[str, Any]]] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """A `model.json`; ``preparation`` and ``inference`` replace single keys, ``arguments`` are the network's."""
    arguments = {"input_channels": channels * (1 + len(copies)), "outputs": segments + (not regions), **arguments}
    if network == "conresnet":
        arguments = {"residual_outputs": segments, "base_width": 8, **arguments}
    return {
        "format": "conresnet-model",
        "format_version": 3,
        "name": "test",
        "title": "A model for tests",
        "version": "1.0.0",
        "license": "CC0-1.0",
        "inputs": [
            {"name": f"T{n + 1}", "modality": "MR", "intensity": list(intensity), "copies": list(copies)}
            for n in range(channels)
        ],
        "preparation": {
            "orientation": "SAR",
            "spacing": None,
            "foreground": "all",
            "roi": "cut",
            **(preparation or {}),
        },
        "system": {
            "type": "single",
            "networks": [{"type": network, "arguments": arguments, "weights": WEIGHTS}],
        },
        "inference": {
            "window": [32, 32, 32],
            "overlap": 0.5,
            "tiling": "fitted",
            "blending": "gaussian",
            **(inference or {}),
        },
        "output": {
            "kind": "regions" if regions else "labels",
            "segments": [{"name": f"Part {n + 1}", "label": 10 * (n + 1), "color": COLOR} for n in range(segments)],
        },
    }


def write_model(folder: Path, document: dict[str, Any], seed: int = 0, scale: float = 1.0) -> ModelPackage:
    """Write a package with random weights; ``scale`` multiplies those of convolutions, for less uniform results."""
    network = document["system"]["networks"][0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = build_network(network["type"], network["arguments"]).state_dict()
    weights = {name: value * scale if value.ndim == 5 else value for name, value in weights.items()}
    return write_package(parse_description(document), {WEIGHTS: safetensors.torch.save(weights)}, folder)


def make_model(folder: Path, seed: int = 0, scale: float = 1.0, **settings: Any) -> LoadedModel:
    """Make a model on the CPU in fp32; ``settings`` are passed to ``description``."""
    return load_model(write_model(folder / "model", description(**settings), seed, scale), "cpu", "fp32")
