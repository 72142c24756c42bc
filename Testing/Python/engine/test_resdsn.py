"""ResDSN and its variants compared with their paper."""

import pytest
import torch
from torch import nn

from conresnet.networks import build_network
from engine.network_sizes import parameter_count

PAPER = {"input_channels": 1, "outputs": 2}
SMALL = {"input_channels": 1, "outputs": 2, "base_width": 8}


def make(**arguments) -> nn.Module:
    torch.manual_seed(0)
    return build_network("resdsn", SMALL | arguments).eval()


def test_four_levels_with_one_to_two_convolutions_down_and_two_up():
    network = make()
    sizes = []
    for layer in (*network.encoder.modules(), *network.decoder.modules()):
        if isinstance(layer, nn.Conv3d):
            assert layer.kernel_size == (3, 3, 3) and layer.stride == (1, 1, 1)
            layer.register_forward_hook(lambda layer, _, y: sizes.append((y.shape[2], y.shape[1])))
    network(torch.zeros(1, 1, 16, 16, 16))
    down, up = [(16, 8), (8, 16), (8, 16), (4, 32), (4, 32), (2, 64), (2, 64)], [(4, 32), (8, 16), (16, 8)]
    assert sizes == down + [size for size in up for _ in range(2)]


def test_every_deconvolution_has_kernel_4_and_stride_2():
    deconvolutions = [layer for layer in make().modules() if isinstance(layer, nn.ConvTranspose3d)]
    # Three in the decoder, one after Conv2b, two after Conv3b.
    assert [(layer.kernel_size, layer.stride) for layer in deconvolutions] == [((4, 4, 4), (2, 2, 2))] * 6


def test_parameters_at_the_chosen_widths():
    complete, without = (parameter_count("resdsn", PAPER | {"deep_supervision": deep}) for deep in (True, False))
    # Layers of the two branches: 2w -> w; 4w -> 2w -> w; a norm after each, and a head at the end of each branch.
    branches = (64 * 32 + 128 * 64 + 64 * 32) * 64 + 2 * (32 + 64 + 32) + 2 * (32 * 2 + 2)
    assert (complete, without) == (8_188_326, 8_188_326 - branches)


def test_connections_of_table_1_add_no_parameters_but_change_the_result():
    image = torch.randn(1, 1, 16, 16, 16)
    variants = [make(long_residual=long, short_residual=short) for long in (True, False) for short in (True, False)]
    states = [variant.state_dict() for variant in variants]
    assert all(state.keys() == states[0].keys() for state in states)
    for variant in variants[1:]:
        variant.load_state_dict(states[0])
    results = [variant(image)["segmentation"] for variant in variants]
    assert not any(torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize("long_residual", [True, False])
def test_fine_features_reach_decoder_only_through_long_connection(long_residual):
    """Without it, the decoder's only input is at 1/8 resolution, where a small detail may be lost."""
    network = make(long_residual=long_residual)
    for layer in network.encoder[1].modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.zeros_(layer.weight)
    one, other = torch.randn(2, 1, 1, 16, 16, 16)
    same = torch.equal(network(one)["segmentation"], network(other)["segmentation"])
    assert same != long_residual


def test_branches_start_at_conv2b_and_conv3b():
    network, image = make(), torch.randn(1, 1, 16, 16, 16)
    before = network(image)["auxiliary"]
    with torch.no_grad():
        network.encoder[2][1].conv.weight.mul_(-1)
    after = network(image)["auxiliary"]
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
    assert network.auxiliary_weights(0.0) == network.auxiliary_weights(1.0) == (0.2, 0.4)


def test_no_branches_without_deep_supervision():
    network = make(deep_supervision=False)
    assert network.provides == {"segmentation"} and set(network(torch.zeros(1, 1, 8, 8, 8))) == {"segmentation"}
