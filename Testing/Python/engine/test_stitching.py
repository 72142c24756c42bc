"""Stitching of windows: compared with an explicit sum, and with memory for only one window's depth."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from conresnet.inference import authors_windows, axis_weights, fitted_windows
from conresnet.inference.sliding import Stitcher
from conresnet.package import BLENDINGS


@given(st.lists(st.integers(1, 16), max_size=6), st.integers(16, 40), st.sampled_from(BLENDINGS))
def test_weights_of_overlapping_windows_add_up_to_one(steps, size, blending):
    starts = np.cumsum([3, *steps])
    total = np.zeros(starts[-1] + size)
    for start, weights in zip(starts, axis_weights(starts, size, blending), strict=True):
        total[start : start + size] += weights
    assert np.allclose(total[3:], 1, atol=1e-6)


def test_weights_are_largest_in_center_of_a_window():
    first, second = axis_weights((0, 16), 32, "gaussian")
    assert first[10] > 0.99 and second[31 - 10] > 0.99
    assert np.allclose(first, second[::-1])


def plans():
    shape = (50, 21, 30)
    box = (slice(2, 47), slice(5, 21), slice(0, 30))
    return shape, {
        "fitted": fitted_windows(box, shape, (16, 16, 16), 0.5),
        "authors": authors_windows(shape, (16, 24, 16)),
        "one": fitted_windows(box, shape, (64, 64, 64), 0.5),
    }


def stitch(plan, shape, blending, values_of):
    """The stitched values, and the slabs in the order in which they were finished."""
    result, slabs, counted = np.zeros((2, *shape)), [], np.zeros(shape, dtype=int)

    def finish(where, values):
        result[(slice(None), *where)] = values["a"].numpy()
        counted[where] += 1
        slabs.append((where[0].start, where[0].stop))

    stitcher = Stitcher(plan, shape, blending, finish)
    for window in plan:
        stitcher.add(window, {"a": torch.from_numpy(values_of(window))})
    assert counted[plan.extent(shape)].min() == counted.max() == 1
    assert counted.sum() == counted[plan.extent(shape)].size
    return result, slabs


@pytest.mark.parametrize("blending", BLENDINGS)
@pytest.mark.parametrize("kind", ["fitted", "authors", "one"])
def test_stitching_is_the_weighted_mean_of_the_windows(kind, blending):
    shape, made = plans()
    plan = made[kind]
    windows = {
        window: np.random.default_rng(n).random((2, *plan.size), dtype=np.float32) for n, window in enumerate(plan)
    }
    profiles = [np.ones(side) for side in plan.size]
    if blending == "gaussian":
        profiles = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in plan.size]
    weight = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
    total, norm = np.zeros((2, *(n + 64 for n in shape))), np.zeros([n + 64 for n in shape])
    for window, values in windows.items():
        place = tuple(slice(a, a + n) for a, n in zip(plan.start(window), plan.size, strict=True))
        total[(slice(None), *place)] += values * weight
        norm[place] += weight
    expected = np.divide(total, norm, where=norm > 0, out=total)[(slice(None), *(slice(0, n) for n in shape))]
    result, slabs = stitch(plan, shape, blending, windows.__getitem__)
    extent = plan.extent(shape)
    assert np.allclose(result[(slice(None), *extent)], expected[(slice(None), *extent)], atol=1e-5)
    assert slabs == sorted(slabs)


class Allocations(TorchDispatchMode):
    """Tensors that torch allocated since this context was entered."""

    def __init__(self):
        super().__init__()
        self._made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in given:
            self._made[StorageWeakRef(made.untyped_storage())] = made.untyped_storage().nbytes()
        return made

    def held(self) -> int:
        """Total size in bytes of those that are still referenced."""
        return sum(size for storage, size in self._made.items() if not storage.expired())


def test_slabs_are_finished_as_early_as_possible_with_memory_for_one_window_depth():
    plan = authors_windows((400, 16, 16), (24, 16, 16))
    finished = []
    stitcher = Stitcher(plan, (400, 16, 16), "uniform", lambda where, _: finished.append(where[0].stop))
    with Allocations() as allocations:
        for window in plan:
            stitcher.add(window, {"a": torch.zeros(1, *plan.size)})
            following = window[0] + 1
            assert finished[-1] == (plan.starts[0][following] if following < len(plan.starts[0]) else 400)
            assert allocations.held() == torch.zeros(1, 24, 16, 16).nbytes
