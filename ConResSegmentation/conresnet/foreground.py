"""Telling the image from the empty air or padding around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from conresnet.boxes import Box, box_of_flags, whole_box
from conresnet.errors import UserError
from conresnet.package.description import FOREGROUNDS


def background_value(array: np.ndarray) -> float:
    """The value most of the eight corner voxels have; of equally frequent ones the smallest.

    The paper's authors look at one corner; all eight give the same answer however the axes are stored.
    """
    corners = [array[corner] for corner in product((0, -1), repeat=3)]
    values, counts = np.unique(np.array(corners), return_counts=True)
    return float(values[counts.argmax()])


def check_foreground(how: str) -> str:
    """Return ``how`` if it names a foreground. Raises UserError("bad-foreground") otherwise."""
    if how not in FOREGROUNDS:
        raise UserError("bad-foreground", f"The foreground {how!r} is none of {', '.join(FOREGROUNDS)}.")
    return how


def foreground_mask(array: np.ndarray, how: str, background: float | None = None) -> np.ndarray:
    """Which voxels belong to the image.

    Args:
        array: (S, H, W), or a block of one.
        how: "not_background" (voxels that differ from the background value) or "all".
        background: the whole image's ``background_value``; None takes this array's own.

    Returns:
        bool array of the same shape.
    """
    if check_foreground(how) == "all":
        return np.ones(array.shape, dtype=bool)
    return array != (background_value(array) if background is None else background)


def foreground_box(channels: Sequence[np.ndarray], how: str, backgrounds: Sequence[float]) -> Box:
    """The smallest box around the foreground of all channels together.

    Args:
        channels: arrays (S, H, W) of one shape.
        how: see ``foreground_mask``.
        backgrounds: a background value a channel.

    Returns:
        A slice an axis; the whole array where no voxel is foreground.
    """
    shape = channels[0].shape
    if check_foreground(how) == "all":
        return whole_box(shape)
    occupied = [np.zeros(size, dtype=bool) for size in shape]
    # Slice by slice, so that no mask of a whole volume is needed.
    for index in range(shape[0]):
        mask = np.zeros(shape[1:], dtype=bool)
        for channel, background in zip(channels, backgrounds, strict=True):
            mask |= channel[index] != background
        occupied[0][index] = mask.any()
        occupied[1] |= mask.any(axis=1)
        occupied[2] |= mask.any(axis=0)
    return box_of_flags(occupied) or whole_box(shape)
