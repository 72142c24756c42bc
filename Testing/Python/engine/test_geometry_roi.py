"""A region of interest in a model's space: which voxels it contains, and resampling back from it."""

from __future__ import annotations

import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.geometry import ModelSpace
from conresnet.images.inputs import BoxROI
from conresnet.images.preparation import prepare
from conresnet.package import parse_description
from engine.model_cases import description
from engine.volumes import anatomy, from_model, grid, model_array, random_volume, rotation


def test_roi_contains_voxels_whose_centers_it_contains():
    volume = random_volume(grid((10, 10, 10), origin=(0, 0, 0)))
    space, array = model_array(volume, roi=BoxROI.from_bounds([2, 5, 6.5, 3.5, -9, 1.4]))
    assert np.array_equal(array, volume.array[0:2, 4:7, 2:6])
    output = np.zeros_like(volume.array)
    space.output_view(output)[...] = 1
    assert output.sum() == array.size


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 1)])
def test_roi_of_a_resampled_image_keeps_voxel_positions(spacing):
    of = grid((30, 30, 30), (1.2, 1.2, 1.2), origin=(-18, -18, -18))
    volume = Volume(anatomy(of), of, "anatomy")
    whole_space, whole = model_array(volume, "SAR", spacing)
    space, array = model_array(volume, "SAR", spacing, BoxROI.from_bounds([-8, 7, -6, 9, -11, 4]))
    start = np.rint(np.linalg.inv(whole_space.grid.array_affine) @ [*space.grid.to_ras([0, 0, 0]), 1])[:3].astype(int)
    where = tuple(slice(a, a + size) for a, size in zip(start, array.shape, strict=True))
    assert np.allclose(array, whole[where], atol=1e-4)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 2.5, 2)])
@pytest.mark.parametrize("axes", [np.eye(3), rotation(30)], ids=["aligned", "rotated"])
def test_resampling_back_fills_only_the_roi(spacing, axes):
    of = grid((30, 30, 30), (1.2, 1.2, 1.2), origin=(-18, -18, -18))
    roi = BoxROI(np.array([1, 2, 3]), axes, np.array([12, 14, 16]))
    space = ModelSpace(of, "SAR", spacing, roi)
    result = np.zeros(of.shape, np.float32)
    from_model(space, np.ones(space.grid.shape), result)
    assert np.array_equal(result > 0.5, roi.contains(of.array_affine, of.shape))
    assert set(np.unique(result)) <= {0, 1}


def test_rotated_roi_has_a_mask_within_its_bounding_box():
    volume = random_volume(grid((20, 20, 20), origin=(0, 0, 0)))
    roi = BoxROI(np.array([10, 10, 10]), rotation(45), np.array([8, 8, 6]))
    space, array = model_array(volume, roi=roi)
    assert array.shape == (7, 11, 11)
    model = parse_description(description())
    inside = prepare(model, [volume], roi).inside
    assert inside.shape == array.shape
    assert 0.4 < inside.mean() < 0.7
    assert np.array_equal(inside, roi.contains(space.grid.array_affine, array.shape))
    straight = BoxROI(roi.center, rotation(90), roi.size)
    assert prepare(model, [volume], straight).inside is None


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
def test_roi_outside_the_image_is_refused(spacing, turn):
    of = grid((10, 10, 10), origin=(0, 0, 0), rotation=turn)
    with pytest.raises(UserError) as caught:
        ModelSpace(of, "SAR", spacing, BoxROI.from_bounds([50, 60, 0, 9, 0, 9]))
    assert caught.value.code == "roi-outside"


def test_roi_between_two_voxels_is_refused():
    with pytest.raises(UserError) as caught:
        ModelSpace(grid(origin=(0, 0, 0)), "SAR", None, BoxROI.from_bounds([0.2, 0.8, 0, 9, 0, 9]))
    assert caught.value.code == "roi-too-small"


def test_rotated_roi_that_misses_the_image_is_refused():
    roi = BoxROI(np.array([-6.0, -6.0, 5.0]), rotation(45), np.array([1.0, 22.0, 8.0]))
    roi = BoxROI(roi.center, rotation(-45), roi.size[[1, 0, 2]])
    with pytest.raises(UserError) as caught:
        ModelSpace(grid((10, 10, 10), origin=(0, 0, 0)), "SAR", None, roi)
    assert caught.value.code in ("roi-too-small", "roi-outside")


def test_roi_of_one_voxel_works():
    volume = random_volume(grid(origin=(0, 0, 0)))
    _, array = model_array(volume, roi=BoxROI.from_bounds([3, 3.4, 2, 2.4, 1, 1.4]))
    assert array.shape == (1, 1, 1)
    assert array[0, 0, 0] == volume.array[1, 2, 3]


@pytest.mark.parametrize("far", [1e4, 1e30])
def test_roi_larger_than_image_is_clipped_to_image(far):
    volume = random_volume(grid())
    for spacing in (None, (2, 2, 2)):
        whole = model_array(volume, spacing=spacing)[1]
        assert np.array_equal(model_array(volume, spacing=spacing, roi=BoxROI.from_bounds([-far, far] * 3))[1], whole)
