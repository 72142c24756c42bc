"""Label maps: read and check them, their values, their grid relative to the image, and random labeled voxels."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Grid, Volume
from conresnet.images.files import read_single
from conresnet_training.reporting import product

VALUES = 256
# Files that scale their values may store 1 as 0.9999.
WHOLE = 1e-3
# Smaller differences are not mentioned: relative for spacings, in voxels for positions, in degrees.
SAME_SPACING, SAME_PLACE, SAME_DEGREES = 1e-3, 0.01, 0.01
# A label map may be off its image by this part of a voxel, as rounded or converted headers are.
TOLERATED_SHIFT = 0.25
MOST_LISTED = 10
# Voxels of a prepared label map per voxel of the model, along each axis, if images are synthesized.
OVERSAMPLING = 2
MOST_VALUES = VALUES - 1


def read_label(path: Path) -> Volume:
    """A label map with its values as uint8.

    Raises:
        UserError: ``image-4d``, ``label-not-whole`` or ``label-range``, or any of reading the file.
    """
    return whole_labels(read_single(path))


def whole_labels(label: Volume) -> Volume:
    """The same label map as uint8. Raises UserError ``label-not-whole`` or ``label-range``."""
    array = label.array
    if array.dtype == np.uint8:
        return label
    whole = np.empty(array.shape, np.uint8)
    for plane, into in zip(array, whole, strict=True):
        rounded = np.rint(plane)
        wrong = ~(np.abs(plane - rounded) <= WHOLE) if plane.dtype.kind == "f" else np.zeros(plane.shape, bool)
        if wrong.any():
            raise UserError("label-not-whole", path=label.name, value=float(plane[wrong][0]))
        wrong = (rounded < 0) | (rounded >= VALUES)
        if wrong.any():
            raise UserError("label-range", path=label.name, value=float(plane[wrong][0]))
        into[...] = rounded
    return Volume(whole, label.grid, label.name)


def value_counts(label: np.ndarray) -> np.ndarray:
    """The number of voxels of each value in a uint8 label map: (256,) int64."""
    # Slice by slice, because bincount needs 8 bytes per voxel.
    return sum((np.bincount(plane.ravel(), minlength=VALUES) for plane in label), np.zeros(VALUES, np.int64))


def label_counts(label: Volume) -> dict[int, int]:
    """Voxels of each value other than 0 in a uint8 label map."""
    counts = value_counts(label.array)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}


def volume_ranges(labels: Iterable[Volume], targets: Mapping[str, Collection[int]]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest volume in mL of each segment, without those that no label map has.

    Args:
        targets: the label values of each segment.
    """
    volumes: dict[str, list[float]] = {name: [] for name in targets}
    for label in labels:
        counts = label_counts(label)
        for name, values in targets.items():
            voxels = sum(counts.get(value, 0) for value in values)
            volumes[name].append(voxels * label.grid.voxel_volume / 1000)
    return {name: (min(found), max(found)) for name, found in volumes.items() if any(found)}


def check_expected(label: Volume, expected: Collection[int]) -> None:
    """Refuse values that the data set does not name. Raises UserError ``unexpected-labels``."""
    strange = {value: count for value, count in label_counts(label).items() if value not in expected}
    if strange:
        found = ", ".join(f"{value} ({count})" for value, count in list(strange.items())[:MOST_LISTED])
        known = ", ".join(map(str, sorted(expected)))
        raise UserError("unexpected-labels", path=label.name, values=list(strange), found=found, known=known)


def grid_difference(grid: Grid, reference: Grid) -> str | None:
    """What differs between two grids; None where ``Grid.matches`` sees no difference.

    Names what differs: size in voxels, spacing in mm, position of the first voxel in mm, directions of the axes in
    degrees and, for grids of one size, the largest distance between corresponding voxels.
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


def on_image_grid(label: Volume, image: Volume) -> Volume:
    """The label map on its image's grid, which it may be off by ``TOLERATED_SHIFT`` of a voxel.

    Raises:
        UserError: ``label-grid-differs``, which says by how much.
    """
    if label.grid.matches(image.grid):
        return label
    if label.grid.matches(image.grid, TOLERATED_SHIFT):
        return Volume(label.array, image.grid, label.name)
    difference = grid_difference(label.grid, image.grid)
    raise UserError("label-grid-differs", path=label.name, image=image.name, difference=difference)


def index_of_labels(label: np.ndarray) -> np.ndarray:
    """The index that is stored with a label map (S, H, W) uint8, so that ``LabelPlaces`` finds voxels by their value.

    An int64 array: the number of voxels of each of the 256 values (0 for value 0), then the flat indices of these
    voxels, value by value in ascending order.
    """
    counts = value_counts(label)
    counts[0] = 0
    flat = label.reshape(-1)
    # One value at a time, because sorting all labeled voxels would take several times the memory of the index.
    return np.concatenate([counts, *(np.flatnonzero(flat == value) for value in np.flatnonzero(counts))])


class LabelPlaces:
    """Draws voxels by their label value; with a memory-mapped index, a draw reads a page or two.

    Args:
        index: see ``index_of_labels``.

    Attributes:
        counts: (256,), voxels of each value, 0 for the value 0.
    """

    def __init__(self, index: np.ndarray):
        self._index, self.counts = index, np.array(index[:VALUES])
        self._begins = VALUES + np.cumsum(self.counts) - self.counts

    def count(self, values: Iterable[int]) -> int:
        """How many voxels have one of these values; 0 is not counted."""
        return int(self.counts[list(values)].sum())

    def draw(self, values: Iterable[int], random: np.random.Generator) -> int:
        """The flat index of a random voxel that has one of these values, all equally likely; there must be one."""
        values = list(values)
        ends = np.cumsum(self.counts[values])
        place = int(random.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        return int(self._index[self._begins[values[which]] + self.counts[values[which]] - ends[which] + place])


@dataclass(frozen=True)
class Tissues:
    """The values in label maps, and how intensities are drawn for them.

    Prepared label maps contain places in ``values``, counted from 1, so that files may have values above 255.

    Args:
        values: all values other than 0 that may occur, ascending.
        groups: for each of ``values`` a number; values of one group have the same intensity.
        surroundings: values around the organ, which are left out of some images, as by skull stripping.
        contrasts: known contrasts by name: mean and standard deviation per value, on a scale from 0 to 1.
    """

    values: tuple[int, ...]
    groups: tuple[int, ...]
    surroundings: frozenset[int]
    contrasts: dict[str, dict[int, tuple[float, float]]]

    def places(self, values: Iterable[int]) -> list[int]:
        """The places of those values that may occur."""
        return [self.values.index(value) + 1 for value in values if value in self.values]

    def as_places(self, label: Volume) -> Volume:
        """A label map of places, uint8. Raises UserError ``unexpected-value``."""
        known = np.array([0, *self.values])
        places = np.searchsorted(known, label.array).clip(0, len(known) - 1).astype(np.uint8)
        strange = known[places] != label.array
        if strange.any():
            value = label.array[strange][0]
            raise UserError("unexpected-value", path=label.name, value=float(value))
        return Volume(places, label.grid, label.name)

    def as_values(self, label: Volume) -> Volume:
        """A label map of values, uint8, from one of places; values above 255 become 0."""
        values = np.array([0, *(value if value <= MOST_VALUES else 0 for value in self.values)], np.uint8)
        return Volume(values[label.array], label.grid, label.name)
