"""Left and right segments that share an output, and one residual for all segments."""

import pytest
import torch
import torch.nn.functional as F

from conresnet.networks import build_network
from conresnet.networks.conresnet import PairedOutputs

PAIRS = [[1, 4], [5, 2]]
"""Of seven outputs: 0 is the background, 3 and 6 have no side."""


def test_probability_is_product_of_structure_and_side():
    outputs = PairedOutputs(7, PAIRS)
    assert outputs.inputs == 6
    x = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.softmax(outputs(x), 1)
    structures, left = torch.softmax(x[:, :-1], 1), torch.sigmoid(x[:, -1])
    background, first, second, third, fourth = structures.unbind(1)
    expected = [background, first * left, second * (1 - left), third, first * (1 - left), second * left, fourth]
    torch.testing.assert_close(found, torch.stack(expected, 1))


def test_cross_entropy_is_sum_of_structure_and_side():
    outputs, generator = PairedOutputs(7, PAIRS), torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, 4, 4, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 7, (1, 4, 4, 4), generator=generator)
    merged = torch.tensor([0, 1, 2, 3, 1, 2, 4])[label]
    is_left, is_right = ((label == one) | (label == other) for one, other in ((1, 5), (4, 2)))
    side = -F.logsigmoid(x[:, -1]) * is_left - F.logsigmoid(-x[:, -1]) * is_right
    expected = F.cross_entropy(x[:, :-1], merged) + side.mean()
    torch.testing.assert_close(F.cross_entropy(outputs(x), label), expected)


@pytest.mark.parametrize("pairs", [[[1, 1]], [[1, 2], [2, 3]], [[0, 1]], [[1, 7]], [[1, 2, 3]], [[1.0, 2]]])
def test_invalid_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs must"):
        PairedOutputs(7, pairs)


def test_network_with_pairs_and_one_residual_has_one_logit_per_output():
    arguments = {"input_channels": 1, "outputs": 7, "residual_outputs": 1, "base_width": 8, "pairs": PAIRS}
    network = build_network("conresnet", arguments)
    found = network(torch.zeros(1, 1, 16, 16, 16))
    assert found["segmentation"].shape == (1, 7, 16, 16, 16)
    assert [tuple(one.shape[:2]) for one in found["residuals"]] == [(1, 1)] * 3
    assert network.segmentation_head.out_channels == 6
    without = build_network("conresnet", {**arguments, "pairs": []})
    assert without.segmentation_head.out_channels == 7
    # Only the head depends on pairs, so weights of other models can be used as starting weights.
    assert network.state_dict().keys() == without.state_dict().keys()
