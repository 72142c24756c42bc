"""Every network as a model package: a real case through the engine is what the network itself says of it."""

import numpy as np
import pytest
import safetensors.torch
import torch

from conresnet import load_network
from conresnet.cli.main import main
from conresnet.images.files import read_volume
from conresnet.images.grid import Volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.networks import network_names
from conresnet.package import write_package
from conresnet.package.maps import provided_maps
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


def test_no_network_is_left_out():
    assert set(ARGUMENTS) == set(network_names())


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_case_gets_what_the_network_says(tmp_path, hippocampus_image, kind):
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
    said = {"probability": logits["segmentation"].softmax(1)[0, 1:], "residual": logits.get("residual", x)[0].sigmoid()}
    for name in maps:
        # But for rounding: maps are given in half precision, and standardized weights are folded beforehand.
        difference = np.abs(result.maps[name] - said[name].numpy())
        assert difference.mean() < 0.02 * said[name].std() and difference.max() < 0.02


def test_weights_that_are_whole_numbers_are_refused(tmp_path):
    package = write_model(tmp_path / "model", description())
    weights = safetensors.torch.load_file(package.path / "network.safetensors")
    whole = safetensors.torch.save({name: tensor.to(torch.int32) for name, tensor in weights.items()})
    package = write_package(package.description, {"network.safetensors": whole}, package.path, overwrite=True)
    assert "floating-point" in refusal("weights-type", load_network, package.path)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), torch.float32), (1e300, torch.float64)])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, kind):
    """Before an image is read, and when a package is verified. What counts is the value in fp32, which is computed."""
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


def test_a_description_of_a_huge_network_is_refused_before_it_takes_memory(tmp_path):
    """Its weights are small; 2048 channels a stage and more would be hundreds of gigabytes."""
    package = write_model(tmp_path / "model", description())
    file = package.path / "model.json"
    file.write_text(file.read_text().replace('"base_width": 8', '"base_width": 2048'))
    sentence = refusal("weights-shape", load_network, package.path)
    assert "the tensor" in sentence and "network.safetensors" in sentence


@pytest.mark.parametrize("width", ["8000000000000", "8e12"])
def test_a_network_of_more_than_can_be_counted_is_refused_in_a_sentence(tmp_path, width):
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
def test_wrong_arguments_are_told_from_an_unknown_network(tmp_path, old, new, code):
    """For an unknown one, another package may be missing; wrong arguments are in the model itself."""
    package = write_model(tmp_path / "model", description())
    file = package.path / "model.json"
    file.write_text(file.read_text().replace(old, new))
    refusal(code, load_network, package.path)
