"""Bounding boxes of array contents."""

import numpy as np
import pytest

from conresnet.images import bounding_box, whole_box


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_box_is_smallest_that_holds_all_nonzero_voxels(dtype):
    array = np.zeros((9, 8, 7), dtype)
    assert bounding_box(array) is None
    array[2, 7, 3] = array[5, 4, 3] = 1
    assert bounding_box(array) == (slice(2, 6), slice(4, 8), slice(3, 4))
    array[8, 0, 6] = array[0, 7, 0] = 1
    assert bounding_box(array) == whole_box(array.shape)


def test_whole_box_covers_array():
    array = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(array[whole_box(array.shape)], array)
