"""Maps that a model provides, according to its description and its networks, and maps computed from the result."""

import numpy as np
import pytest
from torch import nn

from conresnet.images.inputs import BoxROI
from conresnet.inference.results import disagreement, entropies, uncertainty
from conresnet.inference.segmentation import load_model, segment
from conresnet.networks import network_names
from conresnet.package import parse_description
from conresnet.package.outputs import MAPS, provided_maps, residual_plane
from conresnet.request import SegmentOptions
from engine.coarse_to_fine_cases import coarse_to_fine, random_weights, write_pair
from engine.model_cases import description, make_model, write_model
from engine.volumes import grid, random_volume

ALWAYS = {"probability", "uncertainty", "result_residual"}
EVERY = {*ALWAYS, "residual", "residual_difference", "attention", "features"}
SMALL = {kind: {"base_width": 8} for kind in ("conresnet", "voxresnet", "resdsn", "unet", "pyramid")}


def arguments_of(kind: str) -> dict:
    return description(kind, **SMALL.get(kind, {}))["system"]["networks"][0]["arguments"]


def maps_of(network: nn.Module) -> set[str]:
    """Maps made from the outputs of a network."""
    return {name for name, kind in MAPS.items() if kind.output in network.provides}


def inner(kind: str, **settings) -> dict:
    """A network in the format expected by auto-context."""
    own = {**arguments_of(kind), **settings}
    return {"network": {"type": kind, "arguments": {key: own[key] for key in set(own) - {"input_channels", "outputs"}}}}


CASES = [
    ("conresnet", {}, EVERY),
    ("conresnet", {"attention_mapping": False}, EVERY - {"attention"}),
    ("conresnet", {"residual_mapping": False, "attention_mapping": False}, {*ALWAYS, "features"}),
    ("conresnet", {"backbone": "voxresnet"}, EVERY),
    ("voxresnet", {}, ALWAYS),
    ("resdsn", {}, ALWAYS),
    ("unet", {}, ALWAYS),
    ("pyramid", {}, ALWAYS),
    ("auto_context", inner("voxresnet"), ALWAYS),
    ("auto_context", inner("conresnet", attention_mapping=False), EVERY - {"attention"}),
]


def test_every_network_is_among_the_cases():
    assert {kind for kind, _, _ in CASES} == set(network_names())


@pytest.mark.parametrize(("kind", "settings", "expected"), CASES)
def test_description_and_network_agree_on_maps(tmp_path, kind, settings, expected):
    document = description(kind)
    document["system"]["networks"][0]["arguments"] = {**arguments_of(kind), **settings}
    assert provided_maps(parse_description(document)) == expected
    model = load_model(write_model(tmp_path / "model", document), "cpu", "fp32")
    assert maps_of(model.system.predictors[0].networks[0]) == expected


def test_residual_plane_is_that_of_a_network_with_residuals():
    assert residual_plane(parse_description(description("conresnet"))) == "axial"
    assert residual_plane(parse_description(description("conresnet", residual_axis="H"))) == "coronal"
    assert residual_plane(parse_description(description("conresnet", residual_mapping=False))) == ""
    assert residual_plane(parse_description(description("voxresnet", base_width=8))) == ""


def test_maps_come_from_last_of_two_passes(tmp_path):
    document = coarse_to_fine(description("resdsn", base_width=8), fine=description("conresnet"))
    package = write_pair(tmp_path, document, *(random_weights(document, index) for index in (0, 1)))
    _, fine = load_model(package, "cpu", "fp32").system.predictors
    assert provided_maps(package.description) == maps_of(fine.networks[0]) == EVERY


def bits(*probabilities: float) -> float:
    return -sum(p * np.log2(p) for p in probabilities)


def test_uncertainty_and_disagreement_are_entropies_between_0_and_1():
    found = uncertainty(np.array([[0.5, 1.0, 0.0, 1 / 3], [0.25, 0.0, 0.0, 1 / 3]], np.float32), exclusive=True)
    assert found == pytest.approx([bits(0.5, 0.25, 0.25) / np.log2(3), 0, 0, 1], abs=1e-5)
    # Overlapping regions are treated separately; the least certain one counts.
    found = uncertainty(np.array([[0.5, 1.0, 0.9], [0.1, 0.0, 0.8]], np.float32), exclusive=False)
    assert found == pytest.approx([1, 0, bits(0.8, 0.2)], abs=1e-5)
    # Two members that are certain and disagree, unsure and agree, and one of each.
    members = np.array([[[1, 0.5, 1]], [[0, 0.5, 0.5]]], np.float32)
    means = members.mean(axis=0), np.mean([entropies(one, True) for one in members], axis=0)
    assert disagreement(*means, True) == pytest.approx([1, 0, bits(0.75, 0.25) - 0.5], abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"regions": True}, {"residual_outputs": 1}, {"spacing": [2.0, 1.0, 1.0]}])
def test_maps_of_result_match_labels_probabilities_and_predicted_residual(tmp_path, settings):
    settings = dict(settings)
    spacing = settings.pop("spacing", None)
    model = make_model(tmp_path, scale=3, preparation={"spacing": spacing}, residual_axis="S", **settings)
    names = ("probability", "residual", "uncertainty", "result_residual", "residual_difference")
    result = segment(model, [random_volume(grid((12, 16, 14)))], SegmentOptions(maps=names, threads=1))
    maps = {name: array.astype(np.float32) for name, array in result.maps.items()}
    exclusive = not settings.get("regions")
    assert maps["uncertainty"][0] == pytest.approx(uncertainty(maps["probability"], exclusive), abs=0.02)
    # If the model's spacing is twice as large, one of its slices is two of the image's.
    step = 2 if spacing else 1
    labels = result.labels.array if result.regions is None else result.regions[0]
    if exclusive:
        masks = np.stack([labels == item.label for item in model.description.output.segments])
    else:
        masks = np.stack([labels & 1, labels >> 1 & 1]).astype(bool)
    expected = np.zeros(masks.shape, np.float32)
    expected[:, step:] = masks[:, step:] != masks[:, :-step]
    if settings.get("residual_outputs") == 1:
        expected = expected.max(axis=0, keepdims=True)
    assert 0.02 < expected.mean() < 0.98
    assert (maps["result_residual"] == expected).all()
    assert maps["residual_difference"] == pytest.approx(np.abs(maps["residual"] - expected), abs=1e-3)
    only = segment(model, [random_volume(grid((12, 16, 14)))], SegmentOptions(maps=names[-1:], threads=1)).maps
    assert set(only) == {"residual_difference"}
    assert (only["residual_difference"] == result.maps["residual_difference"]).all()


def test_roi_border_is_not_a_residual(tmp_path):
    model = make_model(tmp_path, scale=3, residual_axis="S")
    volume = random_volume(grid((12, 16, 14)))
    roi = BoxROI.from_bounds((-100, 100, -100, 100, 22.5, 28.5))
    result = segment(model, [volume], SegmentOptions(maps=("result_residual",), roi=roi, threads=1))
    found = result.maps["result_residual"].any(axis=0)
    inside = np.flatnonzero(result.labels.array.any(axis=(1, 2)))
    assert (inside[0], inside[-1]) == (3, 8)
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [4, 5, 6, 7, 8]
