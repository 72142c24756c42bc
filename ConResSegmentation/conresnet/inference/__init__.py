"""Inference in windows: their places in the model's array (S, H, W) and their weights.

Importing this takes NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Box
from conresnet.package import TILINGS, Inference

MULTIPLE = 8
"""The networks halve a side three times; a multiple of this needs no rounding."""

SMALLEST_SIDE = 32
"""The shortest side that lack of memory may reduce a window to; less would show too little context."""

STRETCH = 1.25
"""How much longer than the model's window a fitted one may be along an axis."""

GROWTH = 1.15
"""How many more voxels it may have: memory grows with them, and group norm depends on them."""

CROP = 4
"""How many times the voxels of its window a model of crops may see at once, see ``Tiling.of_crop``."""

FAST_OVERLAP = 0.25
"""The share of a window that its neighbor covers too when the user prefers speed."""


@dataclass(frozen=True)
class WindowPlan:
    """Windows of one size (S, H, W) at every combination of starts, which increase along each axis.

    A window may extend past the end of the array, where it is padded.
    """

    size: tuple[int, int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Each window as its number along each axis; all windows of one S come before those of the next."""
        return product(*(range(len(starts)) for starts in self.starts))

    def start(self, window: Sequence[int]) -> tuple[int, int, int]:
        """First voxel of a window that iteration yielded."""
        return tuple(starts[number] for starts, number in zip(self.starts, window, strict=True))

    def extent(self, shape: Sequence[int]) -> Box:
        """The box of an array of ``shape`` that the windows cover together."""
        return tuple(
            slice(starts[0], min(starts[-1] + size, side))
            for starts, size, side in zip(self.starts, self.size, shape, strict=True)
        )


def fitted_windows(box: Box, shape: Sequence[int], window: Sequence[int], overlap: float) -> WindowPlan:
    """Cover a box with few windows that are as small as possible.

    Along each axis: as few windows as possible without any being longer than ``STRETCH`` times the model's. Their
    common size is the smallest multiple of 8 at which neighbors share at least ``overlap`` of it, and they are spread
    evenly. Where a window would have more than ``GROWTH`` times the model's voxels, some axes get more windows. A
    single window that is longer than the box includes the image around it; past the end of the array it is padded.

    Args:
        box: what must be covered, such as the foreground's box, of an array of ``shape``.
        window: the model's (S, H, W).
        overlap: smallest share of a window that the next one covers too, below 1.
    """
    window = [_round_up(length) for length in window]
    lengths = [part.stop - part.start for part in box]

    def sizes(counts: Sequence[int]) -> list[int]:
        return [_round_up(n / (1 + (count - 1) * (1 - overlap))) for n, count in zip(lengths, counts, strict=True)]

    def more(counts: Sequence[int], axis: int) -> list[int]:
        new = list(counts)
        while sizes(new)[axis] == sizes(counts)[axis]:
            new[axis] += 1
        return new

    counts = [1, 1, 1]
    for axis in range(3):
        while sizes(counts)[axis] > window[axis] * STRETCH:
            counts[axis] += 1
    while math.prod(sizes(counts)) > math.prod(window) * GROWTH:
        # The smallest increase along an axis that makes windows smaller; an axis at the minimum is left out.
        smaller = [more(counts, axis) for axis in range(3) if sizes(counts)[axis] > MULTIPLE]
        counts = min(smaller, key=lambda new: (sum(new), math.prod(new) * math.prod(sizes(new))))
    axes = zip(box, shape, sizes(counts), counts, strict=True)
    return WindowPlan(tuple(sizes(counts)), tuple(_spread(*axis) for axis in axes))


def _spread(box: slice, side: int, size: int, count: int) -> tuple[int, ...]:
    """Starts of windows along one axis."""
    length = box.stop - box.start
    if count == 1 or size >= length:
        centered = box.start - (size - length) // 2
        return (max(0, min(centered, side - size)),)
    # Shorter than the box, so all of them are inside it.
    return tuple(box.start + round(number * (length - size) / (count - 1)) for number in range(count))


def _round_up(length: float) -> int:
    return MULTIPLE * math.ceil(round(length / MULTIPLE, 6))


def authors_windows(shape: Sequence[int], window: Sequence[int]) -> WindowPlan:
    """The paper authors' tiling of the whole array rather than its foreground.

    Windows of exactly the model's size advance by two thirds of it, rounded up; the last one is moved back inside. A
    smaller array is padded to the window.
    """
    starts = []
    for side, length in zip(shape, window, strict=True):
        stride = -(-2 * length // 3)
        count = max(0, -(-(side - length) // stride)) + 1
        starts.append(tuple(max(0, min(number * stride, side - length)) for number in range(count)))
    return WindowPlan(tuple(window), tuple(starts))


def counted_windows(box: Box, shape: Sequence[int], window: Sequence[int], more: int) -> WindowPlan:
    """The windows of the ResDSN paper (section 4.1): floor(W / w) + n along an axis of length W.

    Windows have the model's size w, the one the paper trains on, rounded up to the multiple of 8. Along a longer axis
    they are spread evenly from end to end (our choice), and duplicates are made once. Along an axis shorter than a
    window there is one, which includes the image around the box and is padded only past the end of the array.

    ``box`` must be covered; ``more`` is n, at least 1: more windows overlap more.
    """
    sizes, starts = [], []
    for part, side, length in zip(box, shape, window, strict=True):
        size = min(_round_up(length), _round_up(side))
        count = (part.stop - part.start) // size + more
        sizes.append(size)
        starts.append(tuple(dict.fromkeys(_spread(part, side, size, count))))
    return WindowPlan(tuple(sizes), tuple(starts))


_WIDTH = 1 / 8
"""Standard deviation of the Gaussian in window sides: the edges of a window, which lack context, hardly count."""


def axis_weights(starts: Sequence[int], size: int, blending: str) -> list[np.ndarray]:
    """Weights along one axis that add up to 1 at every voxel that the windows cover.

    Windows are placed at every combination of starts and a voxel's weight is the product over the axes, so weights
    that add up to 1 along each axis do so in space, and the sum of the windows needs no division.

    Args:
        starts: first index of each window.
        blending: "gaussian" or "uniform".

    Returns:
        (size,) float32 per window.
    """
    profile = np.ones(size)
    if blending == "gaussian":
        profile = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size * _WIDTH)) ** 2)
    total = np.zeros(max(starts) - min(starts) + size)
    for start in starts:
        total[start - min(starts) :][:size] += profile
    return [(profile / total[start - min(starts) :][:size]).astype(np.float32) for start in starts]


_BLENDING = {"fitted": "gaussian", "authors": "uniform"}
"""The blending of a tiling that the user chooses."""


@dataclass(frozen=True)
class Tiling:
    """How windows are placed and blended in any case.

    Args:
        kind: "fitted", "authors" or "counted", see ``fitted_windows`` and so on.
        window: the model's (S, H, W).
        overlap: of fitted windows.
        blending: "gaussian" or "uniform".
        more: of counted windows, those in addition to the ones that fit side by side.
    """

    kind: str
    window: tuple[int, int, int]
    overlap: float
    blending: str
    more: int = 0

    @classmethod
    def of(cls, inference: Inference) -> Tiling:
        """The tiling that a model's description states."""
        return cls(inference.tiling, inference.window, inference.overlap, inference.blending)

    def plan(self, box: Box, shape: Sequence[int]) -> WindowPlan:
        """The windows over a box of a case's array of ``shape``."""
        if self.kind == "authors":
            return authors_windows(shape, self.window)
        if self.kind == "counted":
            return counted_windows(box, shape, self.window, self.more)
        return fitted_windows(box, shape, self.window, self.overlap)

    def chosen(self, kind: str | None) -> Tiling:
        """The tiling that the user chose instead; this one for None. Raises UserError "tiling-unknown"."""
        if kind and kind not in TILINGS:
            raise UserError("tiling-unknown", tiling=kind, known=", ".join(TILINGS))
        return replace(self, kind=kind, blending=_BLENDING[kind]) if kind else self

    def faster(self) -> Tiling:
        """The same settings with fewer windows, if they are fitted: neighbors overlap by at most ``FAST_OVERLAP``."""
        return replace(self, overlap=min(self.overlap, FAST_OVERLAP))

    def of_crop(self, shape: Sequence[int], largest: Sequence[float] | None = None) -> Tiling:
        """The same settings with one fitted window for a crop of ``CROP`` times the model's voxels or fewer.

        A model whose windows cover its training crops has seen its structure as a whole, and tells its parts apart by
        where they are in it. In several windows, the border between them moves.

        Args:
            largest: sides of the largest training crop in voxels, if known.
        """
        window = tuple(map(_round_up, shape))
        saw_parts = largest is not None and (np.asarray(largest) > np.multiply(STRETCH, self.window)).any()
        if self.kind != "fitted" or saw_parts or math.prod(window) > CROP * math.prod(self.window):
            return self
        return replace(self, window=window)

    def smaller(self, window: tuple[int, int, int]) -> Tiling:
        """Fitted windows of another size, blended like these."""
        return replace(self, kind="fitted", window=window)
