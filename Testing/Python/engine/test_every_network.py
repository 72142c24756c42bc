"""Requirements for every network: any input size, gradients for every parameter, windows consistent with the whole."""

import pytest
import torch

from conresnet.networks import build_network
from conresnet.networks.blocks import TRAINING_OUTPUTS

SMALL = {"input_channels": 2, "outputs": 3, "base_width": 8}
CASES = {
    "voxresnet": ("voxresnet", {}),
    "voxresnet with group norm": ("voxresnet", {"norm": "group"}),
    "resdsn": ("resdsn", {}),
    "fresdsn": ("resdsn", {"short_residual": True}),
    "dsn with group norm": ("resdsn", {"long_residual": False, "norm": "group"}),
    "unet": ("unet", {}),
    "unet with group norm": ("unet", {"norm": "group"}),
    "pyramid": ("pyramid", {"exclusive": False}),
    "pyramid of three levels with group norm": ("pyramid", {"levels": 3, "norm": "group", "base_width": 16}),
    "conresnet on voxresnet": ("conresnet", {"backbone": "voxresnet"}),
    "conresnet on resdsn": ("conresnet", {"backbone": "resdsn"}),
    "conresnet on unet": ("conresnet", {"backbone": "unet", "norm": "batch"}),
}
BATCH_NORM = ["voxresnet", "resdsn", "fresdsn", "unet", "pyramid"]


def make(case: str) -> torch.nn.Module:
    """Make a network whose norms have real statistics, so that they are not close to the identity in evaluation."""
    torch.manual_seed(0)
    kind, arguments = CASES[case]
    network = build_network(kind, SMALL | arguments)
    with torch.no_grad():
        network.train()(training_batch(kind) + 0.5)
    return network.eval()


def training_batch(kind: str) -> torch.Tensor:
    side = 32 if kind == "pyramid" else 16
    return torch.randn(2, 2, side, side, side)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 3), (17, 1, 33), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((16, 24, 8), (7, 20, 9)))],
)
def test_outputs_have_size_of_input(case, shape):
    network = make(case)
    outputs = network(torch.randn(1, 2, *shape))
    assert set(outputs) == network.provides & set(TRAINING_OUTPUTS)
    assert outputs["segmentation"].shape == (1, 3, *shape)
    others = [*outputs.get("auxiliary", []), *outputs.get("residuals", [])]
    assert all(logits.shape == (1, 3, *shape) for logits in others)
    assert torch.isfinite(outputs["segmentation"]).all()


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_gradients(case):
    network = make(case).train()
    outputs = network(training_batch(CASES[case][0]))
    loss = outputs["segmentation"].square().mean()
    for weight, logits in zip(auxiliary_weights(network), outputs.get("auxiliary", []), strict=True):
        loss = loss + weight * logits.square().mean()
    for logits in outputs.get("residuals", []):
        loss = loss + logits.square().mean()
    loss.backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def auxiliary_weights(network: torch.nn.Module) -> tuple[float, ...]:
    return network.auxiliary_weights(0.5) if "auxiliary" in network.provides else ()


@pytest.mark.parametrize("case", CASES)
def test_result_of_a_case_does_not_depend_on_its_batch(case):
    network, images = make(case), torch.randn(2, 2, 9, 16, 8)
    together = network(images)["segmentation"]
    for image, logits in zip(images, together, strict=True):
        torch.testing.assert_close(network(image[None])["segmentation"][0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_gives_similar_probabilities(case):
    """As windows are computed on devices that support it: bfloat16, channels last."""
    network, images = make(case), torch.randn(1, 2, 9, 16, 24)
    exact = network(images)["segmentation"].detach().sigmoid()
    network = network.to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        logits = network(images.to(memory_format=torch.channels_last_3d), wanted=("segmentation",))["segmentation"]
    assert (logits.float().sigmoid() - exact).abs().mean() < 0.1 * exact.std()


@pytest.mark.parametrize("case", BATCH_NORM)
def test_interior_of_a_window_matches_whole_volume(case):
    """Batch norm does not depend on the window in evaluation, so far from its borders, it equals the whole volume."""
    network, volume = make(case), torch.randn(1, 2, 8, 8, 320)
    whole = network(volume)["segmentation"]
    window = network(volume[..., 64:256])["segmentation"]
    torch.testing.assert_close(window[..., 80:112], whole[..., 144:176], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(window[..., :8], whole[..., 64:72], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wrong", [{"base_width": 12}, {"input_channels": 0}, {"outputs": 0}, {"unheard_of": 1}])
def test_wrong_arguments_are_refused(case, wrong):
    kind, arguments = CASES[case]
    with pytest.raises(ValueError):
        build_network(kind, SMALL | arguments | wrong)


@pytest.mark.parametrize("kind", ["voxresnet", "resdsn", "unet"])
def test_unknown_norm_is_named(kind):
    with pytest.raises(ValueError, match="'layer'"):
        build_network(kind, SMALL | {"norm": "layer"})
