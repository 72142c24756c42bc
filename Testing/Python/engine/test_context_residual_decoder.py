"""The context residual decoder on the features of any network, including those of other libraries."""

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet
from torch import Tensor, nn

from conresnet.networks import build_network
from conresnet.networks.blocks import TRAINING_OUTPUTS
from conresnet.networks.conresnet import ContextResidualDecoder, context_residual
from engine.network_sizes import parameter_count

SMALL = {"input_channels": 2, "outputs": 3, "residual_outputs": 2, "base_width": 8}
EVERYTHING = (*TRAINING_OUTPUTS, "residual", "attention", "features")
BACKBONES = ["residual", "voxresnet", "resdsn", "unet"]


def segresnet_features(network: SegResNet, x: Tensor) -> list[Tensor]:
    return network.encode(x)[1]


def basic_unet_features(network: BasicUNet, x: Tensor) -> list[Tensor]:
    features = [network.conv_0(x)]
    for down in (network.down_1, network.down_2, network.down_3, network.down_4):
        features.append(down(features[-1]))
    return features


PEERS = {
    "SegResNet": (lambda: SegResNet(3, init_filters=8, in_channels=1), segresnet_features, (8, 16, 32, 64)),
    "BasicUNet": (
        lambda: BasicUNet(3, in_channels=1, features=(8, 8, 16, 16, 32, 8)),
        basic_unet_features,
        (8, 8, 16, 16, 32),
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_decoder_trains_on_features_of_other_networks(peer):
    make, features_of, channels = PEERS[peer]
    torch.manual_seed(0)
    network, decoder = make(), ContextResidualDecoder(channels, input_channels=1, outputs=2, residual_outputs=1)
    target = torch.zeros(1, 1, 16, 16, 32)
    target[..., 4:12, 4:12, 5:11] = 1
    image = target + 0.1 * torch.randn_like(target)
    changes = context_residual(target, decoder.axis)
    optimizer = torch.optim.Adam([*network.parameters(), *decoder.parameters()], 3e-3)
    losses = []
    for _ in range(8):
        outputs = decoder(features_of(network, image), image)
        assert len(outputs["residuals"]) == len(channels) - 1
        loss = nn.functional.cross_entropy(outputs["segmentation"], target[:, 0].long())
        for residual in outputs["residuals"]:
            loss = loss + nn.functional.binary_cross_entropy_with_logits(residual, changes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert [name for name, value in decoder.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("sizes", [(8, 4), (4, 2, 1), (16, 9, 7, 3, 2, 1)])
def test_number_and_size_of_features_are_flexible(sizes):
    image, features = torch.randn(1, 1, 8, 8, 8), [torch.randn(1, 16, size, size, size) for size in sizes]
    decoder = ContextResidualDecoder([16] * len(sizes), input_channels=1, outputs=2).eval()
    outputs = decoder(features, image, wanted=EVERYTHING)
    assert outputs["segmentation"].shape == (1, 2, 8, 8, 8)
    assert [residual.shape for residual in outputs["residuals"]] == [(1, 2, 8, 8, 8)] * (len(sizes) - 1)
    assert outputs["attention"].shape == (1, 1, 8, 8, 8) and outputs["features"].shape == (1, 2, 8, 8, 8)


@pytest.mark.parametrize("channels", [(8,), (8,) * 7, (8, 12)])
def test_incompatible_features_are_refused(channels):
    with pytest.raises(ValueError, match="multiples of 8"):
        ContextResidualDecoder(channels, input_channels=1, outputs=2)


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [("residual", 19_018_732), ("voxresnet", 2_176_300), ("resdsn", 4_913_900), ("unet", 12_711_180)],
)
def test_parameters_on_every_backbone(backbone, parameters):
    assert parameter_count("conresnet", {"input_channels": 4, "outputs": 3, "backbone": backbone}) == parameters


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_is_the_encoder_of_its_own_network(backbone):
    """Weights of the network from the other paper fit, so they can be used as starting weights."""
    network = build_network("conresnet", SMALL | {"backbone": backbone, "norm": "group"})
    if backbone != "residual":
        own = build_network(backbone, {"input_channels": 2, "outputs": 3, "base_width": 8, "norm": "group"})
        encoder = {"voxresnet": "trunk", "resdsn": "encoder", "unet": "analysis"}[backbone]
        network.encoder.load_state_dict(getattr(own, encoder).state_dict())
    features = network.encoder(torch.zeros(1, 2, 16, 8, 8))
    assert [feature.shape[1] for feature in features] == list(network.encoder.channels)
    assert [feature.shape[2] for feature in features] == [16, 8, 4, 2]


def test_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="'resnet50'"):
        build_network("conresnet", SMALL | {"backbone": "resnet50"})
    with pytest.raises(ValueError, match="'residual' has group norm"):
        build_network("conresnet", SMALL | {"norm": "batch"})
