"""Channels on other grids than the first one: each is placed by its position in patient space."""

from __future__ import annotations

import numpy as np
import pytest

from conresnet.images import Volume
from conresnet.images.geometry import ModelSpace
from engine.volumes import ANISOTROPIC, anatomy, every_reordering, grid, random_volume, rotation, stored


def test_channel_in_other_orientation_is_still_a_view():
    reference = random_volume(ANISOTROPIC)
    space = ModelSpace(reference.grid, "SAR")
    for way in every_reordering():
        other = stored(random_volume(ANISOTROPIC, np.uint8, seed=1), way)
        array = space.to_model(other, 0)
        assert np.shares_memory(array, other.array)
        assert np.array_equal(array, space.to_model(random_volume(ANISOTROPIC, np.uint8, seed=1), 0))


@pytest.mark.parametrize("spacing", [None, (1, 1, 1)])
@pytest.mark.parametrize("turn", [None, rotation(12, axis=1)], ids=["straight", "oblique"])
def test_channel_on_another_grid_is_placed_correctly(spacing, turn):
    reference = grid((30, 30, 30), origin=(-15, -15, -15))
    other = grid((26, 40, 34), (1.1, 0.9, 1.4), origin=(-19, -18, -18), rotation=turn)
    space = ModelSpace(reference, "SAR", spacing)
    array = space.to_model(Volume(anatomy(other), other, "other"), -1)
    covered = space.covered(other)
    covered = np.ones(space.grid.shape, bool) if covered is None else covered
    assert covered.mean() > 0.8
    assert np.abs(array - anatomy(space.grid))[covered].max() < 4
    assert (array[~covered] <= 0).all() or (~covered).sum() == 0


def test_partial_channel_is_filled_in_its_own_type():
    reference = grid((6, 6, 6), origin=(0, 0, 0))
    part = random_volume(grid((4, 6, 6), origin=(0, 0, 2)), np.int16)
    space = ModelSpace(reference, "SAR")
    array = space.to_model(part, -5)
    assert array.dtype == np.int16
    assert (array[:2] == -5).all()
    assert np.array_equal(array[2:], part.array)
    assert space.to_model(part, 0.5).dtype == np.float32


def test_channel_outside_the_grid_is_only_fill():
    space = ModelSpace(grid(), "SAR")
    for turn in (None, rotation(10)):
        away = random_volume(grid(origin=(1000, 0, 0), rotation=turn))
        assert (space.to_model(away, -2) == -2).all()
