"""The 3D U-Net of the multi-scale pyramid, compared with its paper."""

import torch
from torch import nn

from conresnet.networks import build_network
from engine.network_sizes import parameter_count


def test_network_has_over_19_million_parameters():
    assert parameter_count("unet", {"input_channels": 1, "outputs": 8}) == 19_070_888


def test_parameter_count_matches_original_unet():
    """Cicek et al. give 19,069,955 for 3 channels and 3 labels: one bias per convolution, and no scale in the norms."""
    arguments = {"input_channels": 3, "outputs": 3}
    with torch.device("meta"):
        network = build_network("unet", arguments)
    scales = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.BatchNorm3d))
    assert parameter_count("unet", arguments) - scales == 19_069_955


def test_each_path_has_four_levels_with_two_convolutions():
    network = build_network("unet", {"input_channels": 1, "outputs": 2, "base_width": 8})
    sizes = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(lambda layer, _, y: sizes.append((y.shape[2], layer.kernel_size[0])))
    network.eval()(torch.zeros(1, 1, 16, 16, 16))
    down = [(16, 3)] * 2 + [(8, 3)] * 2 + [(4, 3)] * 2 + [(2, 3)] * 2
    up = [(4, 3)] * 2 + [(8, 3)] * 2 + [(16, 3)] * 2
    assert sizes == [*down, *up, (16, 1)]
    deconvolutions = [layer for layer in network.modules() if isinstance(layer, nn.ConvTranspose3d)]
    assert [layer.kernel_size + layer.stride for layer in deconvolutions] == [(2,) * 6] * 3
