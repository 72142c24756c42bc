"""Intensity steps: what is done to a channel's values before the network sees them, as a model package describes it.

`conresnet.package` has the arguments of each step, and docs/model-package.md an example of each. Filters use a
voxel's neighbors and come first:
    subtract_gaussian: the image minus a smoothed copy, which leaves local contrast
    equalize: contrast-limited adaptive histogram equalization (CLAHE) of each slice of the model's S axis, to 0 to 1

The others are functions of one voxel's value:
    clip: to two numbers; clip_percentiles: to percentiles of the foreground; rescale: from two numbers to two others
    z_score: to mean 0 and deviation 1 of the foreground or all voxels; outside the foreground to 0, or like the others
    z_score_slices: the same for each slice of the S axis, whose deviation is at least 5% of the whole channel's
    clip_sparse_tail: to at most what `sparse_tail` finds; the paper authors' step for BraTS

VoxResNet (Chen et al., section 3.1) takes two channels per image: the image, every slice of which is normalized to zero
mean and unit variance, and a copy that is normalized the same way after subtract_gaussian and equalize.

Filters compute a new float32 array of a whole channel. The other steps are measured once on a channel (cut to the ROI)
and then applied to any block of it, so that without filters no float copy of a volume is needed. Moments, percentiles
and histograms are computed in blocks, too: NumPy's functions need such a copy (1 GB for a 512 x 512 x 512 CT), or as
many bins as the largest value.

CLAHE follows Zuiderveld (Graphics Gems IV, 1994): tiles, a limit, and bilinear blending, vectorized per slice.
SimpleITK's filter of a similar name does not limit contrast, and scikit-image, whose filter does, is not a dependency
of the engine; here, too, the histograms can leave out the air around a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import SimpleITK as sitk

from conresnet.package import FILTERS

_BLOCK_VOXELS = 2**21
_DENSE_BINS = 2**24


def split_steps(steps: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Split checked steps into the filters and the other steps."""
    filters = [step for step in steps if step["step"] in FILTERS]
    return filters, list(steps[len(filters) :])


def ignores_offset(steps: Sequence[Mapping]) -> bool:
    """Whether the result stays the same if a number is added to all voxels."""
    first = next((step["step"] for step in steps if step["step"] != "clip_percentiles"), "")
    return first in (*FILTERS, "z_score", "z_score_slices")


class ChannelValues:
    """The values of a channel's voxels inside some masks, as float64 blocks in array order.

    Results depend only on the values in array order, not on their order in memory.

    Args:
        array: (S, H, W) of any real type.
        masks: bool of that shape; a voxel must be inside all of them; None is every voxel.
        change: (block, index of its first slice) to the values to measure, of the block's shape.
    """

    def __init__(
        self,
        array: np.ndarray,
        masks: Sequence[np.ndarray | None] = (),
        change: Callable[[np.ndarray, int], np.ndarray] = lambda block, first: block,
    ):
        self._array, self._change = array, change
        self._masks = [mask for mask in masks if mask is not None]
        self.count = int(np.sum([chosen.sum() for _, chosen in self._chosen()])) if self._masks else array.size

    def _chosen(self, rows: int | None = None) -> Iterator[tuple[slice, np.ndarray | None]]:
        """Slices of the array, ``rows`` at a time, and which of their voxels are measured (None: all)."""
        rows = rows or max(1, _BLOCK_VOXELS // max(1, self._array[:1].size))
        for first in range(0, len(self._array), rows):
            where = slice(first, first + rows)
            yield where, np.logical_and.reduce([mask[where] for mask in self._masks]) if self._masks else None

    def _values(self, rows: int | None = None) -> Iterator[np.ndarray]:
        for where, chosen in self._chosen(rows):
            if chosen is not None and not chosen.any():
                yield np.empty(0)
                continue
            block = self._change(np.ascontiguousarray(self._array[where]), where.start)
            yield (block.ravel() if chosen is None else block[chosen]).astype(np.float64, copy=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (block for block in self._values() if block.size)

    def slices(self) -> Iterator[np.ndarray]:
        """The values of each slice, one after another; empty for a slice outside the masks."""
        return self._values(1)


def moments(values: ChannelValues) -> tuple[float, float]:
    """Mean and standard deviation (population); 1 instead of 0 if all values are equal."""
    mean = sum(float(block.sum()) for block in values) / values.count
    variance = sum(float(np.square(block - mean).sum()) for block in values) / values.count
    return mean, float(np.sqrt(variance)) or 1.0


def slice_moments(values: ChannelValues) -> np.ndarray:
    """(S, 3): count, mean and standard deviation (population) of each slice; zeros for a slice without values."""
    return np.array([(v.size, v.mean(), v.std()) if v.size else (0.0, 0.0, 0.0) for v in values.slices()])


def percentiles(values: ChannelValues, percentages: Sequence[float]) -> list[float]:
    """Percentiles as numpy's default gives them, of float32 values, exactly, without holding or sorting all of them.

    The bits of a float32, with those of negative numbers inverted, sort like the number itself. One histogram of the
    upper 16 bits finds the group of each wanted rank, another of that group's lower bits finds the value.
    """
    positions = [percentage / 100 * (values.count - 1) for percentage in percentages]
    ranks = sorted({int(f(position)) for position in positions for f in (np.floor, np.ceil)})
    groups = np.cumsum(_histogram(values, lambda keys: keys >> 16))
    found = {}
    for group in {int(np.searchsorted(groups, rank, side="right")) for rank in ranks}:
        before = int(groups[group - 1]) if group else 0
        inner = before + np.cumsum(_histogram(values, lambda keys, group=group: keys[keys >> 16 == group] & 0xFFFF))
        for rank in ranks:
            if before <= rank < groups[group]:
                found[rank] = _value_of((group << 16) | int(np.searchsorted(inner, rank, side="right")))
    results = []
    for position in positions:
        low, high = found[int(np.floor(position))], found[int(np.ceil(position))]
        results.append(float(low + (high - low) * (position - np.floor(position))))
    return results


def _histogram(values: ChannelValues, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    counts = np.zeros(2**16, dtype=np.int64)
    for block in values:
        bits = block.astype(np.float32).view(np.uint32)
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        counts += np.bincount(part(keys), minlength=2**16)
    return counts


def _value_of(key: int) -> float:
    """The float32 number that has this key in ``_histogram``."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def sparse_tail(values: ChannelValues, min_count: int) -> float | None:
    """Index of the last of int(maximum) equal bins from minimum to maximum with ``min_count`` values, or None."""
    low = min((float(block.min()) for block in values), default=0.0)
    high = max((float(block.max()) for block in values), default=0.0)
    bins = int(high)
    if bins < 1 or high <= low:
        return None
    width = (high - low) / bins
    # If there are more bins than int64 can number, float64 numbers them, with gaps of many bins.
    kind = np.int64 if bins < 2**62 else np.float64
    last = kind(bins - 1)
    dense = np.zeros(bins, dtype=np.int64) if bins <= _DENSE_BINS else None
    sparse = []
    for block in values:
        index = np.minimum(np.floor((block - low) * (bins / (high - low))).astype(kind), last)
        # A value on an edge belongs to the bin above, even if the division rounded down.
        index -= block < low + index * width
        index += (block >= low + (index + 1) * width) & (index < last)
        if dense is None:
            sparse.append(np.unique(index, return_counts=True))
        else:
            dense += np.bincount(index, minlength=bins)
    if dense is None:
        indices, inverse = np.unique(np.concatenate([index for index, _ in sparse]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([count for _, count in sparse]))
        full = indices[counts >= min_count]
    else:
        full = np.flatnonzero(dense >= min_count)
    return float(full[-1]) if full.size else None


# A slice's deviation is at least this share of the channel's, so that an almost empty slice, such as one with two
# specks of noise above the head, is not amplified.
_LEAST_SHARE = 0.05


def measure(
    steps: Sequence[Mapping], array: np.ndarray, foreground: np.ndarray | None = None, inside: np.ndarray | None = None
) -> list[dict]:
    """Turn steps into arithmetic with fixed numbers.

    Each step is measured on the values that the steps before it return, in float64 and in blocks. Results depend only
    on the values in array order, not on their order in memory.

    Args:
        steps: checked ones (`conresnet.package`), filters left out.
        array: (S, H, W) of any real type: the whole channel, cut to the ROI if there is one.
        foreground: bool of that shape, what "foreground" means; None is every voxel.
        inside: bool of that shape, voxels that the image covers at all; None is every voxel.

    Returns:
        The argument ``fitted`` of `apply`; JSON-able.
    """
    fitted: list[dict] = []
    for step in steps:
        everything = _values(array, [inside], fitted, foreground)
        within = _values(array, [inside, foreground], fitted, foreground)
        if not within.count:
            within = everything
        over = within if step.get("over") == "foreground" else everything
        match step["step"]:
            case "clip":
                fitted.append({"step": "clip", "low": float(step["low"]), "high": float(step["high"])})
            case "clip_percentiles":
                low, high = percentiles(within, (step["low"], step["high"]))
                fitted.append({"step": "clip", "low": low, "high": high})
            case "z_score":
                mean, deviation = moments(over)
                fitted.append({"step": "z_score", "mean": mean, "std": deviation, "outside": step["outside"]})
            case "z_score_slices":
                means, stds = _slice_scales(over, everything)
                fitted.append({"step": "z_score_slices", "means": means, "stds": stds, "outside": step["outside"]})
            case "rescale":
                (a, b), (c, d) = step["from"], step["to"]
                scale = (d - c) / (b - a)
                fitted.append({"step": "rescale", "scale": float(scale), "shift": float(c - a * scale)})
            case "clip_sparse_tail":
                limit = sparse_tail(everything, step["min_count"])
                if limit is not None:
                    fitted.append({"step": "clip", "low": None, "high": limit})
    return fitted


def of_slices(fitted: Sequence[Mapping], slices: slice) -> list[dict]:
    """The result of `measure` for a channel, limited to these slices of it."""
    tables = ("means", "stds")
    return [{key: value[slices] if key in tables else value for key, value in step.items()} for step in fitted]


def apply(
    fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None = None, first_slice: int = 0
) -> np.ndarray:
    """Apply the arithmetic of `measure` to a block of the channel: a new float32 array, in C order.

    Args:
        block: (s, h, w), any part of the channel, of any real type; not modified.
        foreground: bool of the block's shape; None is every voxel.
        first_slice: the index of the block's first slice in the channel.
    """
    return _arithmetic(fitted, block, foreground, first_slice).astype(np.float32, copy=False)


def _arithmetic(
    fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None, first_slice: int
) -> np.ndarray:
    # float32 represents small integers exactly; float64 and large integers would lose differences between voxels.
    exact_in_float32 = np.can_cast(block.dtype, np.float32, "safe")
    values = np.array(block, dtype=np.float32 if exact_in_float32 else np.float64, order="C")
    for step in fitted:
        match step["step"]:
            case "clip":
                np.clip(values, step["low"], step["high"], out=values)
            case "z_score":
                values -= step["mean"]
                values /= step["std"]
            case "z_score_slices":
                slices = slice(first_slice, first_slice + len(values))
                values -= np.array(step["means"][slices], values.dtype)[:, None, None]
                values /= np.array(step["stds"][slices], values.dtype)[:, None, None]
            case "rescale":
                values *= step["scale"]
                values += step["shift"]
        if step.get("outside") == "zero" and foreground is not None:
            values *= foreground
    return values


def _values(
    array: np.ndarray, masks: Sequence[np.ndarray | None], fitted: Sequence[Mapping], foreground: np.ndarray | None
) -> ChannelValues:
    """The values of ``array`` inside ``masks`` after the steps so far."""
    so_far = tuple(fitted)

    def change(block: np.ndarray, first: int) -> np.ndarray:
        mask = None if foreground is None else foreground[first : first + len(block)]
        return _arithmetic(so_far, block, mask, first)

    return ChannelValues(array, masks, change)


def _slice_scales(over: ChannelValues, everything: ChannelValues) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each slice, the latter at least ``_LEAST_SHARE`` of the channel's.

    A slice without foreground is measured as a whole; one that the image does not cover gets the channel's values.
    """
    table = slice_moments(over)
    without = table[:, 0] == 0
    if without.any():
        table[without] = slice_moments(everything)[without]
    counts, means, deviations = table.T
    mean = (counts * means).sum() / counts.sum()
    spread = np.sqrt((counts * (deviations**2 + (means - mean) ** 2)).sum() / counts.sum())
    means[counts == 0], deviations[counts == 0] = mean, spread
    return means.tolist(), np.maximum(deviations, _LEAST_SHARE * spread or 1.0).tolist()


BINS = 256
# Counts above the limit are spread over all bins, which may lift some bins above the limit again. After this many
# rounds, the rest does not matter.
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
# The fewest voxels that ITK's recursive filter accepts along an axis.
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
        filters: checked steps, see `split_steps`; at least one.
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
