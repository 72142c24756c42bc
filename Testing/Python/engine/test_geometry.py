"""A case brought into a model's space and the answer back: nothing moves in the patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conresnet.errors import UserError
from conresnet.geometry import ModelSpace
from conresnet.grid import Volume
from conresnet.roi import BoxROI
from engine.volumes import CODES, anatomy, every_reordering, grid, random_volume, rotation, stored

ISOTROPIC = grid()
ANISOTROPIC = grid((7, 11, 13), spacing=(0.8, 1.3, 3.1), origin=(-3.123456, 5.5, 20))
MODEL_SPACINGS = [None, (1, 1, 1), (1.7, 1, 0.9), (4, 3, 2)]


def model_array(volume: Volume, code="SAR", spacing=None, roi=None, fill=0.0):
    space = ModelSpace.fit(volume.grid, code, spacing, roi)
    return space, space.to_model(volume, fill)


@pytest.mark.parametrize("of", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("spacing", MODEL_SPACINGS)
@pytest.mark.parametrize("roi", [None, BoxROI.from_bounds([0, 6, 7, 11, 22, 34])], ids=["whole", "roi"])
def test_all_48_storages_give_bitwise_the_same_model_array(of, spacing, roi):
    volume = random_volume(of)
    space, expected = model_array(volume, "SLP", spacing, roi)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SLP", spacing, roi)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
        assert again.grid.matches(space.grid, 1e-9)


@pytest.mark.parametrize("spacing", MODEL_SPACINGS)
def test_all_48_storages_give_the_same_answer_on_their_own_grids(spacing):
    volume = random_volume(ANISOTROPIC)
    space, array = model_array(volume, "SAR", spacing)
    expected = np.zeros(volume.grid.shape, np.float32)
    space.from_model(array, expected)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SAR", spacing)
        result = np.zeros(again.reference.shape, np.float32)
        again.from_model(array, result)
        assert np.allclose(result, way.view(expected), atol=1e-3)


@pytest.mark.parametrize("code", CODES)
def test_every_model_orientation_is_a_view_and_its_output_view_leads_back(code):
    volume = random_volume(ANISOTROPIC)
    space, array = model_array(volume, code)
    assert space.exact
    assert np.shares_memory(array, volume.array)
    output = np.zeros_like(volume.array)
    space.output_view(output)[...] = array
    assert np.array_equal(output, volume.array)


def test_voxels_lie_where_the_grid_says():
    of = grid((20, 24, 28), spacing=(1.5, 1.2, 2.0), origin=(-20, -14, -19))
    for code in ("SAR", "LIP", "ASL"):
        for spacing in (None, (1, 1, 1), (2.5, 1.2, 1.5)):
            space, array = model_array(Volume(anatomy(of), of, "anatomy"), code, spacing)
            assert np.abs(array - anatomy(space.grid))[2:-2, 2:-2, 2:-2].max() < 4


def test_the_images_own_spacing_is_left_alone():
    volume = random_volume(grid(spacing=(1.0004, 1, 0.9996)))
    space, array = model_array(volume, spacing=(1, 1, 1))
    assert space.exact
    assert np.array_equal(array, volume.array)


def test_half_a_degree_counts_as_straight_and_more_does_not():
    straight = ModelSpace.fit(grid(rotation=rotation(0.4)), "SAR", (1, 1, 1))
    tilted = ModelSpace.fit(grid(rotation=rotation(0.7)), "SAR", (1, 1, 1))
    assert straight.exact
    assert not tilted.exact
    assert np.allclose(tilted.grid.direction, np.eye(3))


def test_an_oblique_image_without_a_model_spacing_keeps_its_voxels():
    volume = random_volume(grid(rotation=rotation(30)))
    space, array = model_array(volume)
    assert space.exact
    assert np.shares_memory(array, volume.array)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 1)])
def test_an_oblique_image_is_the_same_anatomy_in_the_models_space(spacing):
    turn = rotation(17) @ rotation(-9, axis=0) @ rotation(6, axis=1)
    straight = grid((50, 50, 50), origin=(-25, -25, -25))
    oblique = grid((84, 84, 84), rotation=turn, origin=turn @ [-42, -42, -42])
    first, a = model_array(Volume(anatomy(straight), straight, "straight"), "SAR", spacing)
    second, b = model_array(Volume(anatomy(oblique), oblique, "oblique"), "SAR", spacing)
    assert np.allclose(second.grid.direction, first.grid.direction)
    assert np.abs(b - anatomy(second.grid))[second.covered(oblique)].max() < 2
    a_at_b = first.to_model(Volume(b, second.grid, "b"), 0)
    assert np.abs(a - a_at_b).max() < 2


def test_all_48_storages_of_an_oblique_image_give_the_same_model_array():
    volume = random_volume(grid((10, 12, 14), (0.9, 1, 1.5), rotation=rotation(25) @ rotation(8, axis=1)))
    space, expected = model_array(volume, "SAR", (1, 1, 1), fill=-7)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SAR", (1, 1, 1), fill=-7)
        assert again.grid.matches(space.grid, 1e-6)
        assert np.array_equal(array, expected)


def test_outside_an_oblique_image_is_filled_and_known():
    of = grid((20, 20, 20), rotation=rotation(45), origin=(0, 0, 0))
    volume = Volume(np.full(of.shape, 5, np.uint8), of, "even")
    space, array = model_array(volume, "SAR", (1, 1, 1), fill=-3)
    covered = space.covered(of)
    assert set(np.unique(array)) == {-3, 5}
    assert np.array_equal(array == 5, covered)
    assert 0.4 < covered.mean() < 0.6


@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 2), (0.7, 1.9, 1.2)])
def test_the_way_back_puts_smooth_values_where_they_were(turn, spacing):
    of = grid((24, 26, 30), (1.3, 1.2, 1.9), origin=np.array([-19, -15, -22]), rotation=turn)
    space = ModelSpace.fit(of, "PIR", spacing)
    result = np.full(of.shape, 9, np.float32)
    space.from_model(anatomy(space.grid), result)
    error = np.abs(result - anatomy(of))[2:-2, 2:-2, 2:-2]
    assert error.max() < 4


def test_the_way_back_works_slab_by_slab_for_components_and_small_types():
    of = grid((40, 9, 8), (1, 1.5, 0.7))
    space = ModelSpace.fit(of, "ARS", (1, 1, 1))
    values = np.random.default_rng(0).random((2, *space.grid.shape)).astype(np.float16)
    result = np.zeros((2, *of.shape), np.float16)
    space.from_model(values, result)
    for component in range(2):
        single = np.zeros(of.shape, np.float16)
        space.from_model(values[component], single)
        assert np.array_equal(result[component], single)
    blocks = [block for _, block in space.slabs_from_model(values)]
    assert len(blocks) == 3
    assert all(block.dtype == np.float32 and block.shape[0] == 2 for block in blocks)


def test_the_exact_way_back_through_from_model_is_the_same_as_the_view():
    volume = random_volume(ANISOTROPIC, np.float32)
    space, array = model_array(volume, "LSA", None, BoxROI.from_bounds([0, 6, 7, 11, 22, 34]))
    by_view, by_sampling = np.zeros((2, *ANISOTROPIC.shape), np.float32)
    space.output_view(by_view)[...] = array
    space.from_model(array, by_sampling)
    assert np.array_equal(by_view, by_sampling)


def test_output_view_refuses_a_resampled_space():
    space = ModelSpace.fit(grid(), "SAR", (2, 2, 2))
    with pytest.raises(ValueError, match="from_model"):
        space.output_view(np.zeros(grid().shape))


def test_strong_downsampling_averages():
    of = grid((40, 40, 40))
    checkers = (np.indices(of.shape).sum(axis=0) % 2 * 100).astype(np.uint8)
    for turn in (None, rotation(10)):
        tilted = grid((40, 40, 40), rotation=turn)
        _, array = model_array(Volume(checkers, tilted, "checkers"), "SAR", (4, 4, 4), fill=50)
        assert np.abs(array - 50).max() < 8


@pytest.mark.parametrize("value", [-1024, 0.1, 1.7e6])
@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [(0.7, 0.9, 1.3), (2.9, 3.1, 2.2)])
def test_background_keeps_its_very_value(value, turn, spacing):
    """Rounding would turn it into foreground."""
    of = grid((20, 20, 20), rotation=turn)
    _, array = model_array(Volume(np.full(of.shape, value), of, "even"), "SAR", spacing, fill=value)
    assert (array == np.float32(value)).all()


# Channels on other grids


def test_a_channel_stored_another_way_is_still_a_view():
    reference = random_volume(ANISOTROPIC)
    space = ModelSpace.fit(reference.grid, "SAR")
    for way in every_reordering():
        other = stored(random_volume(ANISOTROPIC, np.uint8, seed=1), way)
        array = space.to_model(other, 0)
        assert np.shares_memory(array, other.array)
        assert np.array_equal(array, space.to_model(random_volume(ANISOTROPIC, np.uint8, seed=1), 0))


@pytest.mark.parametrize("spacing", [None, (1, 1, 1)])
@pytest.mark.parametrize("turn", [None, rotation(12, axis=1)], ids=["straight", "oblique"])
def test_a_channel_on_another_grid_lands_in_place(spacing, turn):
    reference = grid((30, 30, 30), origin=(-15, -15, -15))
    other = grid((26, 40, 34), (1.1, 0.9, 1.4), origin=(-19, -18, -18), rotation=turn)
    space = ModelSpace.fit(reference, "SAR", spacing)
    array = space.to_model(Volume(anatomy(other), other, "other"), -1)
    covered = space.covered(other)
    covered = np.ones(space.grid.shape, bool) if covered is None else covered
    assert covered.mean() > 0.8
    assert np.abs(array - anatomy(space.grid))[covered].max() < 4
    assert (array[~covered] <= 0).all() or (~covered).sum() == 0


def test_a_channel_that_covers_part_is_filled_up_in_its_own_type():
    reference = grid((6, 6, 6), origin=(0, 0, 0))
    part = random_volume(grid((4, 6, 6), origin=(0, 0, 2)), np.int16)
    space = ModelSpace.fit(reference, "SAR")
    array = space.to_model(part, -5)
    assert array.dtype == np.int16
    assert (array[:2] == -5).all()
    assert np.array_equal(array[2:], part.array)
    assert space.to_model(part, 0.5).dtype == np.float32


def test_a_channel_that_lies_elsewhere_is_all_fill():
    space = ModelSpace.fit(grid(), "SAR")
    for turn in (None, rotation(10)):
        away = random_volume(grid(origin=(1000, 0, 0), rotation=turn))
        assert (space.to_model(away, -2) == -2).all()


# Regions of interest


def test_a_roi_cuts_the_voxels_whose_centers_it_holds():
    volume = random_volume(grid((10, 10, 10), origin=(0, 0, 0)))
    space, array = model_array(volume, roi=BoxROI.from_bounds([2, 5, 6.5, 3.5, -9, 1.4]))
    assert np.array_equal(array, volume.array[0:2, 4:7, 2:6])
    assert space.roi_mask is None
    output = np.zeros_like(volume.array)
    space.output_view(output)[...] = 1
    assert output.sum() == array.size


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 1)])
def test_a_roi_of_a_resampled_image_leaves_its_voxels_in_place(spacing):
    of = grid((30, 30, 30), (1.2, 1.2, 1.2), origin=(-18, -18, -18))
    volume = Volume(anatomy(of), of, "anatomy")
    whole_space, whole = model_array(volume, "SAR", spacing)
    space, array = model_array(volume, "SAR", spacing, BoxROI.from_bounds([-8, 7, -6, 9, -11, 4]))
    start = np.rint(np.linalg.inv(whole_space.grid.array_affine) @ [*space.grid.to_ras([0, 0, 0]), 1])[:3].astype(int)
    where = tuple(slice(a, a + size) for a, size in zip(start, array.shape, strict=True))
    assert np.allclose(array, whole[where], atol=1e-4)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 2.5, 2)])
@pytest.mark.parametrize("axes", [np.eye(3), rotation(30)], ids=["aligned", "rotated"])
def test_the_way_back_of_a_resampled_roi_fills_just_the_box(spacing, axes):
    of = grid((30, 30, 30), (1.2, 1.2, 1.2), origin=(-18, -18, -18))
    roi = BoxROI(np.array([1, 2, 3]), axes, np.array([12, 14, 16]))
    space = ModelSpace.fit(of, "SAR", spacing, roi)
    result = np.zeros(of.shape, np.float32)
    space.from_model(np.ones(space.grid.shape), result)
    assert np.array_equal(result > 0.5, roi.contains(of.array_affine, of.shape))
    assert set(np.unique(result)) <= {0, 1}


def test_a_rotated_roi_has_a_mask_within_its_bounding_box():
    volume = random_volume(grid((20, 20, 20), origin=(0, 0, 0)))
    roi = BoxROI(np.array([10, 10, 10]), rotation(45), np.array([8, 8, 6]))
    space, array = model_array(volume, roi=roi)
    assert array.shape == (7, 11, 11)
    assert space.roi_mask.shape == array.shape
    assert 0.4 < space.roi_mask.mean() < 0.7
    straight = ModelSpace.fit(volume.grid, "SAR", None, BoxROI(roi.center, rotation(90), roi.size))
    assert straight.roi_mask is None


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
def test_a_roi_outside_the_image_is_refused(spacing, turn):
    of = grid((10, 10, 10), origin=(0, 0, 0), rotation=turn)
    with pytest.raises(UserError, match="outside the image") as caught:
        ModelSpace.fit(of, "SAR", spacing, BoxROI.from_bounds([50, 60, 0, 9, 0, 9]))
    assert caught.value.code == "roi-outside"


def test_a_roi_between_two_voxels_is_refused():
    with pytest.raises(UserError, match="holds no voxel") as caught:
        ModelSpace.fit(grid(origin=(0, 0, 0)), "SAR", None, BoxROI.from_bounds([0.2, 0.8, 0, 9, 0, 9]))
    assert caught.value.code == "roi-too-small"


def test_a_rotated_roi_that_passes_the_image_by_is_refused():
    roi = BoxROI(np.array([-6.0, -6.0, 5.0]), rotation(45), np.array([1.0, 22.0, 8.0]))
    roi = BoxROI(roi.center, rotation(-45), roi.size[[1, 0, 2]])
    with pytest.raises(UserError) as caught:
        ModelSpace.fit(grid((10, 10, 10), origin=(0, 0, 0)), "SAR", None, roi)
    assert caught.value.code in ("roi-too-small", "roi-outside")


def test_a_one_voxel_roi_works():
    volume = random_volume(grid(origin=(0, 0, 0)))
    _, array = model_array(volume, roi=BoxROI.from_bounds([3, 3.4, 2, 2.4, 1, 1.4]))
    assert array.shape == (1, 1, 1)
    assert array[0, 0, 0] == volume.array[1, 2, 3]


@pytest.mark.parametrize("far", [1e4, 1e30])
def test_a_roi_larger_than_the_image_is_the_whole_image(far):
    volume = random_volume(grid())
    for spacing in (None, (2, 2, 2)):
        whole = model_array(volume, spacing=spacing)[1]
        assert np.array_equal(model_array(volume, spacing=spacing, roi=BoxROI.from_bounds([-far, far] * 3))[1], whole)


# Odd images


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float16, np.float64, bool])
@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
def test_every_type_is_resampled(dtype, turn):
    volume = random_volume(grid(rotation=turn), np.uint8)
    expected = model_array(Volume(volume.array.astype(dtype).astype(np.float32), volume.grid, "f"), "SAR", (2, 2, 2))[1]
    array = model_array(Volume(volume.array.astype(dtype), volume.grid, "v"), "SAR", (2, 2, 2))[1]
    assert array.dtype == np.float32
    assert np.allclose(array, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 1, 9), (8, 9, 1), (1, 1, 1)])
@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [None, (1, 1, 1), (5, 5, 5)])
def test_one_slice_goes_there_and_back(shape, turn, spacing):
    of = grid(shape, (1.2, 1.2, 3), rotation=turn)
    volume = Volume(np.full(shape, 7, np.int16), of, "slice")
    space, array = model_array(volume, spacing=spacing, fill=7)
    assert (array == 7).all()
    result = np.zeros(shape, np.float32)
    space.from_model(array, result)
    if turn is None:
        assert (result == 7).all()


def test_read_only_and_strided_arrays_are_fine():
    values = np.random.default_rng(0).integers(0, 9, (20, 22, 26)).astype(np.int16)
    values.setflags(write=False)
    volume = Volume(values[::2, ::2, ::2], grid((10, 11, 13)), "strided")
    _, array = model_array(volume, "SAR", (2, 2, 2))
    _, same = model_array(Volume(volume.array.copy(), volume.grid, "copy"), "SAR", (2, 2, 2))
    assert np.array_equal(array, same)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1), (np.nan, 1, 1)])
def test_a_wrong_model_spacing_is_refused(spacing):
    with pytest.raises(UserError, match="three positive numbers"):
        ModelSpace.fit(grid(), "SAR", spacing)


def test_a_grid_too_large_to_hold_is_refused_before_it_is_made():
    huge = grid((100, 100, 100), (99, 99, 99))
    with pytest.raises(UserError, match="draw an ROI") as caught:
        ModelSpace.fit(huge, "SAR", (0.1, 0.1, 0.1))
    assert caught.value.code == "image-too-large"


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    wanted=st.tuples(*[st.floats(0.5, 4)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    code=st.sampled_from(CODES),
    way=st.sampled_from(list(every_reordering())),
    angle=st.sampled_from([0, 0, 0.3, 33]),
)
def test_whatever_the_image_its_storage_does_not_matter(shape, spacing, wanted, origin, code, way, angle):
    volume = random_volume(grid(shape, spacing, origin, rotation(angle, axis=1)))
    space, expected = model_array(volume, code, wanted, fill=-1)
    again, array = model_array(stored(volume, way), code, wanted, fill=-1)
    assert again.grid.matches(space.grid, 1e-6)
    assert np.array_equal(array, expected)
