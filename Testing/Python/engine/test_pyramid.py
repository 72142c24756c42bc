"""The pyramid of U-Nets: inputs of each level, and alignment of the context from the previous level."""

import pytest
import torch
from torch import Tensor, nn

from conresnet.networks import build_network
from engine.network_sizes import parameter_count

SMALL = {"input_channels": 1, "outputs": 1, "exclusive": False, "base_width": 8, "norm": "group"}


class Recorder(nn.Module):
    """Replaces a level's network: records the input, and returns the image's brightness as its result."""

    def forward(self, x: Tensor, wanted) -> dict[str, Tensor]:
        self.input_tensor = x
        return {"segmentation": 8 * x[:, :1] - 4}


def recorded(levels: int, training: bool) -> nn.Module:
    network = build_network("pyramid", SMALL | {"levels": levels}).train(training)
    network.levels = nn.ModuleList(Recorder() for _ in range(levels))
    return network


def center(volume: Tensor) -> Tensor:
    """Center of the brightness, in voxel coordinates."""
    weights = (volume - volume.min()).double()
    axes = torch.meshgrid(*(torch.arange(side) + 0.5 for side in volume.shape), indexing="ij")
    return torch.stack([(weights * axis).sum() for axis in axes]) / weights.sum()


def blob(shape: tuple[int, ...], place: Tensor) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(side) + 0.5 for side in shape), indexing="ij")
    return torch.exp(-sum((axis - at) ** 2 for axis, at in zip(axes, place, strict=True)) / 8)[None, None]


def test_parameters_are_those_of_two_unets():
    unet = {"input_channels": 1, "outputs": 8}
    sizes = [
        parameter_count(*made) for made in [("unet", unet), ("pyramid", unet), ("unet", unet | {"input_channels": 8})]
    ]
    assert sizes[1] == sizes[0] + sizes[2] == 38_147_824


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_get_equal_numbers_of_voxels_in_training(levels):
    network = recorded(levels, training=True)
    side = 8 * 2 ** (levels - 1)
    outputs = network(torch.randn(1, 1, side, side, side))
    assert [level.input_tensor.shape[2:] for level in network.levels] == [(8, 8, 8)] * levels
    assert [level.input_tensor.shape[1] for level in network.levels] == [1] + [2] * (levels - 1)
    assert outputs["segmentation"].shape[2:] == network.answered((side, side, side)) == (8, 8, 8)


def test_every_level_gets_the_whole_image_at_inference():
    network = recorded(3, training=False)
    outputs = network(torch.randn(1, 1, 9, 16, 30))
    assert [tuple(level.input_tensor.shape[2:]) for level in network.levels] == [(3, 4, 8), (5, 8, 15), (9, 16, 30)]
    assert all(logits.shape[2:] == (9, 16, 30) for logits in (outputs["segmentation"], *outputs["auxiliary"]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("shape", [(64, 64, 64), (62, 63, 61), (60, 57, 64)])
def test_image_and_context_are_aligned(shape, levels, training):
    network = recorded(levels, training)
    for step in (-2.0, 0.0, 1.7):
        place = torch.tensor(shape) / 2 + torch.tensor([step, -step, 1.0])
        outputs = network(blob(shape, place))
        for level in network.levels[1:]:
            image, context = level.input_tensor[0]
            torch.testing.assert_close(center(context), center(image), rtol=0, atol=0.1)
        last = network.levels[-1].input_tensor[0, 0]
        begin = torch.tensor([(whole - side) // 2 for whole, side in zip(shape, last.shape, strict=True)])
        torch.testing.assert_close(center(last), (place - begin).double(), rtol=0, atol=0.1)
        for logits in outputs["auxiliary"]:
            begin = torch.tensor([(whole - side) // 2 for whole, side in zip(shape, logits.shape[2:], strict=True)])
            torch.testing.assert_close(center(logits[0, 0].sigmoid()), (place - begin).double(), rtol=0, atol=0.25)


def test_averaging_at_the_border_excludes_padding():
    network = recorded(2, training=False)
    network(torch.ones(1, 1, 5, 7, 9))
    assert torch.equal(network.levels[0].input_tensor, torch.ones(1, 1, 3, 4, 5))


def test_last_level_loss_reaches_first_level():
    """End to end: the last level's loss alone reaches the first level through its predictions."""
    torch.manual_seed(0)
    network = build_network("pyramid", SMALL).train()
    network(torch.randn(1, 1, 32, 32, 32), wanted=("segmentation",))["segmentation"].square().mean().backward()
    assert all(value.grad.any() for value in network.levels[0].parameters())


def test_context_excludes_the_background():
    network = build_network("pyramid", SMALL | {"outputs": 3, "exclusive": True})
    assert network.levels[1].input_channels == 3
    assert network.auxiliary_weights(0.3) == (1.0,)
    with pytest.raises(ValueError, match="outputs must be more than 1"):
        build_network("pyramid", SMALL | {"exclusive": True})
    for levels in (0, 10_000_000):
        with pytest.raises(ValueError, match="levels"):
            build_network("pyramid", SMALL | {"levels": levels})
