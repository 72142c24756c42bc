"""Steps that use a voxel's neighbors: subtraction of the smoothed image, and CLAHE of each slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist

from conresnet.errors import Cancelled
from conresnet.images.files import read_volume
from conresnet.images.geometry import ModelSpace
from conresnet.intensity import BINS, SliceEqualizer, filtered

GAUSSIAN = {"step": "subtract_gaussian", "sigma_mm": 5.0}
EQUALIZE = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}
ISOTROPIC = (1, 1, 1)


@pytest.fixture(scope="module")
def head(data_folder) -> np.ndarray:
    """A whole head with 1 mm voxels in axial slices 8 mm apart; side lengths are multiples of 8."""
    volume = read_volume(data_folder / "IXI_T1_2mm" / "IXI034.nii.gz")
    spacing = (8, 1, 1)
    return ModelSpace(volume.grid, "SAR", spacing).to_model(volume)[:, :240, :176]


@pytest.mark.parametrize("spacing", [(8, 1, 1), (2, 2, 2), (1.5, 6, 0.7)])
def test_smoothing_in_mm_matches_scipy(head, spacing):
    result = filtered([GAUSSIAN], head, spacing)
    sigma = [5 / mm for mm in spacing]
    expected = head - gaussian_filter(head.astype(np.float64), sigma, mode="nearest", truncate=8)
    assert result.dtype == np.float32 and result.shape == head.shape
    # The recursive filter is an approximation with an error of about half a percent.
    assert np.abs(result - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(result - expected).mean() < 0.01 * expected.std()


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_few_slices_are_smoothed_with_edge_padding(head, slices):
    thin = head[14 : 14 + slices]
    more = np.concatenate([thin[:1]] * 9 + [thin] + [thin[-1:]] * 9)
    expected = filtered([GAUSSIAN], more, (8, 1, 1))[9 : 9 + slices]
    assert np.abs(filtered([GAUSSIAN], thin, (8, 1, 1)) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("index", [8, 15, 20, 24])
@pytest.mark.parametrize("filters", [[], [GAUSSIAN]])
def test_equalization_matches_scikit_image(head, index, filters):
    plane = head[index : index + 1]
    if filters:
        plane = filtered(filters, plane, ISOTROPIC)
    result = filtered([{"step": "equalize", "clip_limit": 0.04, "tiles": 4}], plane, ISOTROPIC)[0]
    low, high = np.percentile(plane, [0.5, 99.5])
    between = (plane[0].clip(low, high).astype(np.float64) - low) / (high - low)
    reference = equalize_adapthist(between, kernel_size=(60, 44), clip_limit=0.04, nbins=BINS)
    # scikit-image uses 252 bins, limits in whole voxels, and an interpolation shifted by half a voxel.
    result = (result - result.min()) / (result.max() - result.min())
    assert np.abs(result - reference).mean() < 0.01
    assert np.abs(result - reference).max() < 0.06
    assert np.abs(between - reference).mean() > 0.03


def test_single_tile_without_limit_gives_ranks():
    plane = np.random.default_rng(0).integers(0, BINS, (50, 60))
    ranks = np.array([(plane <= level).mean() for level in range(BINS)])
    assert np.allclose(SliceEqualizer(plane.shape, 1, 1)(plane), ranks[plane], atol=1e-6)


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.1])
def test_contrast_is_limited(head, limit):
    plane = ((head[15] / head.max()) * (BINS - 1)).astype(int)
    counted = np.zeros((240, 512), bool)
    counted[:, :176] = True
    # Output of every level, next to the slice whose histogram determines it.
    levels = np.concatenate([plane, np.zeros((240, 80), int), np.arange(BINS)[None].repeat(240, 0)], axis=1)
    curve = SliceEqualizer(levels.shape, limit, 1)(levels, counted)[0, BINS:]
    assert np.diff(curve).min() >= 0 and np.diff(curve).max() <= 1.05 * limit
    assert curve[-1] == pytest.approx(1, abs=1e-5)


def test_tile_without_counted_voxels_keeps_levels():
    levels = np.random.default_rng(0).integers(0, BINS, (16, 24))
    result = SliceEqualizer(levels.shape, 0.01, 8)(levels, np.zeros(levels.shape, bool))
    assert np.allclose(result, (levels + 1) / BINS, atol=1e-5)


def test_air_does_not_affect_contrast_of_head(head):
    inside = head > 60
    expected = filtered([EQUALIZE], np.where(inside, head, 0), ISOTROPIC, inside)
    for air in (-5000, 300, 1e6):
        result = filtered([EQUALIZE], np.where(inside, head, air), ISOTROPIC, inside)
        assert np.abs(result - expected)[inside].max() < 0.02
        assert np.abs(result - expected)[inside].mean() < 1e-3
    counted = filtered([EQUALIZE], np.where(inside, head, 1e6), ISOTROPIC)
    assert np.abs(counted - expected)[inside].mean() > 0.05


def test_few_very_bright_voxels_have_little_effect(head):
    hot = head.copy()
    hot[15, 100, 50:60] = 1e7
    before, after = (filtered([EQUALIZE], array, ISOTROPIC, head > 60) for array in (head, hot))
    assert np.abs(after - before).mean() < 0.01


def test_local_contrast_is_increased_within_the_head(head):
    """White and gray matter differ little compared with air and fat. The filtered copy increases that difference."""
    inside = head > 60
    result = filtered([GAUSSIAN, EQUALIZE], head, (8, 1, 1), inside)
    plane, before = result[19, 60:180, 50:126], head[19, 60:180, 50:126] / np.percentile(head[inside], 99.5)
    assert plane.std() > 1.5 * before.std()


@pytest.mark.parametrize("value", [0, -3, 0.1, 1e12])
def test_constant_image_becomes_zero(value):
    array = np.full((5, 9, 7), value)
    for filters in ([GAUSSIAN], [EQUALIZE], [GAUSSIAN, EQUALIZE]):
        assert not filtered(filters, array, (3, 1, 1)).any()


def test_constant_slice_stays_constant(head):
    flat = head.copy()
    flat[3] = 77
    assert np.ptp(filtered([EQUALIZE], flat, ISOTROPIC)[3]) < 1e-6


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64, np.uint8])
def test_any_type_is_filtered_without_modifying_input(head, dtype):
    array = (head[10:16] / head.max() * 250).astype(dtype)
    before = array.copy()
    expected = filtered([GAUSSIAN, EQUALIZE], array.astype(np.float32), (8, 1, 1))
    view = np.moveaxis(np.moveaxis(array, 0, 2).copy(), 2, 0)
    assert np.array_equal(filtered([GAUSSIAN, EQUALIZE], view, (8, 1, 1)), expected)
    assert np.array_equal(array, before)


@settings(max_examples=80, deadline=None)
@given(
    arrays.arrays(np.int16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(-50, 50)),
    st.floats(1e-3, 1e6),
    st.floats(-1e6, 1e6),
    st.sampled_from([[GAUSSIAN], [EQUALIZE], [GAUSSIAN, EQUALIZE], [EQUALIZE, GAUSSIAN]]),
)
def test_filters_do_not_depend_on_unit(array, scale, offset, filters):
    plain = filtered(filters, array, (2, 1, 1.5))
    other = filtered(filters, array * scale + offset * scale, (2, 1, 1.5))
    assert np.isfinite(plain).all() and np.isfinite(other).all()
    if EQUALIZE in filters:
        assert plain.min() >= -1 and plain.max() <= 1 + 1e-5
        assert np.abs(plain - other).max() < 0.03
    else:
        assert np.abs(plain * scale - other).max() <= 1e-4 * scale * max(1, np.ptp(array))


def test_filter_can_be_cancelled(head):
    calls = []

    def stop():
        calls.append(None)
        if len(calls) > 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        filtered([GAUSSIAN, EQUALIZE], head, ISOTROPIC, check=stop)
    assert len(calls) == 6
