"""Where the voxels of each label value lie in a case, so that any of them is drawn without a look at the others."""

from collections.abc import Iterable

import numpy as np

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
