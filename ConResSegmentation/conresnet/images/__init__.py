"""Images: voxel grids in patient space, volumes on them and their checks, boxes, and the order of axes.

A `Grid` is a shape with the matrix that maps voxel indices to RAS mm. Arrays are indexed [k, j, i], slices first.

An orientation is three letters in array order (S, H, W), each the patient direction in which that axis's index
increases: "SAR" is superior, anterior, right (an RAS file read as [k, j, i]). The BraTS arrays of the paper are "SLP".

Importing this takes NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from conresnet.errors import UserError

# Converts points and directions between the two systems, both ways; ITK and DICOM use LPS, Slicer RAS.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in patient space.

    Args:
        shape: array shape (k, j, i).
        affine: (4, 4); voxel index (i, j, k, 1) to RAS mm, the matrix Slicer calls IJKToRAS.
        nifti_fields: the fields of a NIfTI header that placed an image here (qform, sform, their codes, units). Files
            written on this grid repeat them, so that a result overlays its image in every viewer, whichever of the
            fields the viewer uses.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    nifti_fields: Mapping | None = None

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if affine.shape != (4, 4) or len(shape) != 3:
            raise ValueError(f"a grid has three sizes and a 4 x 4 matrix, not {shape} and {affine.shape}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def of_array(cls, shape: Sequence[int], array_affine: np.ndarray) -> Grid:
        """The grid of an array of ``shape``; the (4, 4) matrix maps its indices (k, j, i, 1) to RAS mm."""
        return cls(shape, array_affine[:, [2, 1, 0, 3]])

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along the index axes i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def direction(self) -> np.ndarray:
        """(3, 3) unit vectors in RAS, one column per index axis i, j, k."""
        return self.affine[:3, :3] / self.spacing

    @property
    def array_affine(self) -> np.ndarray:
        """(4, 4) array index (k, j, i, 1) to RAS mm."""
        return self.affine[:, [2, 1, 0, 3]]

    @property
    def center(self) -> np.ndarray:
        """(3,) RAS mm of the middle of the grid."""
        return self.array_affine[:3] @ [*((np.array(self.shape) - 1) / 2), 1]

    @property
    def voxel_volume(self) -> float:
        """mm³ of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def corners(self, margin: float = 0.5) -> np.ndarray:
        """(8, 3) RAS mm of the corners, ``margin`` voxels beyond the outermost voxel centers."""
        return self.to_ras(box_corners(np.full(3, -margin), np.array(self.shape) - 1 + margin))

    def to_ras(self, index: np.ndarray) -> np.ndarray:
        """Array indices (..., 3) in order (k, j, i) to RAS mm (..., 3)."""
        return transformed(index, self.array_affine)

    def matches(self, other: Grid, tolerance: float = 0.01) -> bool:
        """Whether both grids have their voxels at the same places, to ``tolerance`` voxels at the farthest corner."""
        if self.shape != other.shape:
            return False
        distance = np.linalg.norm(self.corners(0) - other.corners(0), axis=1).max()
        return bool(distance <= tolerance * self.spacing.min())

    def to_dict(self) -> dict:
        """As JSON: ``{"shape": [k, j, i], "ijk_to_ras": 4 x 4}``."""
        return {"shape": list(self.shape), "ijk_to_ras": self.affine.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping) -> Grid:
        """The grid that ``to_dict`` wrote. Raises UserError("bad-grid") for anything else."""
        try:
            return cls(tuple(values["shape"]), np.array(values["ijk_to_ras"], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("bad-grid", grid=repr(values)) from error


@dataclass
class Volume:
    """One image [k, j, i] of any real type on its grid; messages call it by its ``name``. See also `ImageFile`."""

    array: np.ndarray
    grid: Grid
    name: str
    warnings: tuple[str, ...] = ()
    modality: str = ""
    patient: str = ""

    def __post_init__(self):
        if tuple(self.array.shape) != self.grid.shape:
            raise ValueError(f"{self.name}: the array is {self.array.shape}, its grid {self.grid.shape}")


_SPACING_RANGE = (1e-3, 1e2)
_MOST_SHEAR = float(np.sin(np.radians(1)))
_LARGEST_VALUE = 1e30


def check_volume(volume: Volume) -> None:
    """Refuse an image that no model can use.

    Raises:
        UserError: "image-empty", "image-type", "bad-matrix", "absurd-spacing", "image-place-not-finite",
            "image-sheared", "image-not-finite", "intensity-range" or "image-constant".
    """
    name, array = volume.name, volume.array
    _check_grid(volume)
    if array.dtype.kind not in "biuf":
        raise UserError("image-type", name=name, type=str(array.dtype))
    low, high, bad = np.inf, -np.inf, 0
    for block in array:
        if block.dtype.kind == "f":
            bad += int(block.size - np.isfinite(block).sum())
        if not bad:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if bad:
        raise UserError("image-not-finite", name=name, count=bad)
    if max(-low, high) > _LARGEST_VALUE:
        raise UserError("intensity-range", name=name, value=max(-low, high))
    if low == high:
        raise UserError("image-constant", name=name, value=low)


def _check_grid(volume: Volume) -> None:
    name, grid = volume.name, volume.grid
    if 0 in grid.shape:
        raise UserError("image-empty", name=name)
    spacing = grid.spacing
    # First of all, because NaN spreads to other elements when matrices are multiplied.
    if not np.isfinite(spacing).all():
        raise absurd_spacing(name, spacing)
    if not np.isfinite(grid.affine).all():
        raise UserError("image-place-not-finite", name=name)
    if not np.allclose(grid.affine[3], (0, 0, 0, 1), atol=1e-6):
        raise UserError("bad-matrix", name=name, row=", ".join(f"{value:g}" for value in grid.affine[3]))
    low, high = _SPACING_RANGE
    if not ((spacing >= low) & (spacing <= high)).all():
        raise absurd_spacing(name, spacing)
    directions = grid.direction
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MOST_SHEAR:
        raise UserError("image-sheared", name=name)


def absurd_spacing(name: str, spacing: Sequence[float]) -> UserError:
    """The error for a voxel size that cannot be right."""
    return UserError("absurd-spacing", name=name, size=" x ".join(f"{value:g}" for value in spacing))


@dataclass
class ImageFile:
    """What a file contains: one or several 3D images on one grid.

    Args:
        components: (c, k, j, i).
        grid: of each component.
        warnings: sentences about the file.
        modality: of a DICOM series, such as "MR"; empty if unknown.
        patient: a checksum of the PatientID of a DICOM series, to compare images; kept only in memory; empty if
            unknown.
    """

    components: np.ndarray
    grid: Grid
    warnings: tuple[str, ...] = ()
    modality: str = ""
    patient: str = ""


def affine_of(linear: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The (4, 4) matrix that applies a (3, 3) matrix and then adds an offset."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    return matrix


def translation(offset: Sequence[float]) -> np.ndarray:
    """(4, 4) matrix that adds ``offset``."""
    return affine_of(np.eye(3), offset)


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 3) transformed by a (4, 4) matrix."""
    return np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]


def box_corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(8, 3) corners of the box between two points."""
    choice = np.indices((2, 2, 2)).reshape(3, 8).T
    return np.where(choice == 0, low, high)


# Beyond the indices of any image; larger values might not fit into an integer.
_FARTHEST = 2**31


def bounding_indices(corners: np.ndarray, grid: Grid, outward: bool) -> tuple[np.ndarray, np.ndarray]:
    """First and last index of the voxels centered in the corners' bounding box; ``outward``: of those that cover it."""
    indices = transformed(corners, np.linalg.inv(grid.array_affine))
    low, high = np.clip([indices.min(axis=0), indices.max(axis=0)], -_FARTHEST, _FARTHEST)
    if outward:
        return np.floor(low + 1e-3).astype(int), np.ceil(high - 1e-3).astype(int)
    return np.ceil(low - 1e-3).astype(int), np.floor(high + 1e-3).astype(int)


Box = tuple[slice, slice, slice]


def whole_box(shape: Sequence[int]) -> Box:
    """The box that covers an array of ``shape``."""
    return tuple(slice(0, side) for side in shape)


def grown(box: Box, margins: Sequence[int], shape: Sequence[int]) -> Box:
    """The box with a margin of this many voxels along each axis, limited to an array of ``shape``."""
    return tuple(slice(max(0, a.start - m), min(n, a.stop + m)) for a, m, n in zip(box, margins, shape, strict=True))


def overlap_of(slab: Box, box: Box) -> tuple[Box, Box]:
    """Overlap of a slab and a box, as slices into an array of the box and into one of the slab; may be empty."""
    low = [max(part.start, limit.start) for part, limit in zip(slab, box, strict=True)]
    high = [max(start, min(part.stop, limit.stop)) for start, part, limit in zip(low, slab, box, strict=True)]
    inside, cut = (
        tuple(slice(a - of.start, b - of.start) for a, b, of in zip(low, high, origin, strict=True))
        for origin in (box, slab)
    )
    return inside, cut


def bounding_box(array: np.ndarray) -> Box | None:
    """The smallest box around all nonzero voxels, or None if there are none."""
    return box_of_flags([array.any(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)])


def box_of_flags(occupied: Sequence[np.ndarray]) -> Box | None:
    """``bounding_box`` from flags: for each axis, whether any voxel at that index is nonzero."""
    if not occupied[0].any():
        return None
    found = [np.flatnonzero(flags) for flags in occupied]
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in found)


_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def axis_directions(code: str) -> np.ndarray:
    """(3, 3) RAS unit vectors, one column per array axis (S, H, W) of an array in orientation ``code``.

    The code is valid, as a model's description checks: three letters, one each of R or L, A or P, and S or I.
    """
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        row, sign = _LETTERS[letter]
        directions[row, axis] = sign
    return directions


@dataclass(frozen=True)
class Reordering:
    """A permutation and flip of the last three axes.

    Args:
        axes: for each new axis, which old axis it was.
        flips: for each new axis, whether it is reversed.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def view(self, array: np.ndarray) -> np.ndarray:
        """The array in the new order, as a view. Leading axes stay in place."""
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
    """The permutation and flips that bring an array on ``grid`` closest to orientation ``code``.

    The choice depends only on where the voxels are, not on the order in which they are stored, even if an oblique grid
    is halfway between two axes. The code is as for ``axis_directions``.
    """
    directions = grid.direction[:, ::-1]

    def merit(order: tuple[int, ...]) -> tuple:
        # Along each patient axis the grid axis it would get, pointing the positive way.
        chosen = directions[:, list(order)]
        chosen = chosen * np.where(np.diag(chosen) < 0, -1, 1)
        return round(float(np.trace(chosen)), 5), tuple(np.round(chosen, 5).ravel())

    order = max(permutations(range(3)), key=merit)
    axes, flips = [], []
    for letter in code:
        row, sign = _LETTERS[letter]
        axes.append(order[row])
        flips.append(bool(directions[row, order[row]] * sign < 0))
    return Reordering(tuple(axes), tuple(flips))
