"""Model packages with random weights: small, fast ones, and one that needs a long time for a single window."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from conresnet.networks import build_network
from conresnet.package import parse_description
from conresnet.package.store import write_package
from engine.package_cases import WEIGHTS, document


def make_model(
    folder: Path, name: str = "organ", base_width: int = 8, window: tuple[int, int, int] = (16, 32, 32)
) -> Path:
    """Write a model package with random weights; it accepts MR images and does not resample."""
    torch.manual_seed(0)
    arguments = {"input_channels": 1, "outputs": 3, "residual_outputs": 2, "base_width": base_width}
    network = build_network("conresnet", arguments)
    description = document(
        name=name,
        inputs=[{"name": "T1", "modality": "MR", "intensity": [{"step": "z_score", "over": "all", "outside": "keep"}]}],
        preparation={"orientation": "SAR", "spacing": None, "foreground": "all", "roi": "cut"},
        system={
            "type": "single",
            "networks": [{"type": "conresnet", "arguments": arguments, "weights": WEIGHTS}],
        },
        inference={"window": list(window), "overlap": 0.5, "tiling": "fitted", "blending": "gaussian"},
    )
    parsed = parse_description(description)
    return write_package(parsed, {WEIGHTS: save(network.state_dict())}, folder / name).path
