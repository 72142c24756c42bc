"""The steps that turn each value into another: measured on a channel once, then applied to any block of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from conresnet.intensity.channel_values import ChannelValues, moments, percentiles, slice_moments, sparse_tail

# A slice's deviation counts as this share of the channel's at least. So a slice of next to nothing, such as two specks
# of noise above the head, is not blown up, nor the air around them sent far off.
_LEAST_SHARE = 0.05


def measure(
    steps: Sequence[Mapping], array: np.ndarray, foreground: np.ndarray | None = None, inside: np.ndarray | None = None
) -> list[dict]:
    """Turn steps into arithmetic with fixed numbers.

    Each step is measured on the values that the steps before it leave. Measured in float64, in blocks; the answer
    depends on the values in array order alone, not on how they lie in memory.

    Args:
        steps: checked ones (``conresnet.intensity.check_steps``), filters left out.
        array: (S, H, W) of any real type: the whole channel, cut to the ROI where there is one.
        foreground: bool of that shape, what "foreground" means; None is every voxel.
        inside: bool of that shape, voxels that the image covers at all; None is every voxel.

    Returns:
        What ``apply`` takes; JSON-able.
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
                means, deviations = _slice_scales(over, everything)
                fitted.append(
                    {"step": "z_score_slices", "means": means, "stds": deviations, "outside": step["outside"]}
                )
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
    """What ``measure`` fixed for a channel, for the part of it that begins and ends with these slices."""
    tables = ("means", "stds")
    return [{key: value[slices] if key in tables else value for key, value in step.items()} for step in fitted]


def apply(
    fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None = None, first_slice: int = 0
) -> np.ndarray:
    """The arithmetic that ``measure`` fixed, on a block of the channel.

    Args:
        block: (s, h, w), any part of the channel and of any real type; left as it is.
        foreground: bool of the block's shape; None is every voxel.
        first_slice: the index of the block's first slice in the channel.

    Returns:
        New float32 array of the block's shape, in C order.
    """
    return _arithmetic(fitted, block, foreground, first_slice).astype(np.float32, copy=False)


def _arithmetic(
    fitted: Sequence[Mapping], block: np.ndarray, foreground: np.ndarray | None, first_slice: int
) -> np.ndarray:
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
    """Mean and standard deviation of each slice, the latter ``_LEAST_SHARE`` of the channel's at least.

    A slice without foreground is measured whole; one that the image does not cover takes the channel's own.
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
