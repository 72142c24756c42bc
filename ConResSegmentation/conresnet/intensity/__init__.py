"""Intensity steps: what is done to a channel's values before the network sees them, as a model package describes it.

Steps are data. Filters use a voxel's neighbors and come first in a list:
    ``{"step": "subtract_gaussian", "sigma_mm": 5.0}``; the image minus a smoothed copy, which leaves local contrast
    ``{"step": "equalize", "clip_limit": 0.01, "tiles": 8}``; contrast-limited adaptive histogram equalization (CLAHE)
        of each slice of the model's S axis, with this many tiles along H and W; values become 0 to 1

The others are functions of one voxel's value:
    ``{"step": "clip", "low": -100, "high": 240}``
    ``{"step": "clip_percentiles", "low": 0.5, "high": 99.5}`` of the foreground
    ``{"step": "z_score", "over": "foreground" | "all", "outside": "zero" | "keep"}``; voxels outside the foreground
        become 0, or are shifted and scaled like the others
    ``{"step": "z_score_slices", "over": ..., "outside": ...}``; the same for each slice of the model's S axis, whose
        deviation is at least 5% of the whole channel's
    ``{"step": "rescale", "from": [-100, 240], "to": [0, 1]}``
    ``{"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50}``; the paper authors' step for BraTS: of a
        histogram of int(maximum) bins, values above the last bin with ``min_count`` voxels become that bin's index

VoxResNet (Chen et al., section 3.1) takes two channels per image: the image, every slice of which is normalized to zero
mean and unit variance, and a copy that is normalized the same way after subtract_gaussian and equalize.

Filters compute a new float32 array of a whole channel. `computing` measures a channel (cut to the ROI) once for the
other steps and then applies them to any block of it, so that without filters no float copy of a volume is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from numbers import Real

from conresnet.errors import UserError

FILTERS = ("subtract_gaussian", "equalize")
LARGEST_SIGMA_MM = 1000
MOST_TILES = 64

_KEYS = {
    "subtract_gaussian": {"sigma_mm"},
    "equalize": {"clip_limit", "tiles"},
    "clip": {"low", "high"},
    "clip_percentiles": {"low", "high"},
    "z_score": {"over", "outside"},
    "z_score_slices": {"over", "outside"},
    "rescale": {"from", "to"},
    "clip_sparse_tail": {"bins", "min_count"},
}


def check_steps(steps: Sequence[Mapping]) -> None:
    """Raise UserError "bad-intensity" for an unknown, invalid or misplaced step."""
    earlier = None
    for step in steps:
        name = step.get("step")
        if not isinstance(name, str) or name not in _KEYS:
            raise _bad(step, f"a step is one of {', '.join(_KEYS)}")
        keys = set(step) - {"step"}
        if keys != _KEYS[name]:
            raise _bad(step, f"{name} takes {', '.join(sorted(_KEYS[name]))}")
        if wrong := _wrong(step):
            raise _bad(step, wrong)
        if name in FILTERS and earlier:
            raise _bad(step, f"{name} comes after {earlier}, but {' and '.join(FILTERS)} come before all other steps")
        if name not in FILTERS:
            earlier = name


def split_steps(steps: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Split checked steps into the filters and the other steps."""
    filters = [step for step in steps if step["step"] in FILTERS]
    return filters, list(steps[len(filters) :])


def ignores_offset(steps: Sequence[Mapping]) -> bool:
    """Whether the result stays the same if a number is added to all voxels."""
    for step in steps:
        match step["step"]:
            case "z_score" | "z_score_slices" | "subtract_gaussian" | "equalize":
                return True
            case "clip" | "rescale" | "clip_sparse_tail":
                return False
    return False


def _wrong(step: Mapping) -> str | None:
    """The problem with the values of a step that has the right keys, or None."""
    match step["step"]:
        case "subtract_gaussian":
            if not (_number(step["sigma_mm"]) and 0 < step["sigma_mm"] <= LARGEST_SIGMA_MM):
                return f'"sigma_mm" is a number above 0 and at most {LARGEST_SIGMA_MM}'
        case "equalize":
            if not (_number(step["clip_limit"]) and 0 < step["clip_limit"] <= 1):
                return '"clip_limit" is a number above 0 and at most 1, a share of a tile\'s voxels'
            if not (_whole(step["tiles"]) and 1 <= step["tiles"] <= MOST_TILES):
                return f'"tiles" is a whole number from 1 to {MOST_TILES}'
        case "clip":
            if not _increasing(step["low"], step["high"]):
                return "low is not below high"
        case "clip_percentiles":
            low, high = step["low"], step["high"]
            if not (_increasing(low, high) and low >= 0 and high <= 100):
                return "low and high are not percentages, low below high"
        case "z_score" | "z_score_slices":
            if step["over"] not in ("foreground", "all") or step["outside"] not in ("zero", "keep"):
                return '"over" is "foreground" or "all", "outside" is "zero" or "keep"'
        case "rescale":
            if not all(_pair(step[key]) for key in ("from", "to")):
                return '"from" and "to" are each two different numbers'
        case "clip_sparse_tail":
            if step["bins"] != "int_max" or not (_whole(step["min_count"]) and step["min_count"] > 0):
                return '"bins" is "int_max" and "min_count" a positive whole number'
    return None


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _increasing(low: object, high: object) -> bool:
    return _number(low) and _number(high) and low < high


def _pair(value: object) -> bool:
    """Whether it is two different numbers."""
    return isinstance(value, Sequence) and len(value) == 2 and (_increasing(*value) or _increasing(*value[::-1]))


def _bad(step: object, why: str) -> UserError:
    return UserError("bad-intensity", step=repr(step), reason=why)
