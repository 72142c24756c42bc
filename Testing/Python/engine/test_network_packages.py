"""Every network as a model package: the engine's result for a real case equals the network's own output."""

import numpy as np
import pytest
import safetensors.torch
import torch

from conresnet import load_network
from conresnet.cli import main
from conresnet.images import Volume
from conresnet.images.files import read_volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.networks import network_names
from conresnet.package.outputs import provided_maps
from conresnet.package.store import write_package
from conresnet.request import SegmentOptions
from engine.model_cases import description, write_model
from engine.package_cases import refusal
from engine.volumes import grid, model_array

COUNTS = {"input_channels": 1, "outputs": 3}
NARROW = {"base_width": 8}
RESIDUAL = NARROW | {"residual_outputs": 2}
ARGUMENTS = {
    "conresnet": {"backbone": "resdsn", **RESIDUAL},
    "voxresnet": NARROW,
    "resdsn": NARROW,
    "unet": NARROW,
    "pyramid": NARROW,
    "auto_context": {"network": {"type": "conresnet", "arguments": RESIDUAL}, "context": ["probability", "residual"]},
}


def test_all_networks_are_tested():
    assert set(ARGUMENTS) == set(network_names())


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_result_of_a_case_matches_network_output(tmp_path, hippocampus_image, kind):
    array = read_volume(hippocampus_image).array[:32, :48, :32]
    volume = Volume(array, grid(array.shape), "hippocampus")
    assert np.array_equal(model_array(volume)[1], array)
    fixed = [{"step": "rescale", "from": [0, float(array.max())], "to": [-1, 1]}]
    inference = {"window": list(array.shape)}
    document = description(intensity=fixed, inference=inference)
    document["system"]["networks"][0] |= {"type": kind, "arguments": COUNTS | ARGUMENTS[kind]}
    package = write_model(tmp_path / "model", document)
    model = load_model(package, "cpu", "fp32")
    maps = {"probability", "residual"} & provided_maps(package.description)
    result = segment(model, [volume], SegmentOptions(threads=1, maps=tuple(maps)))
    assert result.report["windows"] == 1

    network = load_network(package)
    x = torch.from_numpy(array.astype(np.float32) / array.max() * 2 - 1)[None, None]
    with torch.inference_mode():
        logits = network(x, wanted=("segmentation", "residual"))
    expected = {
        "probability": logits["segmentation"].softmax(1)[0, 1:],
        "residual": logits.get("residual", x)[0].sigmoid(),
    }
    for name in maps:
        # Up to rounding: maps are stored in half precision, and weight standardization is folded into the weights.
        difference = np.abs(result.maps[name] - expected[name].numpy())
        assert difference.mean() < 0.02 * expected[name].std() and difference.max() < 0.02


def test_integer_weights_are_refused(tmp_path):
    package = write_model(tmp_path / "model", description())
    weights = safetensors.torch.load_file(package.path / "network.safetensors")
    content = safetensors.torch.save({name: tensor.to(torch.int32) for name, tensor in weights.items()})
    package = write_package(package.description, {"network.safetensors": content}, package.path, overwrite=True)
    assert "floating-point" in refusal("weights-type", load_network, package.path)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), torch.float32), (1e300, torch.float64)])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, kind):
    """Before an image is read, and when a package is verified. The values after conversion to fp32 are checked."""
    package = write_model(tmp_path / "model", description())
    weights = safetensors.torch.load_file(package.path / "network.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].to(kind)
    weights[name].view(-1)[0] = value
    package = write_package(
        package.description, {"network.safetensors": safetensors.torch.save(weights)}, package.path, overwrite=True
    )
    assert name in refusal("weights-not-finite", load_network, package.path)
    assert main(["models", "verify", str(package.path)]) == 2


def test_description_of_a_huge_network_is_refused_before_allocation(tmp_path):
    """Its weights are small, but with 2048 channels per stage or more, the network would take hundreds of gigabytes."""
    package = write_model(tmp_path / "model", description())
    file = package.path / "model.json"
    file.write_text(file.read_text().replace('"base_width": 8', '"base_width": 2048'))
    message = refusal("weights-shape", load_network, package.path)
    assert "the tensor" in message and "network.safetensors" in message


@pytest.mark.parametrize("width", ["8000000000000", "8e12"])
def test_network_with_too_many_parameters_to_count_is_refused(tmp_path, width):
    package = write_model(tmp_path / "model", description())
    file = package.path / "model.json"
    file.write_text(file.read_text().replace('"base_width": 8', f'"base_width": {width}'))
    assert "cannot be built" in refusal("network-wrong", load_network, package.path)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('"base_width": 8', '"base_width": -8', "network-wrong"),
        ('"base_width": 8', '"base_width": 8, "depth": 3', "network-wrong"),
        ('"type": "conresnet"', '"type": "othernet"', "network-unknown"),
    ],
)
def test_wrong_arguments_and_unknown_network_give_different_errors(tmp_path, old, new, code):
    """An unknown network may be in a package that is not installed; wrong arguments are an error in the model."""
    package = write_model(tmp_path / "model", description())
    file = package.path / "model.json"
    file.write_text(file.read_text().replace(old, new))
    refusal(code, load_network, package.path)
