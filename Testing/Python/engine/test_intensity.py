"""Intensity steps: measured once, applied to any block."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conresnet import intensity
from conresnet.errors import UserError
from conresnet.intensity import split_steps
from conresnet.package import check_steps, parse_description
from conresnet.package.schema import Place
from engine.package_cases import document
from engine.volumes import every_reordering

Z_SCORE = {"step": "z_score", "over": "foreground", "outside": "zero"}
SPARSE_TAIL = {"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50}
PERCENTILES = {"step": "clip_percentiles", "low": 0.5, "high": 99.5}
SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "zero"}
GAUSSIAN = {"step": "subtract_gaussian", "sigma_mm": 5.0}
EQUALIZE = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}


def scan(dtype=np.float32, seed=0, shape=(20, 30, 40)) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2, 60, shape).astype(dtype)


def run(steps, array, foreground=None, inside=None):
    return intensity.apply(intensity.measure(steps, array, foreground, inside), array, foreground)


def small_blocks(monkeypatch):
    monkeypatch.setattr(intensity, "_BLOCK_VOXELS", 3000)


def test_z_score_uses_foreground(monkeypatch):
    small_blocks(monkeypatch)
    array = scan()
    mask = array > 90
    result = run([Z_SCORE], array, mask)
    inside = array[mask].astype(np.float64)
    assert result.dtype == np.float32
    assert np.allclose(result[mask], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert (result[~mask] == 0).all()
    kept = run([{**Z_SCORE, "outside": "keep"}], array, mask)
    assert np.allclose(kept, (array - inside.mean()) / inside.std(), atol=1e-5)
    over_all = run([{**Z_SCORE, "over": "all", "outside": "keep"}], array, mask)
    assert np.allclose(over_all, (array - array.mean()) / array.std(), atol=1e-4)


def test_block_matches_whole_image():
    array = scan(np.int16)
    mask = array > 40
    fitted = json.loads(json.dumps(intensity.measure([PERCENTILES, Z_SCORE], array, mask)))
    whole = intensity.apply(fitted, array, mask)
    where = (slice(3, 9), slice(5, 25), slice(30, 40))
    assert np.array_equal(intensity.apply(fitted, array[where], mask[where]), whole[where])


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
def test_measurement_does_not_depend_on_memory_layout(dtype, monkeypatch):
    small_blocks(monkeypatch)
    array = scan(dtype)
    mask = array > 40
    steps = [SPARSE_TAIL, PERCENTILES, Z_SCORE]
    expected = intensity.measure(steps, array, mask)
    for way in every_reordering():
        back = np.empty(way.view(array).shape, dtype)
        back = np.moveaxis(back, (0, 1, 2), way.axes)
        back = back[tuple(slice(None, None, -1) if flip else slice(None) for flip in way.flips)]
        back[...] = array
        assert intensity.measure(steps, back, mask) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(("low", "high"), [(0, 100), (0.5, 99.5), (10, 50.3), (2, 2.001)])
def test_percentiles_match_numpy(dtype, low, high, monkeypatch):
    small_blocks(monkeypatch)
    array = (scan() - 50).clip(0 if dtype == np.uint8 else -100, 255).astype(dtype)
    mask = scan(seed=1) > 60
    (fitted,) = intensity.measure([{"step": "clip_percentiles", "low": low, "high": high}], array, mask)
    assert np.allclose([fitted["low"], fitted["high"]], np.percentile(array[mask], [low, high]), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40), st.floats(0, 50), st.floats(51, 100)
)
def test_percentiles_match_numpy_for_any_values(values, low, high):
    array = np.array(values, np.float32).reshape(-1, 1, 1)
    (fitted,) = intensity.measure([{"step": "clip_percentiles", "low": low, "high": high}], array)
    expected = np.percentile(array.astype(np.float64), [low, high])
    scale = np.abs(array).max()
    assert np.allclose([fitted["low"], fitted["high"]], expected, rtol=1e-6, atol=1e-9 * scale)


def authors_tail(image: np.ndarray) -> float:
    counts = np.histogram(image, bins=int(image.max()))[0]
    return float(np.flatnonzero(counts >= 50)[-1])


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shift", [0, -37, 25])
def test_sparse_tail_is_cut_according_to_numpy_histogram(dtype, shift, monkeypatch):
    small_blocks(monkeypatch)
    array = (scan() + shift).astype(dtype)
    array[0, 0, :5] = 2000
    result = run([SPARSE_TAIL], array)
    limit = authors_tail(array)
    assert np.allclose(result, np.minimum(array, limit))
    assert result.max() == limit < 2000


def test_sparse_tail_of_huge_values_needs_no_huge_histogram(monkeypatch):
    array = scan(np.int64)
    expected = intensity.measure([SPARSE_TAIL], array)
    monkeypatch.setattr(intensity, "_DENSE_BINS", 10)
    assert intensity.measure([SPARSE_TAIL], array) == expected
    monkeypatch.undo()
    for factor in (1_000_000_000, 1e20):  # with 1e20, bin numbers exceed int64
        (huge,) = intensity.measure([SPARSE_TAIL], array * factor)
        assert huge["high"] == pytest.approx(expected[0]["high"] * factor, rel=1e-2)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 5, 6)), np.full((4, 5, 6), 0.7), np.full((4, 5, 6), -9), scan()[:1, :5]]
)
def test_without_a_sparse_tail_nothing_is_cut(array):
    array = array / array.max() * 0.9 if array.max() > 1 else array
    assert np.allclose(run([SPARSE_TAIL], array), array)


def test_authors_brats_steps():
    array = scan(np.int16)
    array[:, :10], array[:, 10, 0] = 0, 3000
    mask = array != 0
    result = run([SPARSE_TAIL, Z_SCORE], array, mask)
    cut = np.minimum(array, authors_tail(array)).astype(np.float64)
    expected = np.where(mask, (cut - cut[mask].mean()) / cut[mask].std(), 0)
    assert np.allclose(result, expected, atol=1e-5)


def test_clip_and_rescale():
    array = np.array([-1000, -100, 70, 240, 3000], np.int16).reshape(5, 1, 1)
    steps = [{"step": "clip", "low": -100, "high": 240}, {"step": "rescale", "from": [-100, 240], "to": [0, 1]}]
    assert np.allclose(run(steps, array).ravel(), [0, 0, 0.5, 1, 1])
    assert np.allclose(run([{"step": "rescale", "from": [0, 1], "to": [1, -1]}], array * 0).ravel(), 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.float16, np.float64, bool])
def test_any_type_is_normalized_without_modifying_input(dtype):
    array = (scan() % 120 // (60 if dtype is bool else 1)).astype(dtype)
    before = array.copy()
    result = run([PERCENTILES, {**Z_SCORE, "over": "all"}], array)
    assert np.array_equal(array, before)
    assert result.dtype == np.float32
    assert abs(result.mean()) < 1e-4
    assert result.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1, 1.7e6, 1e25])
@pytest.mark.parametrize("offset", [0, -1e5])
def test_huge_tiny_and_negative_values_give_the_same_numbers(scale, offset):
    array = scan(np.float64)
    result = run([Z_SCORE], array * scale + offset * scale)
    assert np.allclose(result, run([Z_SCORE], array), atol=1e-3)


def test_each_slice_is_normalized_separately(monkeypatch):
    small_blocks(monkeypatch)
    array = scan() * np.linspace(1, 9, 20, dtype=np.float32)[:, None, None]
    mask = array > 150
    result = run([SLICES], array, mask)
    kept = run([{**SLICES, "outside": "keep"}], array, mask)
    whole = run([{**SLICES, "over": "all", "outside": "keep"}], array, mask)
    for index, plane in enumerate(array.astype(np.float64)):
        inside = plane[mask[index]]
        expected = (plane - inside.mean()) / inside.std()
        assert np.allclose(kept[index], expected, atol=1e-4)
        assert np.allclose(result[index], np.where(mask[index], expected, 0), atol=1e-4)
        assert np.allclose(whole[index], (plane - plane.mean()) / plane.std(), atol=1e-4)


def test_block_gets_its_own_slices():
    array = scan(np.int16)
    mask = array > 40
    fitted = json.loads(json.dumps(intensity.measure([PERCENTILES, SLICES], array, mask)))
    whole = intensity.apply(fitted, array, mask)
    where = (slice(7, 12), slice(5, 25), slice(30, 40))
    assert np.array_equal(intensity.apply(fitted, array[where], mask[where], 7), whole[where])
    assert not np.array_equal(intensity.apply(fitted, array[where], mask[where], 6), whole[where])


def test_step_after_slice_normalization_is_measured_on_its_output(monkeypatch):
    small_blocks(monkeypatch)
    array = scan() + np.arange(20, dtype=np.float32)[:, None, None] * 1000
    mask = array % 7 > 1
    limits = intensity.measure([SLICES, PERCENTILES], array, mask)[1]
    values = run([SLICES], array, mask)[mask]
    assert np.allclose([limits["low"], limits["high"]], np.percentile(values, [0.5, 99.5]), rtol=1e-5)


def test_constant_slices_become_zero_and_empty_ones_are_measured_whole():
    array = scan(np.float64) + 0.1
    mask = array > 50
    mask[3:6] = False
    array[3], array[8] = 0.1, 7.7
    array[9] = 60 + 1e-9 * scan(np.float64)[9]
    for outside in ("zero", "keep"):
        result = run([{**SLICES, "outside": outside}], array, mask)
        assert np.isfinite(result).all() and np.abs(result[[3, 8, 9]]).max() < 1e-6
        assert (result[4] == 0).all() if outside == "zero" else result[4].std() == pytest.approx(1, abs=1e-4)


def test_slice_with_few_voxels_is_not_amplified():
    array = scan()
    mask = np.ones(array.shape, bool)
    array[:2], mask[:2] = 0, False
    array[1, 4, 4:6], mask[1, 4, 4:6] = [50, 50.1], True
    result = run([{**SLICES, "outside": "keep"}], array, mask)
    assert np.abs(result[1]).max() < 20 and np.abs(result[1][mask[1]]).max() < 0.1


def test_uncovered_slices_use_scale_of_channel():
    array, inside = scan(), np.ones((20, 30, 40), bool)
    inside[:2], inside[5, :10] = False, False
    array[:2], array[5, :10] = array[2:].mean() + array[2:].std(), 9999
    result = run([{**SLICES, "outside": "keep"}], array, None, inside)
    assert np.allclose(result[:2], 1, atol=0.05)
    assert result[5, 10:].mean() == pytest.approx(0, abs=1e-5) and result[5, 10:].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(1e-12, 0), (1.7e6, -3), (1e25, 1e4), (0.3, 1e6)])
def test_slice_normalization_does_not_depend_on_unit(scale, offset):
    array = scan(np.float64)
    assert np.allclose(run([SLICES], array * scale + offset * scale), run([SLICES], array), atol=1e-3)


def test_uncovered_voxels_are_not_measured():
    array = scan()
    inside = np.zeros(array.shape, bool)
    inside[:, :20] = True
    array[~inside] = 9999
    over_all = {**Z_SCORE, "over": "all", "outside": "keep"}
    assert intensity.measure([over_all], array, None, inside) == intensity.measure([over_all], array[:, :20])


def test_constant_image_and_empty_foreground_give_finite_values():
    assert (run([Z_SCORE], np.full((3, 4, 5), 7)) == 0).all()
    array = scan()
    assert np.isfinite(run([PERCENTILES, Z_SCORE], array, np.zeros(array.shape, bool))).all()


STEPS = Place("model.json", "intensity")


@pytest.mark.parametrize(
    ("field", "steps"),
    [
        ("[0].step", [{"step": "sharpen"}]),
        ("[0].step", [{"step": ["clip"]}]),
        ("[0].step", [{}]),
        ("[0]", [{"step": "clip", "low": 1}]),
        ("[0]", [{"step": "clip", "low": 1, "high": 2, "extra": 3}]),
        ("[0].low", [{"step": "clip", "low": 2, "high": 1}]),
        ("[0].low", [{"step": "clip", "low": "a", "high": 1}]),
        ("[0].low", [{"step": "clip_percentiles", "low": -1, "high": 50}]),
        ("[0].high", [{"step": "clip_percentiles", "low": 1, "high": 101}]),
        ("[1].low", [PERCENTILES, {"step": "clip_percentiles", "low": 50, "high": 50}]),
        ("[0].over", [{"step": "z_score", "over": "brain", "outside": "zero"}]),
        ("[0].outside", [{"step": "z_score", "over": "all", "outside": "one"}]),
        ("[0].from", [{"step": "rescale", "from": [0, 0], "to": [0, 1]}]),
        ("[0].from", [{"step": "rescale", "from": [0], "to": [0, 1]}]),
        ("[0].from", [{"step": "rescale", "from": 1, "to": [0, 1]}]),
        ("[0].to", [{"step": "rescale", "from": [0, 1], "to": [0, True]}]),
        ("[0].bins", [{"step": "clip_sparse_tail", "bins": 10, "min_count": 50}]),
        ("[0].min_count", [{"step": "clip_sparse_tail", "bins": "int_max", "min_count": 0}]),
        ("[0].high", [{"step": "clip", "low": 0, "high": 10**400}]),
        ("[0].low", [{"step": "clip", "low": float("nan"), "high": 1}]),
        ("[0].over", [{**SLICES, "over": "brain"}]),
        ("[0].sigma_mm", [{**GAUSSIAN, "sigma_mm": 0}]),
        ("[0].sigma_mm", [{**GAUSSIAN, "sigma_mm": 1001}]),
        ("[0].sigma_mm", [{**GAUSSIAN, "sigma_mm": [5, 5, 5]}]),
        ("[0].sigma_mm", [{**GAUSSIAN, "sigma_mm": float("inf")}]),
        ("[0].clip_limit", [{**EQUALIZE, "clip_limit": 0}]),
        ("[0].clip_limit", [{**EQUALIZE, "clip_limit": 40}]),
        ("[0].tiles", [{**EQUALIZE, "tiles": 0}]),
        ("[0].tiles", [{**EQUALIZE, "tiles": 65}]),
        ("[0].tiles", [{**EQUALIZE, "tiles": 8.0}]),
        ("[0].tiles", [{**EQUALIZE, "tiles": True}]),
        ("[1]", [SLICES, EQUALIZE]),
        ("[2]", [GAUSSIAN, PERCENTILES, EQUALIZE]),
    ],
)
def test_invalid_steps_are_refused_and_their_field_is_named(field, steps):
    with pytest.raises(UserError) as caught:
        check_steps(steps, STEPS)
    assert caught.value.code == "package-description"
    assert caught.value.values["field"] == f"intensity{field}"


def test_valid_steps_are_accepted():
    valid_steps = [SPARSE_TAIL, PERCENTILES, {"step": "clip", "low": -1, "high": 1.5}, Z_SCORE, SLICES]
    for filters in ([], [GAUSSIAN], [EQUALIZE, GAUSSIAN], [{**GAUSSIAN, "sigma_mm": 1e-9}]):
        check_steps(filters + valid_steps, STEPS)
        assert split_steps(filters + valid_steps) == (filters, valid_steps)


def test_filter_after_another_step_is_refused_and_both_are_named():
    with pytest.raises(UserError) as caught:
        check_steps([GAUSSIAN, SLICES, EQUALIZE], STEPS)
    assert caught.value.values["field"] == "intensity[2]"
    assert "before z_score_slices" in caught.value.values["reason"]


def test_steps_stay_as_written():
    steps = [{"step": "clip", "low": 0, "high": 1.5}, {"step": "rescale", "from": [0, 1], "to": [-1.0, 1]}]
    description = document()
    description["inputs"][0]["intensity"] = steps
    assert json.dumps(parse_description(description).to_dict()["inputs"][0]["intensity"]) == json.dumps(steps)
