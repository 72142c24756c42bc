"""The intensity steps that map each value to another: measured once on a channel, then applied to any block of it.

The first part measures: moments, percentiles and histograms, in blocks. NumPy's `percentile` and `histogram` would give
the same numbers, but from a float copy of all values (1 GB for a 512 x 512 x 512 CT), or with as many bins as the
largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

_BLOCK_VOXELS = 2**21
_DENSE_BINS = 2**24


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
        steps: checked ones (``conresnet.intensity.check_steps``), filters left out.
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
