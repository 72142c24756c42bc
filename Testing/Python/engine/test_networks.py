"""ConResNet compared with the paper, and consistency checks."""

import pytest
import torch

from conresnet import networks
from conresnet.networks import build_network
from conresnet.networks.blocks import fold_weight_standardization

PAPER = {"input_channels": 4, "outputs": 3}
SMALL = {"input_channels": 2, "outputs": 3, "residual_outputs": 2, "base_width": 8}
EVERYTHING = ("segmentation", "residuals", "residual", "attention", "features")


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small_network(**arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("conresnet", SMALL | arguments).eval()


def test_parameter_counts_match_the_papers_networks():
    assert count(build_network("conresnet", PAPER)) == 19_018_732
    baseline = {"residual_mapping": False, "attention_mapping": False}
    assert count(build_network("conresnet", PAPER | baseline)) == 18_783_715


def test_encoder_has_nine_residual_blocks():
    blocks = [module for module in small_network().modules() if type(module).__name__ == "ResidualBlock"]
    assert len(blocks) == 9


@pytest.mark.parametrize("shape", [(16, 24, 32), (3, 2, 2), (7, 20, 33), (1, 40, 9)])
def test_outputs_have_size_of_input(shape):
    outputs = small_network()(torch.randn(1, 2, *shape), wanted=EVERYTHING)
    assert outputs["segmentation"].shape == (1, 3, *shape)
    assert [residual.shape for residual in outputs["residuals"]] == [(1, 2, *shape)] * 3
    assert outputs["attention"].shape == (1, 1, *shape)
    assert outputs["features"].shape == (1, 2, *shape)
    assert all(torch.isfinite(outputs[name]).all() for name in ("segmentation", "attention", "features"))


def test_only_requested_outputs_are_returned_with_same_values():
    network, image = small_network(), torch.randn(1, 2, 8, 16, 16)
    everything = network(image, wanted=EVERYTHING)
    alone = network(image, wanted=("residual",))
    assert list(alone) == ["residual"]
    torch.testing.assert_close(alone["residual"], everything["residuals"][0])


def test_every_parameter_gets_gradients():
    network = small_network().train()
    outputs = network(torch.randn(1, 2, 16, 16, 16))
    (outputs["segmentation"].square().mean() + sum(r.square().mean() for r in outputs["residuals"])).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_baseline_has_no_residual_and_attention_requires_it():
    baseline = small_network(residual_mapping=False, attention_mapping=False)
    assert set(baseline(torch.randn(1, 2, 8, 8, 8), wanted=EVERYTHING)) == {"segmentation", "features"}
    with pytest.raises(ValueError, match="needs residual_mapping"):
        small_network(residual_mapping=False)


def test_attention_changes_only_the_features_it_gates():
    image = torch.randn(1, 2, 8, 16, 16)
    gated = small_network()(image, wanted=EVERYTHING)
    before, after = gated["features"][0]
    assert not torch.allclose(before, after)
    ungated = small_network(attention_mapping=False)(image, wanted=EVERYTHING)
    before, after = ungated["features"][0]
    assert torch.equal(before, after)


def test_residual_axes_are_equivalent_under_rotation():
    """Rotating filters, image and axis together rotates the result: all axes are treated alike."""
    along_s, along_w = small_network(), small_network(residual_axis="W")
    along_w.load_state_dict(
        {name: value.transpose(2, 4) if value.ndim == 5 else value for name, value in along_s.state_dict().items()}
    )
    image = torch.randn(1, 2, 8, 16, 24)
    turned = along_w(image.transpose(2, 4))["residuals"][0].transpose(2, 4)
    torch.testing.assert_close(turned, along_s(image)["residuals"][0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(small_network(residual_axis="H")(image)["residuals"][0], along_s(image)["residuals"][0])


def test_folding_weight_standardization_keeps_result():
    network, image = small_network(), torch.randn(1, 2, 16, 16, 16)
    before = network(image)["segmentation"]
    folded = fold_weight_standardization(fold_weight_standardization(network))
    torch.testing.assert_close(folded(image)["segmentation"], before, rtol=1e-4, atol=1e-4)


def test_dropout_acts_only_in_training():
    network, image = small_network(dropout=0.5), torch.randn(1, 2, 8, 8, 8)
    assert torch.equal(network(image)["segmentation"], network(image)["segmentation"])
    network.train()
    assert not torch.equal(network(image)["segmentation"], network(image)["segmentation"])


@pytest.mark.parametrize(
    "arguments",
    [{"base_width": 12}, {"residual_axis": "X"}, {"input_channels": 0}, {"outputs": 0}, {"unheard_of": 1}],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        small_network(**arguments)


@pytest.mark.parametrize("dropout", [-1, 1, 1e9, "foo", None, [], True])
def test_invalid_dropout_is_refused(dropout):
    """PyTorch would refuse some of these values at the first training step, and accept others."""
    with pytest.raises(ValueError, match="dropout must be a share of at least 0 and below 1"):
        small_network(dropout=dropout)


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match='Unknown network "mystery"'):
        build_network("mystery", {})


def test_name_that_is_taken_is_refused_each_time():
    registry = networks.Registry("conresnet.networks", "register_network", networks.NetworkDeclaration)
    registry.register("resdsn")(torch.nn.Identity)
    for _number in range(2):
        with pytest.raises(ValueError, match="'resdsn' is already registered by torch"):
            registry.names()


def test_network_without_arguments_has_no_suggestions(monkeypatch):
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()

    monkeypatch.setattr(networks, "network_class", lambda _kind: Fixed)
    with pytest.raises(ValueError, match=r'has no argument "width"\.$'):
        build_network("fixed", {"width": 8})
