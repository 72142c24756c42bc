"""Which maps a model makes: told from its description as Slicer needs it, and what the networks then really give."""

import pytest

from conresnet.inference.segmentation import load_model
from conresnet.networks import network_names
from conresnet.package import parse_description
from conresnet.package.maps import provided_maps, residual_plane
from engine.coarse_to_fine_cases import coarse_to_fine, random_weights, write_pair
from engine.model_cases import description, write_model

EVERY = {"probability", "residual", "attention", "features"}
SMALL = {kind: {"base_width": 8} for kind in ("conresnet", "voxresnet", "resdsn", "unet", "pyramid")}


def arguments_of(kind: str) -> dict:
    return description(kind, **SMALL.get(kind, {}))["system"]["networks"][0]["arguments"]


def inner(kind: str, **settings) -> dict:
    """A network as auto-context takes it."""
    own = {**arguments_of(kind), **settings}
    return {"network": {"type": kind, "arguments": {key: own[key] for key in set(own) - {"input_channels", "outputs"}}}}


CASES = [
    ("conresnet", {}, EVERY),
    ("conresnet", {"attention_mapping": False}, EVERY - {"attention"}),
    ("conresnet", {"residual_mapping": False, "attention_mapping": False}, {"probability", "features"}),
    ("conresnet", {"backbone": "voxresnet"}, EVERY),
    ("voxresnet", {}, {"probability"}),
    ("resdsn", {}, {"probability"}),
    ("unet", {}, {"probability"}),
    ("pyramid", {}, {"probability"}),
    ("auto_context", inner("voxresnet"), {"probability"}),
    ("auto_context", inner("conresnet", attention_mapping=False), EVERY - {"attention"}),
]


def test_every_network_is_among_the_cases():
    assert {kind for kind, _, _ in CASES} == set(network_names())


@pytest.mark.parametrize(("kind", "settings", "expected"), CASES)
def test_the_description_tells_what_the_network_gives(tmp_path, kind, settings, expected):
    document = description(kind)
    document["system"]["networks"][0]["arguments"] = {**arguments_of(kind), **settings}
    assert provided_maps(parse_description(document)) == expected
    model = load_model(write_model(tmp_path / "model", document), "cpu", "fp32")
    assert model.system.maps == expected


def test_the_plane_of_residuals_is_that_of_a_network_which_has_them():
    assert residual_plane(parse_description(description("conresnet"))) == "axial"
    assert residual_plane(parse_description(description("conresnet", residual_axis="H"))) == "coronal"
    assert residual_plane(parse_description(description("conresnet", residual_mapping=False))) == ""
    assert residual_plane(parse_description(description("voxresnet", base_width=8))) == ""


def test_of_two_passes_the_last_one_makes_the_maps(tmp_path):
    document = coarse_to_fine(description("resdsn", base_width=8), fine=description("conresnet"))
    package = write_pair(tmp_path, document, *(random_weights(document, index) for index in (0, 1)))
    assert provided_maps(package.description) == load_model(package, "cpu", "fp32").system.maps == EVERY
