"""The definition of the inter-slice context residual."""

import numpy as np
import pytest
import torch

from conresnet.networks.conresnet import context_residual


def test_residual_of_labels_that_appear_move_and_vanish():
    labels = np.zeros((4, 1, 3), dtype=np.uint8)
    labels[1, 0] = [1, 1, 0]
    labels[2, 0] = [0, 1, 1]
    residual = context_residual(labels, 0)
    assert residual.dtype == np.uint8
    assert residual[:, 0].tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_arrays_and_tensors_agree_along_every_axis(axis):
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(context_residual(values, axis), context_residual(torch.from_numpy(values), axis))
    np.testing.assert_allclose(
        context_residual(values, axis).take(2, axis), abs(values.take(2, axis) - values.take(1, axis))
    )
    assert not context_residual(values, axis).take(0, axis).any()


def test_single_slice_has_no_residual():
    assert not context_residual(np.ones((1, 2, 2)), 0).any()
    assert not context_residual(torch.ones(1, 2, 2), 0).any()


def test_gradient_flows_to_both_neighbors():
    values = torch.tensor([0.0, 2.0, 1.0], requires_grad=True)
    context_residual(values, 0).sum().backward()
    assert values.grad.tolist() == [-1, 2, -1]
