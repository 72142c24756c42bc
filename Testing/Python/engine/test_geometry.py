"""Cases resampled to a model's space and results back: anatomy must not move in patient space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.geometry import ModelSpace
from conresnet.images.inputs import BoxROI
from engine.volumes import (
    ANISOTROPIC,
    CODES,
    anatomy,
    every_reordering,
    from_model,
    grid,
    model_array,
    random_volume,
    rotation,
    stored,
)

ISOTROPIC = grid()
MODEL_SPACINGS = [None, (1, 1, 1), (1.7, 1, 0.9), (4, 3, 2)]


@pytest.mark.parametrize("of", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("spacing", MODEL_SPACINGS)
@pytest.mark.parametrize("roi", [None, BoxROI.from_bounds([0, 6, 7, 11, 22, 34])], ids=["whole", "roi"])
def test_all_48_orientations_give_bitwise_same_model_array(of, spacing, roi):
    volume = random_volume(of)
    space, expected = model_array(volume, "SLP", spacing, roi)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SLP", spacing, roi)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
        assert again.grid.matches(space.grid, 1e-9)


@pytest.mark.parametrize("spacing", MODEL_SPACINGS)
def test_all_48_orientations_give_same_result_on_their_own_grids(spacing):
    volume = random_volume(ANISOTROPIC)
    space, array = model_array(volume, "SAR", spacing)
    expected = np.zeros(volume.grid.shape, np.float32)
    from_model(space, array, expected)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SAR", spacing)
        result = np.zeros(again.reference.shape, np.float32)
        from_model(again, array, result)
        assert np.allclose(result, way.view(expected), atol=1e-3)


@pytest.mark.parametrize("code", CODES)
def test_every_model_orientation_is_a_view_and_output_view_inverts_it(code):
    volume = random_volume(ANISOTROPIC)
    space, array = model_array(volume, code)
    assert space.exact
    assert np.shares_memory(array, volume.array)
    output = np.zeros_like(volume.array)
    space.output_view(output)[...] = array
    assert np.array_equal(output, volume.array)


def test_voxel_positions_match_grid():
    of = grid((20, 24, 28), spacing=(1.5, 1.2, 2.0), origin=(-20, -14, -19))
    for code in ("SAR", "LIP", "ASL"):
        for spacing in (None, (1, 1, 1), (2.5, 1.2, 1.5)):
            space, array = model_array(Volume(anatomy(of), of, "anatomy"), code, spacing)
            assert np.abs(array - anatomy(space.grid))[2:-2, 2:-2, 2:-2].max() < 4


def test_spacing_of_image_is_kept():
    volume = random_volume(grid(spacing=(1.0004, 1, 0.9996)))
    space, array = model_array(volume, spacing=(1, 1, 1))
    assert space.exact
    assert np.array_equal(array, volume.array)


def test_up_to_half_a_degree_counts_as_axis_aligned():
    straight = ModelSpace(grid(rotation=rotation(0.4)), "SAR", (1, 1, 1))
    tilted = ModelSpace(grid(rotation=rotation(0.7)), "SAR", (1, 1, 1))
    assert straight.exact
    assert not tilted.exact
    assert np.allclose(tilted.grid.direction, np.eye(3))


def test_oblique_image_without_model_spacing_keeps_its_voxels():
    volume = random_volume(grid(rotation=rotation(30)))
    space, array = model_array(volume)
    assert space.exact
    assert np.shares_memory(array, volume.array)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 1)])
def test_oblique_image_shows_same_anatomy_in_model_space(spacing):
    turn = rotation(17) @ rotation(-9, axis=0) @ rotation(6, axis=1)
    straight = grid((50, 50, 50), origin=(-25, -25, -25))
    oblique = grid((84, 84, 84), rotation=turn, origin=turn @ [-42, -42, -42])
    first, a = model_array(Volume(anatomy(straight), straight, "straight"), "SAR", spacing)
    second, b = model_array(Volume(anatomy(oblique), oblique, "oblique"), "SAR", spacing)
    assert np.allclose(second.grid.direction, first.grid.direction)
    assert np.abs(b - anatomy(second.grid))[second.covered(oblique)].max() < 2
    a_at_b = first.to_model(Volume(b, second.grid, "b"), 0)
    assert np.abs(a - a_at_b).max() < 2


def test_all_48_orientations_of_an_oblique_image_give_same_model_array():
    volume = random_volume(grid((10, 12, 14), (0.9, 1, 1.5), rotation=rotation(25) @ rotation(8, axis=1)))
    space, expected = model_array(volume, "SAR", (1, 1, 1), fill=-7)
    for way in every_reordering():
        again, array = model_array(stored(volume, way), "SAR", (1, 1, 1), fill=-7)
        assert again.grid.matches(space.grid, 1e-6)
        assert np.array_equal(array, expected)


def test_outside_of_an_oblique_image_is_filled_and_masked():
    of = grid((20, 20, 20), rotation=rotation(45), origin=(0, 0, 0))
    volume = Volume(np.full(of.shape, 5, np.uint8), of, "even")
    space, array = model_array(volume, "SAR", (1, 1, 1), fill=-3)
    covered = space.covered(of)
    assert set(np.unique(array)) == {-3, 5}
    assert np.array_equal(array == 5, covered)
    assert 0.4 < covered.mean() < 0.6


@pytest.mark.parametrize("turn", [None, rotation(20)], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 2), (0.7, 1.9, 1.2)])
def test_resampling_back_restores_smooth_values(turn, spacing):
    of = grid((24, 26, 30), (1.3, 1.2, 1.9), origin=np.array([-19, -15, -22]), rotation=turn)
    space = ModelSpace(of, "PIR", spacing)
    result = np.full(of.shape, 9, np.float32)
    from_model(space, anatomy(space.grid), result)
    error = np.abs(result - anatomy(of))[2:-2, 2:-2, 2:-2]
    assert error.max() < 4


def test_resampling_back_works_by_slab_for_components_and_small_types():
    of = grid((40, 9, 8), (1, 1.5, 0.7))
    space = ModelSpace(of, "ARS", (1, 1, 1))
    values = np.random.default_rng(0).random((2, *space.grid.shape)).astype(np.float16)
    result = np.zeros((2, *of.shape), np.float16)
    from_model(space, values, result)
    for component in range(2):
        single = np.zeros(of.shape, np.float16)
        from_model(space, values[component], single)
        assert np.array_equal(result[component], single)
    blocks = [block for _, block in space.slabs_from_model(values)]
    assert len(blocks) == 3
    assert all(block.dtype == np.float32 and block.shape[0] == 2 for block in blocks)


def test_from_model_matches_output_view():
    volume = random_volume(ANISOTROPIC, np.float32)
    space, array = model_array(volume, "LSA", None, BoxROI.from_bounds([0, 6, 7, 11, 22, 34]))
    by_view, by_sampling = np.zeros((2, *ANISOTROPIC.shape), np.float32)
    space.output_view(by_view)[...] = array
    from_model(space, array, by_sampling)
    assert np.array_equal(by_view, by_sampling)


def test_output_view_refuses_a_resampled_space():
    space = ModelSpace(grid(), "SAR", (2, 2, 2))
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
def test_background_keeps_exact_value(value, turn, spacing):
    """Rounding would turn it into foreground."""
    of = grid((20, 20, 20), rotation=turn)
    _, array = model_array(Volume(np.full(of.shape, value), of, "even"), "SAR", spacing, fill=value)
    assert (array == np.float32(value)).all()


# Unusual images


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
def test_single_slice_is_resampled_there_and_back(shape, turn, spacing):
    of = grid(shape, (1.2, 1.2, 3), rotation=turn)
    volume = Volume(np.full(shape, 7, np.int16), of, "slice")
    space, array = model_array(volume, spacing=spacing, fill=7)
    assert (array == 7).all()
    result = np.zeros(shape, np.float32)
    from_model(space, array, result)
    if turn is None:
        assert (result == 7).all()


def test_read_only_and_strided_arrays_are_accepted():
    values = np.random.default_rng(0).integers(0, 9, (20, 22, 26)).astype(np.int16)
    values.setflags(write=False)
    volume = Volume(values[::2, ::2, ::2], grid((10, 11, 13)), "strided")
    _, array = model_array(volume, "SAR", (2, 2, 2))
    _, same = model_array(Volume(volume.array.copy(), volume.grid, "copy"), "SAR", (2, 2, 2))
    assert np.array_equal(array, same)


def test_grid_too_large_for_memory_is_refused_before_allocation():
    huge = grid((100, 100, 100), (99, 99, 99))
    with pytest.raises(UserError) as caught:
        ModelSpace(huge, "SAR", (0.1, 0.1, 0.1))
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
def test_orientation_does_not_matter_for_any_image(shape, spacing, wanted, origin, code, way, angle):
    volume = random_volume(grid(shape, spacing, origin, rotation(angle, axis=1)))
    space, expected = model_array(volume, code, wanted, fill=-1)
    again, array = model_array(stored(volume, way), code, wanted, fill=-1)
    assert again.grid.matches(space.grid, 1e-6)
    assert np.array_equal(array, expected)
