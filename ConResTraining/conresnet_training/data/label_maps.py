"""How far two grids are from each other, in words.

Label maps in files, held to what training can take. Unlike an image, one may be empty.

Where the voxels of each label value lie in a case, so that any of them is drawn without a look at the others.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images.files import read_single
from conresnet.images.grid import Grid, Volume
from conresnet_training.reporting.text import product

# What is not worth a word: relative for spacings, in voxels for places, in degrees.
SAME_SPACING, SAME_PLACE, SAME_DEGREES = 1e-3, 0.01, 0.01


def grid_difference(grid: Grid, reference: Grid) -> str | None:
    """What differs between a grid and the one it should be; None where ``Grid.matches`` sees no difference.

    Names each that differs: size in voxels, spacing in mm, the first voxel's place in mm, the axes' directions in
    degrees and, for grids of one size, how far apart their voxels lie at the most.
    """
    if grid.matches(reference):
        return None
    parts = []
    if grid.shape != reference.shape:
        parts.append(f"{product(grid.shape[::-1], 6)} instead of {product(reference.shape[::-1], 6)} voxels")
    if not np.allclose(grid.spacing, reference.spacing, rtol=SAME_SPACING, atol=0):
        parts.append(f"spacing {product(grid.spacing, 6)} instead of {product(reference.spacing, 6)} mm")
    moved = float(np.linalg.norm(grid.affine[:3, 3] - reference.affine[:3, 3]))
    if moved > SAME_PLACE * reference.spacing.min():
        parts.append(f"first voxel {moved:.3g} mm away")
    cosines = np.clip((grid.direction * reference.direction).sum(axis=0), -1, 1)
    turned = float(np.degrees(np.arccos(cosines.min())))
    if turned > SAME_DEGREES:
        parts.append(f"axes turned by {turned:.3g} degrees")
    if grid.shape == reference.shape:
        apart = np.linalg.norm(grid.corners(0) - reference.corners(0), axis=1).max()
        parts.append(f"voxels up to {apart:.3g} mm apart")
    return ", ".join(parts)


LARGEST = 255
# Files that scale their values may store 1 as 0.9999.
WHOLE = 1e-3


def read_label(path: Path) -> Volume:
    """A label map with its values as uint8.

    Raises:
        UserError: ``image-4d``, ``label-not-whole`` or ``label-range``, or any of reading the file.
    """
    return whole_labels(read_single(path))


def whole_labels(label: Volume) -> Volume:
    """The same label map as uint8.

    Raises:
        UserError: ``label-not-whole`` or ``label-range``.
    """
    array = label.array
    if array.dtype == np.uint8:
        return label
    whole = np.empty(array.shape, np.uint8)
    for plane, into in zip(array, whole, strict=True):
        rounded = np.rint(plane)
        wrong = ~(np.abs(plane - rounded) <= WHOLE) if plane.dtype.kind == "f" else np.zeros(plane.shape, bool)
        if wrong.any():
            raise UserError(
                "label-not-whole",
                f"The label map {label.name} has values that are not whole numbers, such as {plane[wrong][0]:g}; "
                "it must have been interpolated, so make it again with nearest-neighbor interpolation.",
                path=label.name,
            )
        wrong = (rounded < 0) | (rounded > LARGEST)
        if wrong.any():
            raise UserError(
                "label-range",
                f"The label map {label.name} has the value {plane[wrong][0]:g}; labels are whole numbers from 0 to "
                f"{LARGEST}.",
                path=label.name,
            )
        into[...] = rounded
    return Volume(whole, label.grid, label.name)


def label_counts(label: Volume) -> dict[int, int]:
    """Voxels of each value other than 0 in a uint8 label map."""
    counts = np.bincount(label.array.ravel(order="K"), minlength=LARGEST + 1)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}


def check_expected(label: Volume, expected: Collection[int]) -> None:
    """Refuse values that the data set does not name. Raises UserError ``unexpected-labels``."""
    counts = label_counts(label)
    strange = {value: count for value, count in counts.items() if value not in expected}
    if strange:
        listed = ", ".join(
            f"{value} ({count} {'voxel' if count == 1 else 'voxels'})" for value, count in list(strange.items())[:10]
        )
        raise UserError(
            "unexpected-labels",
            f"The label map {label.name} has values that the data set does not name: {listed}; it names "
            f"{', '.join(map(str, sorted(expected)))}; put it right, or name them in a dataset.json.",
            path=label.name,
            values=list(strange),
        )


VALUES = 256


def index_of_labels(label: np.ndarray) -> np.ndarray:
    """What ``LabelPlaces`` looks into, for a file.

    Args:
        label: (S, H, W) uint8.

    Returns:
        int64: how many voxels have each of the 256 values, none of 0; then these voxels' flat indices, one value's
        after the other's, each rising.
    """
    counts = np.zeros(VALUES, np.int64)
    for plane in label:
        counts += np.bincount(plane.ravel(), minlength=VALUES)
    counts[0] = 0
    flat = label.reshape(-1)
    # Value by value, since sorting all labelled voxels would hold several times what the index takes.
    return np.concatenate([counts, *(np.flatnonzero(flat == value) for value in np.flatnonzero(counts))])


class LabelPlaces:
    """Draws voxels by their label value; of an index that is mapped, one draw reads a page or two.

    Args:
        index: see ``index_of_labels``.
    """

    def __init__(self, index: np.ndarray):
        self._index, self._counts = index, np.array(index[:VALUES])
        self._begins = VALUES + np.cumsum(self._counts) - self._counts

    @property
    def counts(self) -> np.ndarray:
        """(256,): voxels of each value, 0 for the value 0."""
        return self._counts

    def count(self, values: Iterable[int]) -> int:
        """How many voxels have one of these values; 0 is none."""
        return int(self._counts[list(values)].sum())

    def draw(self, values: Iterable[int], random: np.random.Generator) -> int:
        """The flat index of a voxel that has one of these values, each such voxel as likely; there must be one."""
        values = list(values)
        ends = np.cumsum(self._counts[values])
        place = int(random.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        return int(self._index[self._begins[values[which]] + self._counts[values[which]] - ends[which] + place])
