"""Results are extended to an image's borders where the model's grid does not reach them."""

from __future__ import annotations

import numpy as np
import pytest

from conresnet.images.geometry import ModelSpace, sample
from conresnet.images.inputs import BoxROI
from engine.volumes import from_model, grid, rotation

COARSER = [
    pytest.param((5, 6, 7), (1, 1, 1), (3.5, 1, 1), id="few slices"),
    pytest.param((35, 35, 35), (0.25, 0.25, 0.25), (2, 2, 2), id="fine voxels"),
    pytest.param((21, 22, 23), (0.7, 0.8, 0.9), (2.3, 3.1, 1), id="uneven"),
]


@pytest.mark.parametrize(("shape", "spacing", "wanted"), COARSER)
@pytest.mark.parametrize("turn", [None, rotation(20) @ rotation(-7, axis=0)], ids=["straight", "oblique"])
@pytest.mark.parametrize("is_limited", [False, True])
def test_result_reaches_every_voxel_of_the_image(shape, spacing, wanted, turn, is_limited):
    of = grid(shape, spacing, rotation=turn)
    roi = BoxROI(of.center, np.eye(3), np.full(3, 100.0)) if is_limited else None
    space = ModelSpace(of, "SAR", wanted, roi)
    assert not space.exact
    result = np.zeros(shape, np.float32)
    from_model(space, np.ones(space.grid.shape), result)
    assert (result == 1).all()


def test_last_values_extend_beyond_last_voxel_centers():
    space = ModelSpace(grid((6, 5, 5)), "SAR", (4, 1, 1))
    assert space.grid.shape == (2, 5, 5)
    values = np.broadcast_to(np.float32([10, 20])[:, None, None], space.grid.shape)
    result = np.zeros((6, 5, 5), np.float32)
    from_model(space, values, result)
    # Voxel centers of the image are at -2.5 .. 2.5 mm around its center, those of the model at -2 and 2.
    assert result[:, 2, 2].tolist() == [10, 11.25, 13.75, 16.25, 18.75, 20]


@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
def test_part_of_a_result_ends_at_its_own_borders(turn):
    """Otherwise, a slab of a growing result would overlap its neighbors."""
    of = grid((24, 24, 24), rotation=turn)
    space = ModelSpace(of, "SAR", (3, 3, 3))
    part = np.ones((2, *space.grid.shape[1:]), np.float32)
    result = np.zeros(of.shape, np.float32)
    view = space.reference_view(result)
    for where, block in space.slabs_from_model(part[None], (3, 0, 0)):
        view[where] = block[0]
    heights = (np.linalg.inv(space.grid.array_affine) @ [*of.to_ras((0, 0, 0)), 1])[0]
    slope = (np.linalg.inv(space.grid.array_affine) @ of.array_affine)[0, :3]
    places = heights + np.tensordot(slope, np.indices(of.shape), 1)
    assert (result[(places > 2.51) & (places < 4.49)] == 1).all()
    assert (result[(places < 2.48) | (places > 4.52)] == 0).all()


@pytest.mark.parametrize("place", [-0.7, 3.7])
def test_slice_outside_the_image_is_filled_and_image_is_unchanged(place):
    image = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3)
    before = image.copy()
    index_map = np.eye(4)
    index_map[0, 3] = place
    assert (sample(image, index_map, (1, 3, 3), fill=-99) == -99).all()
    np.testing.assert_array_equal(image, before)
