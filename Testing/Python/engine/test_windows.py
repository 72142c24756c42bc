"""Positions of sliding windows."""

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conresnet.inference import GROWTH, MULTIPLE, STRETCH, authors_windows, counted_windows, fitted_windows


def whole(*shape):
    return tuple(slice(0, side) for side in shape)


def test_brain_of_the_paper_needs_two_fitted_windows():
    box = (slice(3, 143), slice(30, 209), slice(50, 199))
    plan = fitted_windows(box, (155, 240, 240), (80, 160, 160), 0.25)
    assert plan.size == (80, 184, 152)
    assert [plan.start(window) for window in plan] == [(3, 28, 49), (63, 28, 49)]


def test_authors_tile_the_brats_volume_with_twelve_windows():
    plan = authors_windows((155, 240, 240), (80, 160, 160))
    assert plan.size == (80, 160, 160)
    assert plan.starts == ((0, 54, 75), (0, 80), (0, 80))
    assert len(plan) == len(list(plan)) == 12


@pytest.mark.parametrize(("side", "starts"), [(50, (0,)), (80, (0,)), (81, (0, 1)), (134, (0, 54)), (135, (0, 54, 55))])
def test_last_window_of_the_authors_is_shifted_inside(side, starts):
    assert authors_windows((side, 10, 10), (80, 10, 10)).starts[0] == starts


axes = st.tuples(st.integers(1, 150), st.integers(0, 90), st.integers(0, 90), st.integers(1, 80))


@given(st.lists(axes, min_size=3, max_size=3), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
# One more window along H would not make them smaller, and those along W cannot be smaller.
@example([(367, 0, 0, 34), (298, 0, 0, 37), (150, 0, 0, 5)], 0.25)
def test_fitted_windows_cover_the_box_and_respect_limits(axes, overlap):
    shape = [length + before + after for length, before, after, _ in axes]
    box = [slice(before, before + length) for length, before, _, _ in axes]
    window = [side for *_, side in axes]
    plan = fitted_windows(box, shape, window, overlap)
    rounded = [MULTIPLE * math.ceil(side / MULTIPLE) for side in window]
    assert math.prod(plan.size) <= math.prod(rounded) * GROWTH
    for axis in range(3):
        size, starts, side = plan.size[axis], plan.starts[axis], shape[axis]
        assert size % MULTIPLE == 0 and size <= rounded[axis] * STRETCH
        assert starts[0] <= box[axis].start and starts[-1] + size >= box[axis].stop
        assert starts[0] >= 0 and (starts[-1] + size <= side or starts == (0,))
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(0 < step <= math.ceil(size * (1 - overlap)) for step in steps)
    covered = plan.extent(shape)
    assert all(0 <= part.start < part.stop <= side for part, side in zip(covered, shape, strict=True))


def test_side_may_stretch_if_the_window_does_not_grow():
    plan = fitted_windows(whole(140, 192, 118), (140, 192, 118), (80, 160, 160), 0.25)
    assert plan.size == (80, 192, 120) and len(plan) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 30), (5, 7, 3)])
def test_tiny_volumes_are_padded_only_to_next_multiple(shape):
    plan = fitted_windows(whole(*shape), shape, (80, 160, 160), 0.5)
    assert plan.size == tuple(MULTIPLE * math.ceil(side / MULTIPLE) for side in shape)
    assert len(plan) == 1


def test_small_box_is_extended_into_the_image_instead_of_padded():
    plan = fitted_windows((slice(50, 60), slice(0, 3), slice(97, 100)), (100, 100, 100), (32, 32, 32), 0.5)
    assert plan.size == (16, 8, 8)
    assert plan.start((0, 0, 0)) == (47, 0, 92)


@pytest.mark.parametrize(("more", "count"), [(6, 10 * 14 * 14), (12, 16 * 20 * 20)])
def test_number_of_windows_per_axis_matches_resdsn_paper(more, count):
    """A CT of the paper's first data set, 512 x 512 x 300, in windows of 64 (section 4.1)."""
    plan = counted_windows(whole(300, 512, 512), (300, 512, 512), (64, 64, 64), more)
    assert plan.size == (64, 64, 64) and len(plan) == len(list(plan)) == count
    assert (plan.starts[0][0], plan.starts[0][-1], plan.starts[2][-1]) == (0, 300 - 64, 512 - 64)
    steps = {b - a for a, b in itertools.pairwise(plan.starts[1])}
    assert max(steps) - min(steps) <= 1


def test_coinciding_windows_are_used_once():
    plan = counted_windows(whole(70, 64, 50), (70, 64, 50), (64, 64, 64), 12)
    assert plan.starts == ((0, 1, 2, 3, 4, 5, 6), (0,), (0,))
    # Padded to a multiple of 8 where the array ends, not to the whole window.
    assert plan.size == (64, 64, 56)


def test_crop_smaller_than_a_window_is_extended_into_the_image():
    plan = counted_windows((slice(40, 60), slice(0, 9), slice(95, 100)), (100, 100, 100), (64, 64, 60), 12)
    assert plan.size == (64, 64, 64)
    assert list(plan) == [(0, 0, 0)] and plan.start((0, 0, 0)) == (18, 0, 36)


@given(st.lists(axes, min_size=3, max_size=3), st.integers(1, 12))
def test_counted_windows_cover_the_box(axes, more):
    shape = [length + before + after for length, before, after, _ in axes]
    box = tuple(slice(before, before + length) for length, before, _, _ in axes)
    plan = counted_windows(box, shape, [side for *_, side in axes], more)
    for part, side, size, starts in zip(box, shape, plan.size, plan.starts, strict=True):
        assert len(starts) <= (part.stop - part.start) // size + more
        assert starts[0] <= part.start and starts[-1] + size >= part.stop
        assert starts[0] >= 0 and (starts[-1] + size <= side or starts == (0,))
        assert all(0 < b - a <= size for a, b in itertools.pairwise(starts))
