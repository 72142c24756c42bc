"""Where voxels lie: a regular grid in patient space, and a volume on one. Imports numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conresnet.errors import UserError

# Turns points and directions of either system into the other's; ITK and DICOM count in LPS, Slicer in RAS.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in patient space.

    Args:
        shape: array shape (k, j, i).
        affine: (4, 4); voxel index (i, j, k, 1) to RAS mm, the matrix Slicer calls IJKToRAS.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

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
        """The grid of an array of ``shape`` whose indices (k, j, i, 1) a (4, 4) matrix turns to RAS mm."""
        return cls(shape, array_affine[:, [2, 1, 0, 3]])

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along the index axes i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def direction(self) -> np.ndarray:
        """(3, 3) unit vectors in RAS, one column an index axis i, j, k."""
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
            raise UserError("bad-grid", f"The grid {values!r} is not a shape and a 4 x 4 ijk_to_ras matrix.") from error


@dataclass
class Volume:
    """One image on its grid.

    Args:
        array: [k, j, i], any real numeric type.
        grid: where its voxels lie.
        name: what messages call it, such as its file or node name.
    """

    array: np.ndarray
    grid: Grid
    name: str

    def __post_init__(self):
        if tuple(self.array.shape) != self.grid.shape:
            raise ValueError(f"{self.name}: the array is {self.array.shape}, its grid {self.grid.shape}")


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 3) as a (4, 4) matrix moves them."""
    return np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]


def box_corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(8, 3) corners of the box between two points."""
    choice = np.indices((2, 2, 2)).reshape(3, 8).T
    return np.where(choice == 0, low, high)
