"""Drawing voxels by label value, and volumes of label maps."""

import numpy as np
import pytest

from conresnet.images import Grid, Volume
from conresnet_training.data.label_maps import VALUES, LabelPlaces, index_of_labels, volume_ranges


def label_map() -> np.ndarray:
    """One voxel of 255, and half of all voxels 1."""
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 7], np.uint8), (6, 10, 8), p=[0.3, 0.5, 0.15, 0.05])
    label[3, 2, 1] = 255
    return label


def test_index_contains_every_labeled_voxel_by_value():
    label = label_map()
    index = index_of_labels(label)
    counts = np.bincount(label.ravel(), minlength=VALUES)
    assert index[0] == 0 and np.array_equal(index[1:VALUES], counts[1:])
    assert np.array_equal(label.ravel()[index[VALUES:]], np.sort(label[label > 0]))
    assert np.array_equal(np.sort(index[VALUES:]), np.flatnonzero(label))
    assert np.array_equal(index_of_labels(np.zeros((2, 3, 4), np.uint8)), np.zeros(VALUES))


def test_voxels_of_the_values_are_drawn_uniformly():
    label = label_map()
    places, random = LabelPlaces(index_of_labels(label)), np.random.default_rng(1)
    for values in ([2], [255], [7, 2], [1, 255, 9]):
        there = np.flatnonzero(np.isin(label, values))
        assert places.count(values) == len(there)
        drawn = np.bincount([places.draw(values, random) for _ in range(100 * len(there))], minlength=label.size)
        assert drawn.sum() == drawn[there].sum() and 50 < drawn[there].min() and drawn[there].max() < 160
    assert places.count([9]) == places.count([]) == places.count([0]) == 0


def test_draw_reads_only_one_voxel():
    """Scanning all labeled voxels took most of a sample's time when many segments are balanced."""

    class Watched:
        def __init__(self, index):
            self.index, self.read = index, []

        def __getitem__(self, place):
            found = self.index[place]
            self.read.append(np.size(found))
            return found

    index = Watched(index_of_labels(label_map()))
    places = LabelPlaces(index)
    for number in range(20):
        places.draw([1, 2], np.random.default_rng(number))
    assert index.read == [VALUES] + [1] * 20


def test_volume_range_starts_at_0_if_a_case_has_no_such_segment():
    grid = Grid((2, 3, 4), np.diag([1.0, 2.0, 5.0, 1.0]))
    empty, label = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    label[0], label[1, 0, 0] = 1, 2
    volumes = [Volume(array, grid, "label") for array in (label, label * 0 + 1, empty)]
    targets = {"Organ": (1,), "Both": (1, 2), "Nothing": (3,)}
    found = volume_ranges(volumes, targets)
    assert set(found) == {"Organ", "Both"}
    assert found["Organ"] == pytest.approx((0.0, 0.24)) and found["Both"] == pytest.approx((0.0, 0.24))
    assert volume_ranges(volumes[:2], targets)["Organ"] == pytest.approx((0.12, 0.24))
