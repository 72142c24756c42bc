"""Volumes for the engine's tests: an anatomy of smooth blobs, stored in any orientation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np

from conresnet.images import Grid, Reordering, Volume
from conresnet.images.geometry import ModelSpace

LETTERS = ("RL", "AP", "SI")
CODES = [
    "".join(LETTERS[axis][sign] for axis, sign in zip(order, signs, strict=True))
    for order in permutations(range(3))
    for signs in product((0, 1), repeat=3)
]


def grid(shape=(9, 11, 13), spacing=(1.0, 1.0, 1.0), origin=(-3.0, 5.0, 20.0), rotation=None) -> Grid:
    """An RAS grid; ``spacing`` and ``origin`` in the order R, A, S, ``rotation`` (3, 3) about the origin."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


ANISOTROPIC = grid((7, 11, 13), spacing=(0.8, 1.3, 3.1), origin=(-3.123456, 5.5, 20))


def random_volume(of: Grid, dtype=np.int16, seed=0) -> Volume:
    values = np.random.default_rng(seed).integers(0, 250, of.shape)
    return Volume(values.astype(dtype), of, "random")


def anatomy(of: Grid) -> np.ndarray:
    """float32 values of a smooth synthetic anatomy around the origin of patient space, sampled at a grid's voxels."""
    places = of.to_ras(np.moveaxis(np.indices(of.shape), 0, -1))
    blobs = [((0, 0, 0), 14, 100), ((10, -4, 6), 6, 80), ((-8, 9, -5), 5, 60)]
    return sum(
        height * np.exp(-((places - center) ** 2).sum(axis=-1) / (2 * width**2)) for center, width, height in blobs
    ).astype(np.float32)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    """Rotation matrix (3, 3) about one patient axis."""
    angle = np.radians(degrees)
    matrix = np.eye(3)
    a, b = [other for other in range(3) if other != axis]
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def every_reordering() -> Iterator[Reordering]:
    """All 48 ways to permute and flip the axes of an array."""
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield Reordering(axes, flips)


def stored(volume: Volume, way: Reordering) -> Volume:
    """The same image with its axes in another order or direction, as read from a file with that orientation."""
    return Volume(np.ascontiguousarray(way.view(volume.array)), way.grid(volume.grid), volume.name)


def model_array(volume: Volume, code="SAR", spacing=None, roi=None, fill=0.0) -> tuple[ModelSpace, np.ndarray]:
    """A volume resampled to a model's space, together with that space."""
    space = ModelSpace(volume.grid, code, spacing, roi)
    return space, space.to_model(volume, fill)


def from_model(space: ModelSpace, array: np.ndarray, into: np.ndarray) -> None:
    """Interpolate values (S, H, W) or (c, S, H, W) from a model's grid onto the reference grid, into ``into``."""
    into[...] = 0
    view = space.reference_view(into)
    for where, block in space.slabs_from_model(array if array.ndim == 4 else array[None]):
        view[(..., *where)] = block if array.ndim == 4 else block[0]
