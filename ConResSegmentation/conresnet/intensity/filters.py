"""The intensity steps that use a voxel's neighbors: Gaussian subtraction, and contrast-limited equalization (CLAHE).

CLAHE is that of Zuiderveld (Graphics Gems IV, 1994): tiles, a limit, and bilinear blending, vectorized per slice. It is
implemented here because SimpleITK's filter of a similar name does not limit contrast, and scikit-image, whose filter
does, is not a dependency of the engine; here, too, the histograms can leave out the air around a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import SimpleITK as sitk

from conresnet.intensity.fitting import ChannelValues, percentiles

BINS = 256
# What is cut off the peaks is spread over all bins, which may lift some above the limit again; after this many rounds,
# the rest does not matter.
_ROUNDS = 5


class SliceEqualizer:
    """Equalizes slices of one shape.

    A tile's curve maps each level to the share of the tile's voxels up to it, after the peaks of the histogram were cut
    at the limit and spread over all levels. This limits the slope of the curve, and so how much contrast a nearly even
    tile gains. A voxel uses the curves of the four tiles whose centers surround it, weighted by their distances.

    Args:
        shape: (H, W) of a slice.
        clip_limit: the largest share of a tile's voxels in one of its ``BINS`` bins.
        tiles: along H, and as many along W; some are empty where a slice has fewer voxels.
    """

    def __init__(self, shape: tuple[int, int], clip_limit: float, tiles: int):
        self._limit, self._tiles = clip_limit, tiles
        rows, columns = (np.arange(side) * tiles // side for side in shape)
        self._tile = rows[:, None] * tiles + columns
        places = [_neighbors(side, tiles) for side in shape]
        self._corners = [
            (row[:, None] * tiles + column, (row_weight[:, None] * column_weight).astype(np.float32))
            for row, row_weight in places[0]
            for column, column_weight in places[1]
        ]

    def __call__(self, levels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
        """(H, W) float32 from 0 to 1.

        Args:
            levels: (H, W) whole numbers from 0 to ``BINS`` - 1.
            counted: (H, W) bool, voxels that the histograms count; None is every voxel. The others are mapped by the
                same curves. A tile that counts none leaves levels unchanged.
        """
        keys = self._tile * BINS + levels
        chosen = keys.ravel() if counted is None else keys[counted]
        counts = np.bincount(chosen, minlength=self._tiles**2 * BINS).reshape(-1, BINS)
        curves = self._curves(counts).ravel()
        return sum(weight * curves[tile * BINS + levels] for tile, weight in self._corners)

    def _curves(self, counts: np.ndarray) -> np.ndarray:
        """(tiles, BINS) float32: the new value of each level in each tile."""
        sizes = counts.sum(axis=1, keepdims=True)
        shares = np.where(sizes > 0, counts / np.maximum(sizes, 1), 1 / BINS)
        for _ in range(_ROUNDS):
            kept = np.minimum(shares, self._limit)
            shares = kept + (shares - kept).sum(axis=1, keepdims=True) / BINS
        return shares.cumsum(axis=1).astype(np.float32)


def _neighbors(side: int, tiles: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each voxel along an axis, the tiles with the next center before and after it, each with its weight."""
    place = (np.arange(side) + 0.5) * tiles / side - 0.5
    before = np.floor(place).astype(int)
    share = place - before
    return [(before.clip(0, tiles - 1), 1 - share), ((before + 1).clip(0, tiles - 1), share)]


# Equalization levels span these percentiles of the channel, so that a few very bright voxels do not leave all others in
# a handful of bins.
RANGE_PERCENTILES = (0.5, 99.5)
# Percentiles this close, as a share of the whole range, differ by rounding only.
_NOTHING = 1e-5
# A value on the border of two levels must always get the same one, however it was rounded.
_HAIR = 1e-4
# The least that ITK's recursive filter accepts along an axis.
_FEWEST_VOXELS = 4


def filtered(
    filters: Sequence[Mapping],
    array: np.ndarray,
    spacing: Sequence[float],
    counted: np.ndarray | None = None,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """A channel after its filters.

    The whole array is in memory: 4 bytes per voxel for the result, and up to 12 more for ITK's copies meanwhile.

    The result does not change if a number is added to all voxels, nor, after ``equalize``, if they are multiplied by a
    positive number.

    Args:
        filters: checked steps, see `conresnet.intensity.split_steps`; at least one.
        array: (S, H, W) of any real type, cut to the ROI if there is one; not modified.
        spacing: mm along S, H, W.
        counted: bool of that shape, the foreground that the image covers; None, or none at all, is every voxel.
            Equalization counts only these and spans their values, so that the amount of air around a head does not
            change the head's contrast.
        check: called now and then; an exception that it raises ends the work.

    Returns:
        New (S, H, W) float32.
    """
    values = _centered(array)
    if counted is not None and not counted.any():
        counted = None
    for step in filters:
        check()
        match step["step"]:
            case "subtract_gaussian":
                _subtract_gaussian(values, step["sigma_mm"], spacing)
            case "equalize":
                _equalize(values, counted, step["clip_limit"], step["tiles"], check)
    check()
    return values


def _centered(array: np.ndarray) -> np.ndarray:
    """A float32 copy minus the middle of its range, which keeps differences that float32 would lose to an offset."""
    middle = (float(array.min()) + float(array.max())) / 2
    return np.subtract(array, middle, out=np.empty(array.shape, np.float32), dtype=np.float64)


def _subtract_gaussian(values: np.ndarray, sigma_mm: float, spacing: Sequence[float]) -> None:
    """Subtract the smoothed image from ``values`` in place; beyond an edge, the edge's values continue."""
    missing = [max(0, _FEWEST_VOXELS - size) for size in values.shape]
    image = sitk.GetImageFromArray(np.pad(values, [(0, count) for count in missing], mode="edge"))
    image.SetSpacing([float(mm) for mm in reversed(spacing)])
    # The view's memory belongs to the image, so the image is kept in a variable.
    smooth = sitk.SmoothingRecursiveGaussian(image, [float(sigma_mm)] * 3)
    values -= sitk.GetArrayViewFromImage(smooth)[tuple(slice(size) for size in values.shape)]


def _equalize(
    values: np.ndarray, counted: np.ndarray | None, clip_limit: float, tiles: int, check: Callable[[], None]
) -> None:
    """Equalize each slice in place; an array of one value becomes 0.

    All slices share one range of levels, so a slice that is nearly even, such as one above the head, stays so.
    """
    low, high = percentiles(ChannelValues(values, [counted]), RANGE_PERCENTILES)
    least, most = float(values.min()), float(values.max())
    if high - low <= _NOTHING * (most - least):
        low, high = least, most
    if high <= low:
        values[...] = 0
        return
    equalizer = SliceEqualizer(values.shape[1:], clip_limit, tiles)
    for index, plane in enumerate(values):
        check()
        levels = np.floor((plane.astype(np.float64) - low) * (BINS / (high - low)) + _HAIR)
        mask = None if counted is None else counted[index]
        values[index] = equalizer(levels.clip(0, BINS - 1).astype(np.intp), mask)
