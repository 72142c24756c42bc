"""Model packages for the module's tests: a random one with four channels and overlapping regions, and broken ones."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from conresnet.networks import build_network
from conresnet.package import parse_description
from conresnet.package.reader import METRICS_FILE
from conresnet.package.store import write_package

WEIGHTS = "network.safetensors"


def write_four_channels(path: Path, metrics: bytes | None = None) -> Path:
    """Write a package like those for brain tumors, with random weights, a very narrow network and optional metrics."""
    arguments = {"input_channels": 4, "outputs": 3, "residual_outputs": 3, "base_width": 8}
    torch.manual_seed(0)
    weights = safetensors.torch.save(build_network("conresnet", arguments).state_dict())
    keywords_of = {
        "FLAIR": (["flair"], []),
        "T1": (["t1"], ["t1c", "t1ce", "t1gd"]),
        "T1c": (["t1c", "t1ce", "t1gd"], []),
        "T2": (["t2"], ["flair"]),
    }
    colors = ((255, 200, 0), (0, 160, 80), (200, 0, 0))
    description = parse_description(
        {
            "format": "conresnet-model",
            "format_version": 1,
            "name": "four",
            "title": "Four channels",
            "version": "0.1.0",
            "license": "CC0-1.0",
            "intended_use": "Tests only.",
            "limitations": "It is not trained.",
            "inputs": [
                {
                    "name": name,
                    "modality": "MR",
                    "keywords": keywords,
                    "exclude_keywords": excluded,
                    "intensity": [{"step": "z_score", "over": "foreground", "outside": "zero"}],
                }
                for name, (keywords, excluded) in keywords_of.items()
            ],
            "preparation": {"orientation": "SAR", "spacing": None, "foreground": "all"},
            "system": {
                "type": "single",
                "networks": [{"type": "conresnet", "arguments": arguments, "weights": WEIGHTS}],
            },
            "inference": {"window": [24, 24, 24], "overlap": 0.5, "tiling": "fitted", "blending": "gaussian"},
            "output": {
                "kind": "regions",
                "threshold": 0.5,
                "segments": [
                    {"name": name, "label": label, "color": list(color)}
                    for (label, name), color in zip(((2, "Whole"), (1, "Core"), (3, "Enhancing")), colors, strict=True)
                ],
                "paint_order": ["Whole", "Core", "Enhancing"],
            },
        },
        "model.json",
    )
    extra_files = {METRICS_FILE: metrics} if metrics else {}
    write_package(description, {WEIGHTS: weights, **extra_files}, path)
    return path


def write_broken(path: Path) -> Path:
    """Write a folder with a truncated model.json."""
    path.mkdir(parents=True)
    (path / "model.json").write_text('{"format": "conresnet-model", ', encoding="utf-8")
    return path
