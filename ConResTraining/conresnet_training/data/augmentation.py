"""Settings of the augmentation, and random changes of geometry, applied in one resampling.

MONAI has a transform for each rotation, scale, bend and flip, but each resamples the window again, image and label
separately, and sees nothing outside of it; that took half of the time of a sample.
`conresnet_training.data.sample_changes` has the changes of intensities, which need MONAI. Plans are made without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import grid_sample

AXES = {"S": 0, "H": 1, "W": 2}


class Augmentation(BaseModel):
    """The strength of each random change; 0 turns a change off.

    The paper flips along all three axes and scales. Only flips from left to right keep the anatomy plausible; the plan
    names that axis. If segments are named for a side, the plan has no flips, or lists the pairs of segments that trade
    places in a mirror image.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    flip_axes: list[Literal["S", "H", "W"]] = Field(default=["W"], description="axes to flip along: any of S, H and W")
    swapped_segments: list[tuple[str, str]] = Field(
        default=[], description="pairs of segments, such as left and right, that trade places in a mirror image"
    )
    scaling: float = Field(
        default=0.2, ge=0, lt=1, description="largest fraction by which samples are enlarged or reduced"
    )
    rotation_degrees: float = Field(default=15, ge=0, le=180)
    quarter_turns: bool = Field(
        default=False, description="also rotate by 0, 90, 180 or 270 degrees about each axis, as in ResDSN's paper"
    )
    elastic: float = Field(
        default=0, ge=0, lt=0.5, description="bending: how much wider or narrower each quarter of an axis gets"
    )
    brightness: float = Field(default=0.3, ge=0, description="shift in standard deviations")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="scale, and exponent of a gamma curve")
    noise: float = Field(default=0.15, ge=0, description="standard deviation")
    bias_field: float = Field(default=0, ge=0, description="largest coefficient of a smooth field, as from a coil")
    isolation: float = Field(
        default=0, ge=0, le=1, description="share of samples with air around the labels, as after skull stripping"
    )
    couch_and_mask: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of samples with a couch, cushion or mask painted into air that is all of one value",
    )
    coarsening: float = Field(
        default=0.5, gt=0, le=1, description="lowest simulated resolution, as a fraction of the image's own"
    )


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a changed window come from.

    Args:
        window: voxels (S, H, W).
        turn: (3, 3) matrix from offsets from the window's center to offsets in the case, in voxels; None for neither
            rotation nor scale.
        bends: for each axis, by how many voxels its planes are shifted along it before the turn.
        flips: axes to flip along.
        displacements: (3, a, b, c), by how many voxels of the case each place is moved along its axes, at nodes spread
            evenly over the window; in between they are interpolated. Only ``cut_label`` follows them.
    """

    window: tuple[int, int, int]
    turn: np.ndarray | None = None
    bends: tuple[np.ndarray, ...] = (0, 0, 0)
    flips: tuple[int, ...] = ()
    displacements: np.ndarray | None = None

    @property
    def is_mirror_image(self) -> bool:
        """Whether left and right are exchanged; two flips amount to a rotation by 180 degrees."""
        return len(self.flips) % 2 == 1

    def cut(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        """Cut the window from a case; outside the case it is 0, as padding is in inference.

        Args:
            image: (C, S, H, W) float32 of the case.
            label: (S, H, W) uint8.
            corner: index (S, H, W) of the unchanged window's first voxel; negative if it begins outside the case.

        Returns:
            Image (C, S, H, W) float32 and label (S, H, W) uint8 of the window's size.
        """
        if self.turn is None:
            cut = (torch.from_numpy(_cut(array, corner, self.window)) for array in (image, label))
        else:
            cut = self._resampled(image, label, corner)
        return tuple(torch.flip(part, [axis - 3 for axis in self.flips]) if self.flips else part for part in cut)

    def cut_label(self, label: np.ndarray, corner: np.ndarray) -> Tensor:
        """``cut`` of a label map alone, displacements included.

        Voxels are looked up by index, which takes a third of the time of ``grid_sample``.
        """
        if self.turn is None and self.displacements is None:
            cut = torch.from_numpy(_cut(label, corner, self.window))
        else:
            inside, flat = torch.ones(self.window, dtype=torch.bool), torch.zeros(self.window, dtype=torch.int32)
            for axis, size in enumerate(label.shape):
                place = self._places(axis, float(corner[axis])).round_().to(torch.int32)
                inside &= (place >= 0) & (place < size)
                flat.mul_(size).add_(place)
            values = torch.from_numpy(np.array(label).reshape(-1))
            cut = torch.where(inside, values[flat.masked_fill_(~inside, 0)], values.new_zeros(()))
        return torch.flip(cut, self.flips) if self.flips else cut

    def _places(self, axis: int, corner: float) -> Tensor:
        """(S, H, W): where along an axis of the case each voxel comes from."""
        turn = np.eye(3) if self.turn is None else self.turn
        middle = (np.array(self.window) - 1) / 2
        axes = [np.arange(n) - m + bend for n, m, bend in zip(self.window, middle, self.bends, strict=True)]
        s, h, w = (torch.from_numpy((own * turn[axis, k]).astype(np.float32)) for k, own in enumerate(axes))
        places = s[:, None, None] + (h[:, None] + (w + (corner + middle[axis])))
        if self.displacements is not None:
            nodes = torch.from_numpy(self.displacements[axis].astype(np.float32))
            across = [_linear(length, count) for length, count in zip(self.window, nodes.shape, strict=True)]
            places += torch.einsum("sa,hb,abc->shc", *across[:2], nodes) @ across[2].T
        return places

    def _resampled(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        middle = (np.array(self.window) - 1) / 2
        # (n, 3) each: what each axis of the window adds to a voxel's position in the case.
        axes = [np.arange(n) - m + bend for n, m, bend in zip(self.window, middle, self.bends, strict=True)]
        steps = [axis[:, None] * column for axis, column in zip(axes, self.turn.T, strict=True)]
        # Only the part of the case that the window shows is read.
        low = np.floor(corner + middle + sum(step.min(axis=0) for step in steps)).astype(int)
        high = np.ceil(corner + middle + sum(step.max(axis=0) for step in steps)).astype(int) + 1
        low, high = np.clip(low, 0, label.shape), np.clip(high, 0, label.shape)
        size = high - low
        if not (size > 0).all():
            return torch.zeros(len(image), *self.window), torch.zeros(self.window, dtype=torch.uint8)
        box = tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))
        # In the units of grid_sample: from -1 at the first voxel's edge to 1 at the last one's, W first.
        s, h, w = (torch.from_numpy((2 * step / size)[:, ::-1].astype(np.float32)) for step in steps)
        first = torch.from_numpy(((2 * (corner + middle - low) + 1) / size - 1)[::-1].astype(np.float32))
        grid = s[:, None, None] + (h[:, None] + (w + first))
        moved = _sample(torch.from_numpy(image[:, *box].copy()), grid, "bilinear")
        values = torch.from_numpy(label[box].astype(np.float32))
        return moved, _sample(values[None], grid, "nearest")[0].to(torch.uint8)


def draw_turn(degrees: float, scaling: float, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A random ``Warp.turn``: a rotation about each axis, and a scale along each, both in millimeters.

    Args:
        degrees: largest angle in either direction.
        scaling: largest fraction by which the window shows more or less.
        spacing: voxel size (S, H, W) in mm.
        random: source of all random numbers.
    """
    turn = np.diag(1 + random.uniform(-scaling, scaling, 3))
    for axis, angle in enumerate(np.deg2rad(random.uniform(-degrees, degrees, 3))):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[one, other], [one, other]] = np.cos(angle)
        rotation[one, other], rotation[other, one] = -np.sin(angle), np.sin(angle)
        turn = rotation @ turn
    return turn * np.array(spacing) / np.array(spacing)[:, None]


def draw_quarter_turns(spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A random ``Warp.turn`` by a multiple of 90 degrees about each axis.

    Args:
        spacing: mm (S, H, W) of a voxel.
        random: what is drawn from.
    """
    turn = np.eye(3)
    for axis, quarters in enumerate(random.integers(0, 4, 3)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        quarter = np.eye(3)
        quarter[[one, other]] = quarter[[other, one]]
        quarter[one, other] = -1
        turn = np.linalg.matrix_power(quarter, quarters) @ turn
    return turn * np.array(spacing) / np.array(spacing)[:, None]


def draw_bend(length: int, cells: int, strength: float, random: np.random.Generator) -> np.ndarray:
    """Random shifts (length,) along an axis, in voxels, that widen or narrow each of its cells by up to ``strength``.

    The middle of the axis stays in place.
    """
    edges = np.linspace(0, length, cells + 1)
    shifts = np.concatenate([[0], np.cumsum(random.uniform(-strength, strength, cells) * length / cells)])
    return np.interp(np.arange(length) + 0.5, edges, shifts - shifts[-1] / 2)


def _cut(array: np.ndarray, corner: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """The window of an array whose last axes are (S, H, W); 0 outside the array."""
    cut = np.zeros((*array.shape[:-3], *window), array.dtype)
    source = tuple(slice(max(c, 0), min(c + w, n)) for c, w, n in zip(corner, window, array.shape[-3:], strict=True))
    place = tuple(slice(part.start - c, part.stop - c) for part, c in zip(source, corner, strict=True))
    cut[(..., *place)] = array[(..., *source)]
    return cut


def _linear(length: int, nodes: int) -> Tensor:
    """(length, nodes): what each of the nodes, spread evenly over the length, weighs in linear interpolation."""
    place = torch.linspace(0, nodes - 1, length)
    return (1 - (place[:, None] - torch.arange(nodes)).abs()).clamp(min=0)


def _sample(array: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, S, H, W) of the grid's size."""
    return grid_sample(array[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
