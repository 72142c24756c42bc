"""Bring a case to the orientation and spacing of a model, and the model's results back onto the case's grid.

This is not left to a library. The axes of an image can be stored in 48 ways (6 orders, 8 flips). Whichever of them the
scanner or converter chose, the model must see the same voxels, to the last bit, or the same patient gets two results.
Resampling filters (ITK's, SciPy's, MONAI's) work from the first stored voxel in mm. That voxel is a different corner in
each storage, so positions differ by rounding, and a sample halfway between two voxels falls to either side. Here, axes
are permuted first, as a view and without interpolation; what remains is one map between array indices, computed from
the center of the image, which all 48 storages share. If the model's voxels are the image's own, nothing is copied or
interpolated at all. The tests compare all 48 storages bitwise.

For the same reason, axis-aligned maps, by far the most frequent, are sampled axis by axis here and not by ITK: a
library's filter does not promise that a flipped array gives the flipped result bitwise, nor that an even background
stays even. Only oblique maps go through ITK.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images import (
    Box,
    Grid,
    Reordering,
    Volume,
    affine_of,
    axis_directions,
    bounding_indices,
    box_corners,
    reordering,
    transformed,
    translation,
)
from conresnet.images.inputs import BoxROI

_ALIGNED_DEGREES = 0.5
_SAME_SPACING = 1e-3
_MOST_VOXELS = 2**31
_SLAB_OF_RESULTS, _SLAB_OF_SAMPLES = 16, 32
# The model sees an eighth of a window around an ROI on each side. Without it, voxels at the faces are guessed; more did
# not improve results on heads that brain-tissue was not trained on.
_MARGIN = 8
# Voxels by which a position may be off before interpolating is worth more than leaving the values alone.
_TOLERANCE = 0.01
_NOWHERE = np.zeros((2, 3), dtype=bool)
_ITK_TYPES = tuple(np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))


class ModelSpace:
    """Maps a case to the model's voxel grid, and results back to the image.

    Without ``spacing``, or with the image's own, voxels are only reordered: to the nearest axes where the image is
    oblique. An image along the patient's axes (to half a degree) but of another spacing is resampled along its own
    axes, around its own middle. An oblique one is resampled onto a grid along the patient's axes whose voxels are at
    multiples of the spacing, so that one anatomy gives the same voxels however obliquely it was stored.

    Args:
        reference: the grid of the case's first channel, which results are on.
        orientation: three letters in array order, such as "SAR".
        spacing: (S, H, W) mm, or None for the image's own.
        roi: the box in which to segment; limits the model's array to the box's bounding box.
        name: what messages call the image.
        window: (S, H, W) voxels that the model sees at a time, if it is to see the surroundings of the ROI: the array
            then has a margin around the box, and is no smaller than a window, as far as the image extends.

    Attributes:
        grid: the grid of the model's arrays (S, H, W), cut to the ROI or to its surroundings.
        exact: whether the model's voxels are the reference's own, merely reordered and cut.
        reorder: brings an array on ``reference`` into the model's axis order.
        index_map: (4, 4) index in the model's array to index in the reordered reference.

    Raises:
        UserError: "roi-outside", "roi-too-small" or "image-too-large".
    """

    def __init__(
        self,
        reference: Grid,
        orientation: str,
        spacing: Sequence[float] | None = None,
        roi: BoxROI | None = None,
        name: str = "the image",
        window: Sequence[int] | None = None,
    ):
        self.reference, self.orientation, self.roi = reference, orientation, roi
        self.reorder = reordering(reference, orientation)
        source = self.reorder.grid(reference)
        self.index_map, shape = _plan(source, axis_directions(orientation), spacing)
        self.exact = bool(np.array_equal(self.index_map, np.eye(4)))
        if roi is not None:
            start, shape = _cut_to(roi, source, self.index_map, shape, self.exact, window, name)
            self.index_map = self.index_map @ translation(start)
        self.grid = Grid.of_array(shape, source.array_affine @ self.index_map)
        if np.prod(shape, dtype=float) > _MOST_VOXELS:
            raise UserError("image-too-large", name=name, size=" x ".join(map(str, shape)))
        if roi is not None and not roi.contains(self.grid.array_affine, shape).any():
            raise UserError("roi-too-small", name=name, roi=str(roi))

    def part_of(self, whole: ModelSpace) -> Box:
        """The part of the array without an ROI that this space's array is."""
        start = np.rint((np.linalg.inv(whole.index_map) @ self.index_map)[:3, 3]).astype(int)
        return tuple(slice(int(a), int(a) + size) for a, size in zip(start, self.grid.shape, strict=True))

    def to_model(self, volume: Volume, fill: float = 0.0) -> np.ndarray:
        """A channel on the model's grid.

        Args:
            volume: on the reference grid or any other; from another grid, it is resampled.
            fill: value where the volume has no voxels, such as its background.

        Returns:
            (S, H, W): a view of the stored voxels if they are the model's own, else float32.
        """
        reorder, index_map = self._way_to(volume.grid)
        return sample(reorder.view(volume.array), index_map, self.grid.shape, fill, antialias=True)

    def _way_to(self, grid: Grid) -> tuple[Reordering, np.ndarray]:
        """The reordering of an array on ``grid`` to the model's axes, and (4, 4) the model's index to index in that."""
        if grid.matches(self.reference):
            return self.reorder, self.index_map
        reorder = reordering(grid, self.orientation)
        return reorder, np.round(np.linalg.inv(reorder.grid(grid).array_affine) @ self.grid.array_affine, 7)

    def covered(self, grid: Grid) -> np.ndarray | None:
        """(S, H, W) bool, model voxels that a channel on ``grid`` covers; None if it covers all."""
        corners = transformed(self.grid.corners(0), np.linalg.inv(grid.array_affine))
        if ((corners >= -0.5) & (corners <= np.array(grid.shape) - 0.5)).all():
            return None
        reorder, index_map = self._way_to(grid)
        mask = covered(index_map, reorder.grid(grid).shape, self.grid.shape)
        return None if mask.all() else mask

    def output_view(self, array: np.ndarray) -> np.ndarray:
        """The part of an array [..., k, j, i] on the reference grid that is made of the model's voxels, in its order.

        It is a writable view. Raises ValueError where the space is not ``exact``; use ``slabs_from_model`` then.
        """
        if not self.exact:
            raise ValueError("the model's voxels are not the image's own; use slabs_from_model")
        start = np.rint(self.index_map[:3, 3]).astype(int)
        cut = tuple(slice(a, a + size) for a, size in zip(start, self.grid.shape, strict=True))
        return self.reorder.view(array)[(..., *cut)]

    def reference_view(self, array: np.ndarray) -> np.ndarray:
        """An array [..., k, j, i] on the reference grid as a writable view in the model's axis order."""
        return self.reorder.view(array)

    def slabs_from_model(self, array: np.ndarray, first: Sequence[int] = (0, 0, 0)) -> Iterator[tuple[Box, np.ndarray]]:
        """Values on the model's grid interpolated linearly onto the reference grid, a slab of slices at a time.

        So several components are never in memory at full size at once. Where the image extends beyond the outermost
        voxel centers of the model's grid, their values continue to its faces: a model's voxels need not fit an image.

        Args:
            array: (c, S, H, W) on the model's grid, or a part of it.
            first: index on the model's grid of the part's first voxel.

        Yields:
            (where, block): ``block``, (c, ...) float32, belongs to ``reference_view(result)[where]``. Voxels that no
            block covers, outside the model's grid and the ROI, are 0.
        """
        source = self.reorder.grid(self.reference)
        part = Grid.of_array(array.shape[1:], self.grid.array_affine @ translation(first))
        # A grid that does not fit leaves less than a voxel next to its last centers. A grid that was cut to an ROI
        # inside the image leaves nothing of the ROI.
        ends = np.array([np.array(first) == 0, np.add(first, part.shape) == self.grid.shape])
        reach = np.where(ends, 1.0, 0.5)
        corners = part.to_ras(box_corners(-reach[0], np.array(part.shape) - 1 + reach[1]))
        low, high = bounding_indices(corners, source, outward=True)
        low, high = np.maximum(low, 0), np.minimum(high, np.array(source.shape) - 1)
        if (high < low).any():
            return
        to_array = np.linalg.inv(self.index_map @ translation(first))
        # Slabs along the axis the result is stored slice by slice in.
        axis = self.reorder.axes.index(0)
        for begin in range(low[axis], high[axis] + 1, _SLAB_OF_RESULTS):
            start, stop = low.copy(), high + 1
            start[axis], stop[axis] = begin, min(begin + _SLAB_OF_RESULTS, high[axis] + 1)
            slab_map, shape = to_array @ translation(start), tuple(int(size) for size in stop - start)
            block = np.stack([sample(component, slab_map, shape, continued=ends) for component in array])
            block = block.astype(np.float32, copy=False)
            if self.roi is not None:
                block *= self.roi.contains(source.array_affine @ translation(start), shape)
            yield tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)), block


def _plan(source: Grid, directions: np.ndarray, spacing: Sequence[float] | None) -> tuple[np.ndarray, tuple]:
    """(index in the model's array to index in the reordered image, the model's shape), before any ROI."""
    if spacing is None:
        return np.eye(4), source.shape
    wanted = np.array(spacing, dtype=np.float64)
    own = np.round(source.spacing[::-1], 6)
    same = np.abs(own - wanted) <= _SAME_SPACING
    cosines = (source.direction[:, ::-1] * directions).sum(axis=0)
    if (cosines >= np.cos(np.radians(_ALIGNED_DEGREES))).all():
        step = np.where(same, 1.0, wanted / own)
        shape = np.where(same, source.shape, np.maximum(1, np.rint(np.array(source.shape) / step)))
        index_map = np.diag([*step, 1.0])
        index_map[:3, 3] = (np.array(source.shape) - 1 - (shape - 1) * step) / 2
        return index_map, tuple(int(size) for size in shape)
    grid = Grid.of_array((1, 1, 1), affine_of(directions * wanted, np.zeros(3)))
    low, high = bounding_indices(source.corners(), grid, outward=False)
    high = np.maximum(low, high)
    affine = affine_of(directions * wanted, directions @ (low * wanted))
    # The center is the same in every storage; the origin is whichever corner the file begins with.
    middle = np.round(source.center, 6)
    linear = np.round(source.array_affine[:3, :3], 9)
    centered = affine_of(linear, middle - linear @ ((np.array(source.shape) - 1) / 2))
    return np.linalg.inv(centered) @ affine, tuple(int(size) for size in high - low + 1)


def _cut_to(
    roi: BoxROI,
    source: Grid,
    index_map: np.ndarray,
    shape: tuple[int, ...],
    exact: bool,
    window: Sequence[int] | None,
    name: str,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Start and shape of the model voxels in the ROI's bounding box; those that cover it where they are resampled.

    With a ``window``, also the voxels around it, see ``ModelSpace``.
    """
    grid = Grid.of_array(shape, source.array_affine @ index_map)
    inner_low, inner_high = bounding_indices(roi.corners(), grid, outward=False)
    if (inner_low > np.array(shape) - 1).any() or (inner_high < 0).any():
        raise UserError("roi-outside", name=name, roi=str(roi))
    if (inner_high < inner_low).any():
        raise UserError("roi-too-small", name=name, roi=str(roi))
    low, high = (inner_low, inner_high) if exact else bounding_indices(roi.corners(), grid, outward=True)
    low, high = np.maximum(low, 0), np.minimum(high, np.array(shape) - 1)
    if window is not None:
        margin = np.array(window) // _MARGIN
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, np.array(shape) - 1)
        low, high = _filling_a_window(low, high, np.array(shape), np.minimum(window, shape))
    return low, tuple(int(size) for size in high - low + 1)


def _filling_a_window(
    low: np.ndarray, high: np.ndarray, shape: np.ndarray, window: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel of a box at least as large as the window, around the given one and inside the image."""
    lacking = np.maximum(window - (high - low + 1), 0)
    low = np.minimum(np.maximum(low - lacking // 2, 0), shape - np.maximum(window, high - low + 1))
    return low, np.maximum(high, low + window - 1)


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
    if _moves_at_most(index_map - translation(offset), shape, _TOLERANCE):
        return _cut(array, offset.astype(int), shape, fill, continued)
    if _is_along_axes(index_map, shape):
        return _sample_along_axes(array, index_map, shape, fill, antialias, continued)
    result = np.empty(shape, dtype=np.float32)
    for first in range(0, shape[0], _SLAB_OF_SAMPLES):
        slab = result[first : first + _SLAB_OF_SAMPLES]
        slab[...] = _sample_slab(array, index_map @ translation((first, 0, 0)), slab.shape, fill, antialias, continued)
    return result


def covered(index_map: np.ndarray, covering: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Which voxels of a grid have their centers within the outer faces of an array's voxels: bool of ``shape``.

    ``index_map`` is as for ``sample``, which gives ``fill`` elsewhere; ``covering`` is the shape of the array.
    """
    tolerance = _TOLERANCE if _is_along_axes(index_map, shape) else 0
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
    return _moves_at_most(off_diagonal, shape, _TOLERANCE)


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
    array: np.ndarray, index_map: np.ndarray, shape: Sequence[int], fill: float, antialias: bool, continued: np.ndarray
) -> np.ndarray:
    """One axis after the other: those that lose most voxels first, which keeps the intermediate arrays small."""
    outside, parts, wanted = [], [slice(None)] * 3, {}
    for axis in sorted(range(3), key=lambda axis: (shape[axis] / array.shape[axis], axis)):
        step, offset, count = index_map[axis, axis], index_map[axis, 3], array.shape[axis]
        positions = np.round(offset + step * np.arange(shape[axis]), 6)
        before, behind = positions < -0.5 - _TOLERANCE, positions > count - 0.5 + _TOLERANCE
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
    array: np.ndarray, index_map: np.ndarray, shape: Sequence[int], fill: float, antialias: bool, continued: np.ndarray
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
