"""The values of one voxel grid on another, by the affine map between their array indices.

Indices instead of mm make the result independent of how an image was stored: two storages of one image give the same
map to the last bit, while their origins in mm differ by rounding. For the same reason axis-aligned maps, which are by
far the most frequent, are sampled axis by axis here and not by ITK: a library's filter does not promise that a flipped
array gives the flipped result bitwise, nor that an even background stays even. See `conresnet.images.geometry`. Only
oblique maps go through ITK.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import SimpleITK as sitk

from conresnet.images.grid import affine_of, box_corners, transformed

#: Voxels by which a position may be off before interpolating is worth more than leaving the values alone.
TOLERANCE = 0.01

_SLAB = 32
_NOWHERE = np.zeros((2, 3), dtype=bool)
_ITK_TYPES = tuple(np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))


def translation(offset: Sequence[float]) -> np.ndarray:
    """(4, 4) matrix that adds ``offset``."""
    return affine_of(np.eye(3), offset)


def sample(
    array: np.ndarray,
    index_map: np.ndarray,
    shape: Sequence[int],
    fill: float = 0.0,
    antialias: bool = False,
    continued: np.ndarray = _NOWHERE,
) -> np.ndarray:
    """The values of ``array`` on another grid.

    Args:
        array: (S, H, W) of any real type.
        index_map: (4, 4) index on the wanted grid (s, h, w, 1) to index in ``array``.
        shape: of the wanted grid.
        fill: value beyond the outer faces of ``array``'s voxels.
        antialias: average over all that a voxel of the wanted grid covers, if that is more than a voxel of ``array``.
        continued: (2, 3) bool, at the first and the last voxel along each axis: whether the edge's values continue
            beyond it instead of ``fill``; for at least one voxel.

    Returns:
        Array of ``shape``: a view of ``array`` if the grids coincide and the wanted one is inside, a copy of its type
        if it extends beyond, else linearly interpolated float32.
    """
    shape = tuple(int(size) for size in shape)
    offset = np.rint(index_map[:3, 3])
    if _moves_at_most(index_map - translation(offset), shape, TOLERANCE):
        return _cut(array, offset.astype(int), shape, fill, continued)
    if _is_along_axes(index_map, shape):
        return _sample_along_axes(array, index_map, shape, fill, antialias, continued)
    result = np.empty(shape, dtype=np.float32)
    for first in range(0, shape[0], _SLAB):
        slab = result[first : first + _SLAB]
        slab[...] = _sample_slab(array, index_map @ translation((first, 0, 0)), slab.shape, fill, antialias, continued)
    return result


def covered(index_map: np.ndarray, covering: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Which voxels of a grid have their centers within the outer faces of an array's voxels: bool of ``shape``.

    ``index_map`` is as for ``sample``, which gives ``fill`` elsewhere; ``covering`` is the shape of the array.
    """
    tolerance = TOLERANCE if _is_along_axes(index_map, shape) else 0
    result = np.ones(shape, dtype=bool)
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    for count, (along, down, across, offset) in zip(covering, index_map[:3], strict=True):
        plane = down * rows + across * columns + offset
        for index, inside in enumerate(result):
            inside &= plane >= -0.5 - tolerance - along * index
            inside &= plane <= count - 0.5 + tolerance - along * index
    return result


def _is_along_axes(index_map: np.ndarray, shape: Sequence[int]) -> bool:
    off_diagonal = index_map.copy()
    off_diagonal[[0, 1, 2, 3], [0, 1, 2, 3]] = 0
    off_diagonal[:3, 3] = 0
    return _moves_at_most(off_diagonal, shape, TOLERANCE)


def _moves_at_most(difference: np.ndarray, shape: Sequence[int], tolerance: float) -> bool:
    corners = box_corners(np.zeros(3), np.array(shape) - 1.0)
    return bool(np.abs(transformed(corners, difference)).max() <= tolerance)


def _cut(
    array: np.ndarray, offset: np.ndarray, shape: tuple[int, ...], fill: float, continued: np.ndarray
) -> np.ndarray:
    """``array[offset:offset + shape]``, with ``fill`` or the edge's values outside."""
    low = np.clip(offset, 0, array.shape)
    high = np.clip(offset + shape, low, array.shape)
    inside = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if inside.shape == shape:
        return inside
    dtype = array.dtype
    if np.array(fill).astype(dtype) != fill:
        dtype = np.dtype(np.float32)
    result = np.full(shape, fill, dtype=dtype)
    low, high = low - offset, high - offset
    result[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside
    if inside.size:
        for axis in range(3):
            lines = np.moveaxis(result, axis, 0)
            if continued[0, axis]:
                lines[: low[axis]] = lines[low[axis]]
            if continued[1, axis]:
                lines[high[axis] :] = lines[high[axis] - 1]
    return result


def _sample_along_axes(
    array: np.ndarray,
    index_map: np.ndarray,
    shape: tuple[int, ...],
    fill: float,
    antialias: bool,
    continued: np.ndarray,
) -> np.ndarray:
    """One axis after the other: those that lose most voxels first, which keeps the intermediate arrays small."""
    outside, parts, wanted = [], [slice(None)] * 3, {}
    for axis in sorted(range(3), key=lambda axis: (shape[axis] / array.shape[axis], axis)):
        step, offset, count = index_map[axis, axis], index_map[axis, 3], array.shape[axis]
        positions = np.round(offset + step * np.arange(shape[axis]), 6)
        before, behind = positions < -0.5 - TOLERANCE, positions > count - 0.5 + TOLERANCE
        filled = before & ~continued[0, axis] | behind & ~continued[1, axis]
        outside.append((axis, filled))
        positions, width = np.clip(positions, 0, count - 1), max(1.0, abs(step)) if antialias else 1.0
        # Not a single one of a wider step, which averages; nor what is filled below, which must be no view.
        is_cut = not filled.any() and (len(positions) > 1 or width == 1 or count == 1)
        if is_cut and np.array_equal(positions, np.rint(positions[0]) + np.arange(len(positions))):
            parts[axis] = slice(int(positions[0]), int(positions[-1]) + 1)
            continue
        first = max(int(positions.min() - width), 0)
        parts[axis] = slice(first, int(np.ceil(positions.max() + width)) + 1)
        wanted[axis] = positions - first, width
    # Only the part that positions touch is converted and averaged.
    array = array[tuple(parts)]
    for axis, (positions, width) in wanted.items():
        array = resample_axis(array, axis, positions, width)
    result = array.astype(np.float32, copy=False)
    for axis, flags in outside:
        if flags.any():
            np.moveaxis(result, axis, 0)[flags] = fill
    return result


def resample_axis(array: np.ndarray, axis: int, positions: np.ndarray, width: float = 1.0) -> np.ndarray:
    """float32 values at ``positions`` (in voxels) along one axis, edge values continuing outside.

    ``width`` is the half-width in voxels of the triangle that weighs the neighbors; 1 is linear interpolation, more
    averages.
    """
    indices, weights = _taps(np.clip(positions, 0, array.shape[axis] - 1), array.shape[axis], width)
    shape = list(array.shape)
    shape[axis] = len(positions)
    result = np.empty(shape, dtype=np.float32)
    if axis == 0:
        for row in range(len(positions)):
            planes = (array[index].astype(np.float32) for index in indices[:, row])
            result[row] = _weighted(planes, weights[:, row])
        return result
    across = weights[:, :, None] if axis == 1 else weights[:, None, :]
    for plane in range(len(array)):
        source = array[plane].astype(np.float32, order="C")
        result[plane] = _weighted((source.take(index, axis=axis - 1) for index in indices), across)
    return result


def _taps(positions: np.ndarray, count: int, width: float) -> tuple[np.ndarray, np.ndarray]:
    """(taps, positions) neighbors of each position and their float32 weights, which add up to 1, heaviest first."""
    first = np.ceil(positions - width).astype(int)
    indices = first + np.arange(int(np.ceil(2 * width)) + 1)[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(indices - positions) / width)
    weights[(indices < 0) | (indices >= count)] = 0
    weights = (weights / weights.sum(axis=0)).astype(np.float32)
    order = np.argsort(-weights, axis=0, kind="stable")
    indices, weights = (np.take_along_axis(values, order, axis=0) for values in (indices, weights))
    used = weights.any(axis=1)
    return np.clip(indices, 0, count - 1)[used], weights[used]


def _weighted(neighbors: Iterator[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The weighted mean of neighbors, by differences from the heaviest: if all are equal, it is exactly that value.

    Background must keep its value, or rounding would turn it into foreground.
    """
    base = next(neighbors)
    result = base.copy()
    for neighbor, weight in zip(neighbors, weights[1:], strict=True):
        neighbor -= base
        neighbor *= weight
        result += neighbor
    return result


def _sample_slab(
    array: np.ndarray,
    index_map: np.ndarray,
    shape: tuple[int, ...],
    fill: float,
    antialias: bool,
    continued: np.ndarray,
) -> np.ndarray:
    """A slab of an oblique grid, with SimpleITK, from only the part of ``array`` that the slab touches."""
    widths = np.linalg.norm(index_map[:3, :3], axis=1)
    # Linear interpolation already averages over one voxel; variances of blurs add.
    widths = np.sqrt(np.maximum(widths**2 - 1, 0)) if antialias else np.zeros(3)
    touched = transformed(box_corners(np.zeros(3), np.array(shape) - 1.0), index_map)
    margin = 2 + np.ceil(widths)
    low = np.maximum(np.floor(touched.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(touched.max(axis=0) + margin) + 1, array.shape).astype(int)
    if (high <= low).any():
        return np.full(shape, fill, dtype=np.float32)
    part = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    for axis in range(3):
        if widths[axis] > 1:
            part = resample_axis(part, axis, np.arange(part.shape[axis], dtype=float), widths[axis])
    # ITK continues an edge's values for half a voxel; with one more voxel, for one and a half.
    added = continued & [low == 0, high == array.shape]
    if added.any():
        part = np.pad(part, added.T.astype(int), mode="edge")
        low = low - added[0]
    if part.dtype not in _ITK_TYPES:
        part = part.astype(np.float32)
    image = sitk.GetImageFromArray(part)
    # ITK counts axes in reverse order: x is the last array axis.
    matrix, offset = index_map[:3, :3][::-1, ::-1], (index_map[:3, 3] - low)[::-1]
    transform = sitk.AffineTransform(matrix.ravel().tolist(), offset.tolist())
    resampled = sitk.Resample(image, shape[::-1], transform, defaultPixelValue=fill, outputPixelType=sitk.sitkFloat32)
    return sitk.GetArrayFromImage(resampled)
