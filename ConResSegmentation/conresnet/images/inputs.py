"""What a user specifies for a case: which image is which channel of a model, and the box in which to segment.

Images are matched to channels as the user names them, or by the words in the images' names. The box may be aligned with
the patient's axes or rotated; it is in RAS mm, as Slicer shows it. Some models need a box, and may find it with a
locator. Requires only NumPy, because Slicer's process uses this module, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.images import LPS_TO_RAS, Grid, box_corners
from conresnet.messages import sentence
from conresnet.package import ModelDescription

_WHOLE_WORD = 1000
_MOST_NAMED = 8
# Radiologists write "T1+C" for what files call "t1gd".
_PLUS_CONTRAST = re.compile(r"\+\s*(?:c|ce|contrast|gd|gad)(?![a-z0-9])")

# In mm. Areas and volumes of larger ROIs would exceed the range of floating-point numbers.
_LARGEST = 1e100


@dataclass(frozen=True)
class Candidate:
    """An image that may become a channel: its name, and what groups a patient's images, such as a study."""

    name: str
    group: Hashable = None


def match_channels(inputs: Sequence, candidates: Sequence[Candidate]) -> list[int | None]:
    """Choose a candidate for every input of a model.

    All channels come from one group, the one that fills most of them, so that patients are not mixed. An input that no
    name matches stays empty, except that the only input of a model takes the first image that no word excludes.

    Args:
        inputs: with ``name``, ``keywords`` and ``exclude_keywords``, as a model's description has them.
        candidates: the images, preferred ones first.

    Returns:
        for every input the candidate's index in ``candidates``, or None.
    """
    best: list[int | None] = [None] * len(inputs)
    for group in dict.fromkeys(candidate.group for candidate in candidates):
        members = [place for place, candidate in enumerate(candidates) if candidate.group == group]
        found = _match_in_group(inputs, [candidates[place].name for place in members])
        if sum(place is not None for place in found) > sum(place is not None for place in best):
            best = [None if place is None else members[place] for place in found]
    if len(inputs) == 1 and best == [None]:
        best = [next((i for i, c in enumerate(candidates) if score(inputs[0], c.name) is not None), None)]
    return best


def sort_by_channel(inputs: Sequence, names: Sequence[str]) -> list[int]:
    """The indices of images, one for every input, in the order of the inputs.

    Names decide if every input has a name that matches it; otherwise the given order stays. Raises UserError
    "channels-unclear" if a name contradicts it.
    """
    given = list(range(len(names)))
    found = match_channels(inputs, [Candidate(name) for name in names])
    if None not in found:
        return found
    wrong = [place for place, by_name in zip(given, found, strict=True) if by_name not in (None, place)]
    if wrong:
        place, image = wrong[0], found[wrong[0]]
        raise UserError("channels-unclear", name=names[image], given=inputs[image].name, spoken=inputs[place].name)
    return given


def warn_of_names(inputs: Sequence, names: Sequence[str]) -> list[str]:
    """A warning for each image whose name contains a whole word for another channel, or one that its own channel
    excludes (such as "flair" for T1), and no word for its own channel.
    """
    warnings = []
    for own, name in zip(inputs, names, strict=True):
        strengths = [score(item, name) or 0 for item in inputs]
        other = max(range(len(inputs)), key=strengths.__getitem__)
        if strengths[other] >= _WHOLE_WORD > (score(own, name) or 0):
            warnings.append(sentence("warn-channel-name", {"given": own.name, "spoken": inputs[other].name}))
            continue
        words = _words(name)
        excluded = [word for word in own.exclude_keywords if _strength(word, words) >= _WHOLE_WORD]
        if excluded and all(_strength(word, words) < _WHOLE_WORD for word in (own.name, *own.keywords)):
            warnings.append(sentence("warn-excluded-name", {"given": own.name, "word": excluded[0]}))
    return warnings


def by_channel(given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Images by channel, in the order of ``names``, the model's channels; upper and lower case do not matter.

    Raises UserError "channel-unknown", "channel-repeated" or "channel-missing".
    """
    found: dict[str, Any] = {}
    for name, image in given.items():
        wanted = str(name).strip().casefold()
        known = next((channel for channel in names if channel.casefold() == wanted), None)
        if known is None:
            raise UserError("channel-unknown", name=name, channels=", ".join(names))
        if known in found:
            raise UserError("channel-repeated", name=known)
        found[known] = image
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError("channel-missing", missing=", ".join(missing))
    return [found[name] for name in names]


def check_channel_count(given: Sequence[str], channels: Sequence[str]) -> None:
    """Raise UserError "wrong-channel-count" for a number of images other than the model's number of channels."""
    if len(given) != len(channels):
        more = [f"and {len(given) - _MOST_NAMED} more"] if len(given) > _MOST_NAMED else []
        values = {"images": ", ".join([*given[:_MOST_NAMED], *more]), "channels": ", ".join(channels)}
        raise UserError("wrong-channel-count", given=len(given), wanted=len(channels), **values)


def score(channel, name: str) -> int | None:
    """How strongly a name suggests an input: 0 not at all, None if it excludes it."""
    words = _words(name)
    if any(_strength(keyword, words) > 0 for keyword in channel.exclude_keywords):
        return None
    return max((_strength(keyword, words) for keyword in (channel.name, *channel.keywords)), default=0)


def _match_in_group(inputs: Sequence, names: Sequence[str]) -> list[int | None]:
    found: list[int | None] = [None] * len(inputs)
    free = set(range(len(names)))
    while True:
        taken = [names[place] for place in found if place is not None]
        ranked = [
            (strength, _likeness(names[place], taken), -place, channel)
            for channel, place in ((c, p) for c in range(len(inputs)) if found[c] is None for p in free)
            if (strength := score(inputs[channel], names[place]))
        ]
        if not ranked:
            return found
        _, _, place, channel = max(ranked)
        found[channel] = -place
        free.remove(-place)


def _strength(keyword: str, words: list[str]) -> int:
    """A whole word counts more than the beginning of one ("t1" in "t1w"), a long keyword more than a short one."""
    wanted = _words(keyword)
    if not wanted:
        return 0
    last = len(wanted) - 1
    for start in range(len(words) - last):
        part = words[start : start + last + 1]
        if part == wanted:
            return _WHOLE_WORD + len("".join(wanted))
        if part[:last] == wanted[:last] and part[last].startswith(wanted[last]):
            return len("".join(wanted))
    return 0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _PLUS_CONTRAST.sub(" t1gd ", text.casefold()))


def _likeness(name: str, taken: Sequence[str]) -> int:
    """How much of its beginning a name shares with those chosen before: of two T1 volumes, the same patient's."""
    return max((_shared_beginning(name, other) for other in taken), default=0)


def _shared_beginning(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, eq=False)
class BoxROI:
    """A box in patient space.

    Args:
        center: (3,) RAS mm.
        axes: (3, 3) the box's own axes as unit vectors in RAS, one per column.
        size: (3,) mm along those axes.

    Raises:
        UserError: "bad-roi" if a number is not finite or beyond 1e100, its size is not positive, or its axes are not at
            right angles.
    """

    center: np.ndarray
    axes: np.ndarray
    size: np.ndarray

    def __post_init__(self):
        for name, shape in (("center", (3,)), ("axes", (3, 3)), ("size", (3,))):
            try:
                value = np.array(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise _bad_roi(f"its {name} contains values that are not numbers") from error
            if value.shape != shape or not (np.abs(value) <= _LARGEST).all():
                count = " x ".join(map(str, shape))
                raise _bad_roi(f"its {name} is not {count} numbers between -{_LARGEST:g} and {_LARGEST:g}")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if (self.size < 0).any():
            raise _bad_roi("its size is negative")
        if not self.size.all():
            raise _bad_roi("its size is 0")
        if not np.allclose(self.axes.T @ self.axes, np.eye(3), atol=1e-3):
            raise _bad_roi("its axes are not at right angles")

    @classmethod
    def from_bounds(cls, bounds: Sequence[float]) -> BoxROI:
        """Box from six RAS mm numbers R0, R1, A0, A1, S0, S1, each pair in either order."""
        try:
            values = np.asarray(bounds, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (6,) or not np.isfinite(values).all():
            raise _bad_roi("six numbers are required: R0,R1,A0,A1,S0,S1 in mm")
        pairs = values.reshape(3, 2)
        with np.errstate(over="ignore"):
            center, size = pairs.mean(axis=1), np.abs(pairs[:, 1] - pairs[:, 0])
        return cls(center, np.eye(3), size)

    @classmethod
    def from_text(cls, text: str) -> BoxROI:
        """Box from the text of ``--roi``: "R0,R1,A0,A1,S0,S1" in RAS mm, or the path of a Slicer .mrk.json file."""
        if text.strip().lower().endswith(".json"):
            return cls.from_markups_file(text.strip())
        try:
            bounds = [float(part) for part in text.replace(";", ",").split(",")]
        except ValueError as error:
            raise _bad_roi(
                f'"{text}" is not auto, all, R0,R1,A0,A1,S0,S1 (six numbers in mm) or a .mrk.json file'
            ) from error
        return cls.from_bounds(bounds)

    @classmethod
    def from_markups_file(cls, path: str | Path) -> BoxROI:
        """Box from a Slicer markups file (.mrk.json) that contains one ROI, in LPS or RAS."""
        path = Path(path)
        try:
            # json.loads detects UTF-8, UTF-16 and UTF-32 in bytes, with or without a byte-order mark.
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError("roi-not-found", path=str(path)) from error
        except (OSError, ValueError, RecursionError) as error:
            raise _bad_roi(f"{path} cannot be read as a Slicer markups file (.mrk.json)") from error
        markups = content.get("markups") if isinstance(content, dict) else None
        if not isinstance(markups, list):
            raise _bad_roi(f"{path} is not a Slicer markups file (.mrk.json)")
        boxes = [markup for markup in markups if isinstance(markup, dict) and markup.get("type") == "ROI"]
        if len(boxes) != 1:
            raise _bad_roi(f"{path} contains {len(boxes)} ROIs, but exactly one is required")
        return cls._from_markup(boxes[0], path)

    @classmethod
    def _from_markup(cls, markup: Mapping, path: Path) -> BoxROI:
        if markup.get("insideOut"):
            raise _bad_roi(f"{path} is inverted (Inside out); turn Inside out off in Slicer's Markups module")
        system = markup.get("coordinateSystem", "LPS")
        # Slicer's older files write the coordinate system as a number: 0 RAS, 1 LPS.
        if system not in ("LPS", "RAS", 0, 1, "0", "1"):
            raise _bad_roi(f'{path} has the unknown coordinate system "{system}"')
        to_ras = np.eye(3) if system in ("RAS", 0, "0") else LPS_TO_RAS
        try:
            center = to_ras @ np.array(markup["center"], dtype=np.float64)
            axes = to_ras @ np.array(markup.get("orientation", np.eye(3)), dtype=np.float64).reshape(3, 3)
            size = np.array(markup["size"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_roi(f"{path} has no ROI center, orientation or size") from error
        return cls(center, axes, size)

    def corners(self) -> np.ndarray:
        """(8, 3) RAS mm."""
        return self.center + box_corners(-self.size / 2, self.size / 2) @ self.axes.T

    def contains(self, affine: np.ndarray, shape: Sequence[int], tolerance: float = 1e-3) -> np.ndarray:
        """Which voxel centers of a block are in the box: bool of ``shape``.

        Args:
            affine: (4, 4) array index (k, j, i, 1) of the block to RAS mm.
            tolerance: mm by which a center may be outside, since faces are often at voxel centers.
        """
        inside = np.ones(tuple(shape), dtype=bool)
        steps = self.axes.T @ affine[:3, :3]
        start = self.axes.T @ (affine[:3, 3] - self.center)
        # Slice by slice, so that distances of a whole volume are never in memory.
        for index, plane in enumerate(inside):
            for own_axis in range(3):
                rows = np.arange(shape[1])[:, None] * steps[own_axis, 1]
                columns = np.arange(shape[2]) * steps[own_axis, 2]
                distance = start[own_axis] + index * steps[own_axis, 0] + rows + columns
                plane &= np.abs(distance) <= self.size[own_axis] / 2 + tolerance
        return inside

    def to_dict(self) -> dict:
        """As JSON."""
        return {"center": self.center.tolist(), "axes": self.axes.tolist(), "size": self.size.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping) -> BoxROI:
        """The box that ``to_dict`` wrote. Raises UserError("bad-roi") for anything else."""
        try:
            return cls(values["center"], values["axes"], values["size"])
        except (KeyError, TypeError) as error:
            raise _bad_roi(f"{values!r} has no center, axes or size") from error

    def __str__(self) -> str:
        low, high = self.corners().min(axis=0), self.corners().max(axis=0)
        return ", ".join(f"{axis} {_mm(a)} to {_mm(b)}" for axis, a, b in zip("RAS", low, high, strict=True)) + " mm"


def _mm(value: float) -> str:
    """A coordinate as text; in scientific notation from one kilometer on."""
    return f"{value:.1f}" if abs(value) < 1e6 else f"{value:g}"


def _bad_roi(why: str) -> UserError:
    return UserError("bad-roi", reason=why)


# A whole head has about seventy times the volume of the window of the hippocampus model.
_MUCH_LARGER = 27


def seen_at_once(description: ModelDescription, grid: Grid) -> np.ndarray:
    """(3,) mm along the model's S, H and W that one window covers of an image on ``grid``."""
    spacing = description.preparation.spacing or [grid.spacing.min()] * 3
    return np.multiply(description.inference.window, spacing)


def wants_roi(description: ModelDescription, grid: Grid) -> bool:
    """Whether an image is so much larger than the crops a model was trained on that it needs an ROI."""
    if description.preparation.roi == "limit":
        return False
    volume = grid.voxel_volume * np.prod(grid.shape, dtype=float)
    return bool(volume > _MUCH_LARGER * seen_at_once(description, grid).prod())


# What ``SegmentOptions.roi`` may be besides a box: found by the model's locator, or the whole image.
AUTOMATIC, WHOLE_IMAGE = "auto", "all"


def roi_from_text(text: str) -> BoxROI | str:
    """What the text of ``--roi`` means: "auto", "all", or a box as ``BoxROI.from_text`` accepts it."""
    word = text.strip().lower()
    return word if word in (AUTOMATIC, WHOLE_IMAGE) else BoxROI.from_text(text)


def check_locator(description: ModelDescription, roi: BoxROI | str | None) -> None:
    """Raise UserError("no-locator") if the model's locator is asked to find the ROI, but the model has none."""
    if roi == AUTOMATIC and description.locator is None:
        raise UserError("no-locator", model=description.title)


def uses_locator(description: ModelDescription, roi: BoxROI | str | None, grid: Grid) -> bool:
    """Whether the model's locator finds the ROI. Raises as ``check_locator``."""
    check_locator(description, roi)
    return roi == AUTOMATIC or (roi is None and description.locator is not None and wants_roi(description, grid))
