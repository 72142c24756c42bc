"""Synthetic checkpoints in the format of the paper's authors, and the outputs their network computes from one."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

INPUT_SHAPE = (1, 4, 16, 32, 48)
# The authors' names of the arrays in Testing/Data/authors_checkpoint/official_outputs.npz.
SEGMENTATION, RESIDUALS = "seg", ("res", "res_x2", "res_x4")


def shapes(data_folder: Path, base_width: int = 32) -> dict[str, tuple[int, ...]]:
    """Name and shape of the 123 tensors, in file order, for a network of the given width (the authors' is 32)."""
    text = (data_folder / "authors_checkpoint" / "official_state_dict_shapes.json").read_text(encoding="utf-8")
    return {
        name: tuple(side * base_width // 32 if side % 32 == 0 else side for side in shape)
        for name, shape in json.loads(text).items()
    }


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor seeded by its name, scaled so that activations stay in range."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(".bias"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    else:
        values = values * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def state_dict(data_folder: Path, base_width: int = 32) -> dict[str, torch.Tensor]:
    """A complete state_dict with the authors' names."""
    return {name: tensor(name, shape) for name, shape in shapes(data_folder, base_width).items()}


def input_tensor() -> torch.Tensor:
    """The input from which the stored outputs were computed."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(INPUT_SHAPE).astype(np.float32))


def stored_outputs(data_folder: Path) -> dict[str, torch.Tensor]:
    """Stored logits by the authors' names, each (3, 8, 8, 12): every 2nd, 4th and 4th voxel of the full size."""
    with np.load(data_folder / "authors_checkpoint" / "official_outputs.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in (SEGMENTATION, *RESIDUALS)}
