"""The components of what was found, against another library's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conresnet.inference.labels import small_components
from engine.coarse_to_fine_cases import without_small


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.05, 0.1]), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
def test_small_components_are_those_of_less_than_a_share(seed, density, smallest):
    mask = np.random.default_rng(seed).random((7, 9, 11)) < density
    mask[:3, :3, :3] = True
    small = small_components(mask, smallest)
    assert np.array_equal(mask & ~small, without_small(mask, smallest))
    assert not (small & ~mask).any()


def test_an_object_in_many_pieces_keeps_its_largest():
    mask = np.zeros((20, 4, 4), dtype=bool)
    mask[::2, 0, 0] = True
    mask[18, 1, 1] = True
    assert np.flatnonzero((mask & ~small_components(mask, 0.9)).any(axis=(1, 2))).tolist() == [18]


def test_pieces_that_touch_by_a_corner_are_one():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert not small_components(mask, 1.0).any()


def test_nothing_has_no_components():
    assert not small_components(np.zeros((3, 4, 5), dtype=bool), 0.2).any()
