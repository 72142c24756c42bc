"""Label maps in files, held to what training can take. Unlike an image, one may be empty."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.grid import Volume
from conresnet.image_files import read_single

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
