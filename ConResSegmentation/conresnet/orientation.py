"""Which way the axes of an array run in the patient, and how to bring them into a wanted order without copying.

An orientation is three letters in array order (S, H, W), each the patient direction toward which that axis's index
grows: "SAR" is superior, anterior, right (an RAS file read as [k, j, i]); the paper authors' BraTS arrays are "SLP".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from conresnet.errors import UserError
from conresnet.grid import Grid

_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def check_orientation(code: str) -> str:
    """Return ``code`` if it is one of the 48 orientations. Raises UserError("bad-orientation") otherwise."""
    if isinstance(code, str) and len(code) == 3 and set(code) <= set(_LETTERS):
        if {_LETTERS[letter][0] for letter in code} == {0, 1, 2}:
            return code
    raise UserError(
        "bad-orientation",
        f"The orientation {code!r} is not three letters with one each of R or L, A or P, S or I, such as SAR.",
        orientation=str(code),
    )


def axis_directions(code: str) -> np.ndarray:
    """(3, 3) RAS unit vectors, one column an array axis (S, H, W) of an array in orientation ``code``."""
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(check_orientation(code)):
        row, sign = _LETTERS[letter]
        directions[row, axis] = sign
    return directions


@dataclass(frozen=True)
class Reordering:
    """A permutation and flip of the last three axes of an array.

    Args:
        axes: for each new axis the old one it was.
        flips: for each new axis whether it is reversed.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def view(self, array: np.ndarray) -> np.ndarray:
        """The array in the new order; the same memory. Leading axes stay."""
        lead = array.ndim - 3
        array = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return array[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]

    def grid(self, grid: Grid) -> Grid:
        """The grid of ``view(array)`` for an array on ``grid``: every voxel stays where it is in the patient."""
        old = grid.array_affine
        new = np.eye(4)
        new[:3, 3] = old[:3, 3]
        for axis, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            column = old[:3, source]
            new[:3, axis] = -column if flip else column
            if flip:
                new[:3, 3] += column * (grid.shape[source] - 1)
        return Grid.of_array([grid.shape[axis] for axis in self.axes], new)


def reordering(grid: Grid, code: str) -> Reordering:
    """How to bring an array on ``grid`` nearest to orientation ``code``.

    The choice depends on the voxels' places alone, not on the order in which they are stored, also where an oblique
    grid lies halfway between two axes.
    """
    directions = grid.direction[:, ::-1]

    def merit(order: tuple[int, ...]) -> tuple:
        # Along each patient axis the grid axis it would get, pointing the positive way.
        chosen = directions[:, list(order)]
        chosen = chosen * np.where(np.diag(chosen) < 0, -1, 1)
        return round(float(np.trace(chosen)), 5), tuple(np.round(chosen, 5).ravel())

    order = max(permutations(range(3)), key=merit)
    axes, flips = [], []
    for letter in check_orientation(code):
        row, sign = _LETTERS[letter]
        axes.append(order[row])
        flips.append(bool(directions[row, order[row]] * sign < 0))
    return Reordering(tuple(axes), tuple(flips))
