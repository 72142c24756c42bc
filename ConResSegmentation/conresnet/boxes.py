"""Boxes of voxels in an array of three axes, a slice an axis. Imports numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, slice, slice]


def whole_box(shape: Sequence[int]) -> Box:
    """All of an array of ``shape``."""
    return tuple(slice(0, side) for side in shape)


def bounding_box(array: np.ndarray) -> Box | None:
    """The smallest box around all that is not 0, or None where there is nothing."""
    return box_of_flags([array.any(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)])


def box_of_flags(occupied: Sequence[np.ndarray]) -> Box | None:
    """``bounding_box`` of an array of which it is known, for each index along each axis, whether anything is there."""
    if not occupied[0].any():
        return None
    found = [np.flatnonzero(flags) for flags in occupied]
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in found)
