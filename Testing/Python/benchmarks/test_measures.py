"""Parameters and multiply-adds compared with Table VII of the ConResNet paper."""

import pytest
import torch
from torch import nn

from conresnet.networks import build_network

PAPER = {"input_channels": 4, "outputs": 3}
BASELINE = {"residual_mapping": False, "attention_mapping": False}
WINDOW = (80, 160, 160)


@pytest.fixture
def measures(benchmark):
    return benchmark("measures")


def test_multiply_adds_of_table_vii(measures):
    assert measures.multiply_adds(build_network("conresnet", PAPER), WINDOW) == 537_516_032_000
    assert measures.multiply_adds(build_network("conresnet", PAPER | BASELINE), WINDOW) == 453_181_440_000


def test_deconvolution_counts_whole_kernel_per_input_voxel(measures):
    """At 16 x 16 x 16 with base width 8."""
    network = build_network("resdsn", {"input_channels": 1, "outputs": 2, "base_width": 8, "deep_supervision": False})
    deconvolutions = 64 * 32 * 64 * 2**3 + 32 * 16 * 64 * 4**3 + 16 * 8 * 64 * 8**3
    down = 27 * (8 * 16**3 + (8 * 16 + 16 * 16) * 8**3 + (16 * 32 + 32 * 32) * 4**3 + (32 * 64 + 64 * 64) * 2**3)
    up = 27 * 2 * (32 * 32 * 4**3 + 16 * 16 * 8**3 + 8 * 8 * 16**3) + 8 * 2 * 16**3
    assert measures.multiply_adds(network, (16, 16, 16)) == deconvolutions + down + up


def test_all_parameters_of_our_networks_are_used(measures):
    networks = [build_network("conresnet", PAPER), build_network("conresnet", PAPER | BASELINE)]
    assert [measures.acting_parameters(network) for network in networks] == [19_018_732, 18_783_715]
    narrow = {"base_width": 8}
    inner = {"network": {"type": "voxresnet", "arguments": narrow}}
    for kind, arguments in {"pyramid": narrow, "resdsn": narrow, "auto_context": inner}.items():
        network = build_network(kind, {"input_channels": 2, "outputs": 3} | arguments)
        assert measures.acting_parameters(network) == sum(value.numel() for value in network.parameters())


def test_unused_parameters_do_not_count_and_the_network_is_unchanged(measures):
    network = build_network("unet", {"input_channels": 1, "outputs": 2, "base_width": 8}).train()
    acting = measures.acting_parameters(network)
    network.unused = nn.Conv3d(8, 8, 3)
    assert measures.acting_parameters(network) == acting
    assert network.training and all(value.device == torch.device("cpu") for value in network.parameters())
    assert all(not module._forward_hooks for module in network.modules())
