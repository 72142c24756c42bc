"""VoxResNet compared with the numbers in its paper."""

import pytest
import torch
from torch import nn

from conresnet.networks import build_network
from conresnet.networks.voxresnet import VoxRes
from engine.network_sizes import parameter_count

PAPER = {"input_channels": 6, "outputs": 4}
SMALL = {"input_channels": 2, "outputs": 3, "base_width": 8}


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_number_of_layers_matches_the_paper():
    network = build_network("voxresnet", PAPER)
    convolutions = layers(network, nn.Conv3d)
    assert len(convolutions) == 25 and len(layers(network, nn.ConvTranspose3d)) == 4
    assert sum(layer.stride == (2, 2, 2) for layer in convolutions) == 3
    assert sum(layer.kernel_size == (3, 3, 3) for layer in convolutions) == 21
    assert len(layers(network, VoxRes)) == 6
    features = network.trunk(torch.zeros(1, 6, 16, 16, 16))
    assert [feature.shape[2] for feature in features] == [16, 8, 4, 2]
    assert tuple(feature.shape[1] for feature in features) == network.trunk.channels == (32, 64, 64, 64)


def test_parameters_at_the_chosen_widths():
    assert parameter_count("voxresnet", PAPER) == 2_974_096


def test_prediction_fuses_the_four_classifiers():
    torch.manual_seed(0)
    network, image = build_network("voxresnet", SMALL).eval(), torch.randn(1, 2, 9, 16, 10)
    outputs = network(image)
    assert len(outputs["auxiliary"]) == 4
    torch.testing.assert_close(outputs["segmentation"], torch.stack(outputs["auxiliary"]).sum(0))
    alone = network(image, wanted=("segmentation",))
    assert list(alone) == ["segmentation"] and torch.equal(alone["segmentation"], outputs["segmentation"])
    # The classifiers work at different scales.
    assert all(not torch.allclose(outputs["auxiliary"][0], other) for other in outputs["auxiliary"][1:])


def test_auxiliary_weights_decrease_from_1_to_0_001():
    weights = build_network("voxresnet", SMALL).auxiliary_weights
    assert weights(0.0) == (1.0,) * 4
    assert weights(1.0) == pytest.approx((1e-3,) * 4)
    assert weights(0.5)[0] ** 2 == pytest.approx(weights(0.25)[0] * weights(0.75)[0])


def test_voxres_module_is_a_residual_block():
    module = VoxRes(8, "batch").eval()
    nn.init.zeros_(module.second[-1].weight)
    x = torch.randn(1, 8, 4, 5, 6)
    assert torch.equal(module(x), x)
