"""Intensity steps: what a model package says is done to a channel's values before the network sees them.

Steps are data. ``measure`` looks at the whole channel (cut to the ROI) once and turns them into arithmetic with fixed
numbers; ``apply`` then does that arithmetic on any block of it, so that no float copy of a whole volume is needed.

The steps:
    ``{"step": "clip", "low": -100, "high": 240}``
    ``{"step": "clip_percentiles", "low": 0.5, "high": 99.5}`` of the foreground
    ``{"step": "z_score", "over": "foreground" | "all", "outside": "zero" | "keep"}``; voxels outside the foreground
        become 0, or are shifted and scaled like the others
    ``{"step": "rescale", "from": [-100, 240], "to": [0, 1]}``
    ``{"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50}``; the paper authors' step for BraTS: of a
        histogram of int(maximum) bins, values above the last bin with ``min_count`` voxels become that bin's index
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real

import numpy as np

from conresnet.errors import UserError

_BLOCK_VOXELS = 2**21
_DENSE_BINS = 2**24

_KEYS = {
    "clip": {"low", "high"},
    "clip_percentiles": {"low", "high"},
    "z_score": {"over", "outside"},
    "rescale": {"from", "to"},
    "clip_sparse_tail": {"bins", "min_count"},
}


def check_steps(steps: Sequence[Mapping]) -> list[dict]:
    """Return the steps as a list of dicts. Raises UserError("bad-intensity") for an unknown or wrong one."""
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise _bad(steps, "the intensity steps are not a list")
    for step in steps:
        name = step.get("step") if isinstance(step, Mapping) else None
        if name not in _KEYS:
            raise _bad(step, f"a step is one of {', '.join(_KEYS)}")
        keys = set(step) - {"step"}
        if keys != _KEYS[name]:
            raise _bad(step, f"{name} takes {', '.join(sorted(_KEYS[name]))}")
        if name == "clip" and not _increasing(step["low"], step["high"]):
            raise _bad(step, "low is not below high")
        if name == "clip_percentiles" and not _increasing(0, step["low"], step["high"], 100, strict=False):
            raise _bad(step, "low and high are not percentages, low below high")
        if name == "z_score" and (step["over"] not in ("foreground", "all") or step["outside"] not in ("zero", "keep")):
            raise _bad(step, '"over" is "foreground" or "all", "outside" is "zero" or "keep"')
        if name == "rescale" and not all(_pair(step[key]) for key in ("from", "to")):
            raise _bad(step, '"from" and "to" are each two different numbers')
        if name == "clip_sparse_tail" and not (
            step["bins"] == "int_max" and isinstance(step["min_count"], int) and step["min_count"] > 0
        ):
            raise _bad(step, '"bins" is "int_max" and "min_count" a positive whole number')
    return [dict(step) for step in steps]


def measure(
    steps: Sequence[Mapping], array: np.ndarray, foreground: np.ndarray | None = None, inside: np.ndarray | None = None
) -> list[dict]:
    """Turn steps into arithmetic with fixed numbers.

    Each step is measured on the values that the steps before it leave. Measured in float64, in blocks; the answer
    depends on the values in array order alone, not on how they lie in memory.

    Args:
        array: (S, H, W) of any real type: the whole channel, cut to the ROI where there is one.
        foreground: bool of that shape, what "foreground" means; None is every voxel.
        inside: bool of that shape, voxels that the image covers at all; None is every voxel.

    Returns:
        What ``apply`` takes; JSON-able.
    """
    fitted: list[dict] = []
    for step in check_steps(steps):
        everything = _Values(array, inside, None, fitted)
        within = _Values(array, inside, foreground, fitted)
        if not within.count:
            within = everything
        match step["step"]:
            case "clip":
                fitted.append({"step": "clip", "low": float(step["low"]), "high": float(step["high"])})
            case "clip_percentiles":
                low, high = _percentiles(within, (step["low"], step["high"]))
                fitted.append({"step": "clip", "low": low, "high": high})
            case "z_score":
                mean, deviation = _moments(within if step["over"] == "foreground" else everything)
                fitted.append({"step": "z_score", "mean": mean, "std": deviation, "outside": step["outside"]})
            case "rescale":
                (a, b), (c, d) = step["from"], step["to"]
                scale = (d - c) / (b - a)
                fitted.append({"step": "rescale", "scale": float(scale), "shift": float(c - a * scale)})
            case "clip_sparse_tail":
                limit = _sparse_tail(everything, step["min_count"])
                if limit is not None:
                    fitted.append({"step": "clip", "low": None, "high": limit})
    return fitted


def apply(fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None = None) -> np.ndarray:
    """The arithmetic that ``measure`` fixed, on a block of the channel.

    Args:
        block: of any shape and real type; left as it is.
        foreground: bool of the block's shape; None is every voxel.

    Returns:
        New float32 array of the block's shape, in C order.
    """
    return _arithmetic(fitted, block, foreground).astype(np.float32, copy=False)


def _arithmetic(fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None) -> np.ndarray:
    # float32 holds small integers and float32 exactly; float64 and large integers would lose what tells voxels apart.
    exact_in_float32 = np.can_cast(block.dtype, np.float32, "safe")
    values = np.array(block, dtype=np.float32 if exact_in_float32 else np.float64, order="C")
    for step in fitted:
        match step["step"]:
            case "clip":
                np.clip(values, step["low"], step["high"], out=values)
            case "z_score":
                values -= step["mean"]
                values /= step["std"]
                if step["outside"] == "zero" and foreground is not None:
                    values *= foreground
            case "rescale":
                values *= step["scale"]
                values += step["shift"]
    return values


class _Values:
    """The values of a channel's voxels inside a mask after the steps so far, as float64 blocks in array order."""

    def __init__(self, array: np.ndarray, inside: np.ndarray | None, mask: np.ndarray | None, fitted: list[dict]):
        self._array, self._inside, self._mask, self._fitted = array, inside, mask, tuple(fitted)
        self.count = sum(block.size for block in self._raw())

    def _raw(self) -> Iterator[np.ndarray]:
        rows = max(1, _BLOCK_VOXELS // max(1, self._array[:1].size))
        for first in range(0, len(self._array), rows):
            where = slice(first, first + rows)
            block = np.ascontiguousarray(self._array[where])
            chosen = [mask[where] for mask in (self._inside, self._mask) if mask is not None]
            yield block[np.logical_and.reduce(chosen)] if chosen else block.ravel()

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._raw():
            if block.size:
                yield _arithmetic(self._fitted, block, None).astype(np.float64, copy=False)


def _moments(values: _Values) -> tuple[float, float]:
    """Mean and standard deviation (population); 1 instead of 0 where all values are equal."""
    mean = sum(float(block.sum()) for block in values) / values.count
    variance = sum(float(np.square(block - mean).sum()) for block in values) / values.count
    return mean, float(np.sqrt(variance)) or 1.0


def _percentiles(values: _Values, percentages: Sequence[float]) -> list[float]:
    """Percentiles as numpy's default gives them, of float32 values, exactly, without holding or sorting all of them.

    The bits of a float32, with those of negative numbers turned round, sort like the number itself. One histogram of
    the upper 16 bits says in which group each wanted rank lies, one more of that group's lower bits says which it is.
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


def _histogram(values: _Values, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    counts = np.zeros(2**16, dtype=np.int64)
    for block in values:
        bits = block.astype(np.float32).view(np.uint32)
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        counts += np.bincount(part(keys), minlength=2**16)
    return counts


def _value_of(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def _sparse_tail(values: _Values, min_count: int) -> float | None:
    """Index of the last of int(maximum) equal bins from minimum to maximum with ``min_count`` values, or None."""
    low = min((float(block.min()) for block in values), default=0.0)
    high = max((float(block.max()) for block in values), default=0.0)
    bins = int(high)
    if bins < 1 or high <= low:
        return None
    width = (high - low) / bins
    dense = np.zeros(bins, dtype=np.int64) if bins <= _DENSE_BINS else None
    sparse = []
    for block in values:
        index = np.minimum(((block - low) * (bins / (high - low))).astype(np.int64), bins - 1)
        # A value on an edge belongs to the bin above, also where the division rounded otherwise.
        index -= block < low + index * width
        index += (block >= low + (index + 1) * width) & (index < bins - 1)
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


def _increasing(*numbers: object, strict: bool = True) -> bool:
    if not all(isinstance(number, Real) and np.isfinite(number) for number in numbers):
        return False
    gaps = np.diff(np.array(numbers, dtype=float))
    return bool((gaps > 0).all() if strict else (gaps >= 0).all() and numbers[1] < numbers[2])


def _pair(value: object) -> bool:
    """Whether it is two different numbers."""
    return isinstance(value, Sequence) and len(value) == 2 and (_increasing(*value) or _increasing(*value[::-1]))


def _bad(step: object, why: str) -> UserError:
    return UserError("bad-intensity", f"The model's intensity step {step!r} cannot be used: {why}.")
