"""Grids and the directions of their axes."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet.images import Grid, axis_directions, reordering
from engine.volumes import CODES, every_reordering, grid, random_volume, rotation


def test_grid_round_trips_through_json():
    before = grid(rotation=rotation(20), spacing=(0.7, 1.1, 3))
    after = Grid.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after.shape == before.shape
    assert np.array_equal(after.affine, before.affine)


@pytest.mark.parametrize("values", [{}, {"shape": [1, 2, 3]}, {"shape": 3, "ijk_to_ras": 1}, None])
def test_invalid_json_of_a_grid_is_refused(values):
    with pytest.raises(UserError) as caught:
        Grid.from_dict(values)
    assert caught.value.code == "bad-grid"


def test_spacing_follows_the_index_axes_and_indices_follow_the_array():
    made = grid((2, 3, 4), spacing=(0.5, 2, 5), origin=(1, 2, 3))
    assert np.allclose(made.spacing, (0.5, 2, 5))
    assert made.voxel_volume == pytest.approx(5)
    assert np.allclose(made.to_ras([1, 2, 3]), (1 + 1.5, 2 + 4, 3 + 5))
    assert np.allclose(made.center, (1 + 0.75, 2 + 2, 3 + 2.5))


def test_grids_match_to_a_hundredth_of_a_voxel():
    assert grid().matches(grid(origin=(-3.001, 5, 20)))
    assert not grid().matches(grid(origin=(-3.1, 5, 20)))
    assert not grid((9, 11, 12)).matches(grid((9, 11, 13)))


@pytest.mark.parametrize("code", CODES)
def test_reordering_gives_requested_directions_and_keeps_positions(code):
    volume = random_volume(grid((2, 3, 4), spacing=(1, 2, 3)))
    way = reordering(volume.grid, code)
    after = way.grid(volume.grid)
    view = way.view(volume.array)
    assert np.allclose(after.direction[:, ::-1], axis_directions(code))
    assert np.shares_memory(view, volume.array)
    inverse = np.linalg.inv(volume.grid.array_affine)
    for index in np.ndindex(*after.shape):
        old = np.rint(inverse @ [*after.to_ras(index), 1])[:3].astype(int)
        assert view[index] == volume.array[tuple(old)]


def test_orientation_letters_match_nibabel():
    made = grid((4, 4, 4))
    for way in every_reordering():
        stored = way.grid(made)
        code = "".join(reversed(nibabel.aff2axcodes(stored.affine)))
        assert reordering(stored, code).axes == (0, 1, 2)
        assert reordering(stored, code).flips == (False, False, False)


@pytest.mark.parametrize("degrees", [10, 44.9, 45, 45.1, 60, 135])
def test_nearest_axes_do_not_depend_on_orientation(degrees):
    volume = random_volume(grid((2, 3, 4), rotation=rotation(degrees) @ rotation(degrees, axis=0)))
    expected = reordering(volume.grid, "SAR").view(volume.array)
    for way in every_reordering():
        again = reordering(way.grid(volume.grid), "SAR").view(way.view(volume.array))
        assert np.array_equal(again, expected)
