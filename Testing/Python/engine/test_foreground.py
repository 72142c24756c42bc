"""Distinguishing the image from the air around it."""

from __future__ import annotations

import numpy as np

from conresnet.images.preparation import background_value, foreground_box, foreground_mask
from engine.volumes import every_reordering


def head(background=-0.5) -> np.ndarray:
    array = np.full((8, 9, 10), background, np.float32)
    array[2:5, 3:7, 1:9] = 4
    return array


def test_background_is_most_frequent_corner_value_in_any_orientation():
    array = head()
    array[0, 0, 0], array[-1, 0, 0] = 7, -9
    for way in every_reordering():
        assert background_value(way.view(array)) == -0.5


def test_smallest_of_equally_frequent_corner_values_is_used():
    assert background_value(np.arange(27).reshape(3, 3, 3)) == 0
    array = head()
    array[0] = 3
    for way in every_reordering():
        assert background_value(way.view(array)) == -0.5


def test_mask_of_a_block_uses_background_of_whole_image():
    array = head()
    assert foreground_mask(array, "not_background").sum() == 3 * 4 * 8
    assert foreground_mask(array[2:5, 3:7, 1:9], "not_background", -0.5).all()
    assert foreground_mask(array, "all").all()


def test_box_holds_the_foreground_of_all_channels():
    other = np.zeros((8, 9, 10), np.uint8)
    other[6, 0, 4] = 1
    assert foreground_box([head()], "not_background", [-0.5]) == (slice(2, 5), slice(3, 7), slice(1, 9))
    assert foreground_box([head(), other], "not_background", [-0.5, 0]) == (slice(2, 7), slice(0, 7), slice(1, 9))
    assert foreground_box([head()], "not_background", [4]) == (slice(0, 8), slice(0, 9), slice(0, 10))


def test_box_covers_everything_if_there_is_no_foreground():
    whole = (slice(0, 8), slice(0, 9), slice(0, 10))
    assert foreground_box([np.zeros((8, 9, 10))], "not_background", [0]) == whole
    assert foreground_box([head()], "all", [-0.5]) == whole
