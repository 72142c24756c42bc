"""Windows that are turned, scaled, bent and flipped, cut from a case in one resampling.

MONAI has a transform for each of these. Each resamples the window anew, image and label by grids of their own, and
knows nothing of what lies around the window; that took half of the time of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a changed window come from.

    Args:
        window: voxels (S, H, W).
        turn: (3, 3), offsets from the window's center to offsets in the case, in voxels; None leaves every voxel in its
            place.
        bends: for each axis, by how many voxels its planes are shifted along it before they are turned.
        flips: axes to flip along.
    """

    window: tuple[int, int, int]
    turn: np.ndarray | None = None
    bends: tuple[np.ndarray, ...] = (0, 0, 0)
    flips: tuple[int, ...] = ()

    @property
    def is_mirror_image(self) -> bool:
        """Whether what is on the left looks as if it were on the right: two flips are a turn by half a circle."""
        return len(self.flips) % 2 == 1

    def cut(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        """The window out of a case; what it shows beyond the case is 0, as padding is in inference.

        Args:
            image: (C, S, H, W) float32 of the case.
            label: (S, H, W) uint8.
            corner: index (S, H, W) of the unchanged window's first voxel; negative where it begins before the case.

        Returns:
            Image (C, S, H, W) float32 and label (S, H, W) uint8 of the window's size.
        """
        if self.turn is None:
            cut = (torch.from_numpy(_cut(array, corner, self.window)) for array in (image, label))
        else:
            cut = self._resampled(image, label, corner)
        return tuple(torch.flip(part, [axis - 3 for axis in self.flips]) if self.flips else part for part in cut)

    def _resampled(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        middle = (np.array(self.window) - 1) / 2
        # (n, 3) each: what an axis of the window adds to a voxel's place in the case; the place is the sum of three.
        axes = [np.arange(n) - m + bend for n, m, bend in zip(self.window, middle, self.bends, strict=True)]
        steps = [axis[:, None] * column for axis, column in zip(axes, self.turn.T, strict=True)]
        # Of the case, no more is read than the window shows.
        low = np.floor(corner + middle + sum(step.min(axis=0) for step in steps)).astype(int)
        high = np.ceil(corner + middle + sum(step.max(axis=0) for step in steps)).astype(int) + 1
        low, high = np.clip(low, 0, label.shape), np.clip(high, 0, label.shape)
        size = high - low
        if not (size > 0).all():
            return torch.zeros(len(image), *self.window), torch.zeros(self.window, dtype=torch.uint8)
        box = tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))
        # As grid_sample counts: from -1 at the first voxel's edge to 1 at the last one's, W first.
        s, h, w = (torch.from_numpy((2 * step / size)[:, ::-1].astype(np.float32)) for step in steps)
        first = torch.from_numpy(((2 * (corner + middle - low) + 1) / size - 1)[::-1].astype(np.float32))
        grid = s[:, None, None] + (h[:, None] + (w + first))
        moved = _sample(torch.from_numpy(image[:, *box].copy()), grid, "bilinear")
        values = torch.from_numpy(label[box].astype(np.float32))
        return moved, _sample(values[None], grid, "nearest")[0].to(torch.uint8)


def draw_turn(degrees: float, scaling: float, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A random ``Warp.turn``: a rotation about each axis, and a scale along each, both in millimeters.

    Args:
        degrees: the largest angle, to either side.
        scaling: the largest part by which the window shows more or less.
        spacing: mm (S, H, W) of a voxel.
        random: what is drawn from.
    """
    turn = np.diag(1 + random.uniform(-scaling, scaling, 3))
    for axis, angle in enumerate(np.deg2rad(random.uniform(-degrees, degrees, 3))):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[one, other], [one, other]] = np.cos(angle)
        rotation[one, other], rotation[other, one] = -np.sin(angle), np.sin(angle)
        turn = rotation @ turn
    return turn * np.array(spacing) / np.array(spacing)[:, None]


def draw_bend(length: int, cells: int, strength: float, random: np.random.Generator) -> np.ndarray:
    """Random shifts (length,) along an axis, in voxels, that widen or narrow each of its cells by up to ``strength``.

    The axis keeps its middle: its ends go either way alike.
    """
    edges = np.linspace(0, length, cells + 1)
    shifts = np.concatenate([[0], np.cumsum(random.uniform(-strength, strength, cells) * length / cells)])
    return np.interp(np.arange(length) + 0.5, edges, shifts - shifts[-1] / 2)


def _cut(array: np.ndarray, corner: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """The window of an array whose last axes are (S, H, W), 0 beyond the array."""
    cut = np.zeros((*array.shape[:-3], *window), array.dtype)
    source = tuple(slice(max(c, 0), min(c + w, n)) for c, w, n in zip(corner, window, array.shape[-3:], strict=True))
    place = tuple(slice(part.start - c, part.stop - c) for part, c in zip(source, corner, strict=True))
    cut[(..., *place)] = array[(..., *source)]
    return cut


def _sample(array: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, S, H, W) of the grid's size."""
    return grid_sample(array[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
