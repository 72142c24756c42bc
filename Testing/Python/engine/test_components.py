"""Connected components of masks, compared with those of another library."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conresnet.inference.labels import small_components
from engine.coarse_to_fine_cases import without_small


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.05, 0.1]), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
def test_small_components_are_below_a_share(seed, density, smallest):
    mask = np.random.default_rng(seed).random((7, 9, 11)) < density
    mask[:3, :3, :3] = True
    small = small_components(mask, smallest)
    assert np.array_equal(mask & ~small, without_small(mask, smallest))
    assert not (small & ~mask).any()


def test_largest_component_is_always_kept():
    mask = np.zeros((20, 4, 4), dtype=bool)
    mask[::2, 0, 0] = True
    mask[18, 1, 1] = True
    assert np.flatnonzero((mask & ~small_components(mask, 0.9)).any(axis=(1, 2))).tolist() == [18]


def test_components_that_touch_at_a_corner_are_connected():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert not small_components(mask, 1.0).any()


def test_empty_mask_has_no_components():
    assert not small_components(np.zeros((3, 4, 5), dtype=bool), 0.2).any()
