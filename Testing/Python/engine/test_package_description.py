"""model.json: valid descriptions are read back unchanged, and an error in one is reported with the field's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conresnet.errors import UserError
from conresnet.package import FORMAT_VERSION, parse_description
from engine.model_cases import description as model_description
from engine.package_cases import ARGUMENTS, changed, document, older, refusal

CLIP = {"step": "clip", "low": -100, "high": 240}
SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "zero"}
EQUALIZE = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}


def test_valid_description_is_read() -> None:
    description = parse_description(document())
    assert description.name == "organ"
    assert description.preparation.spacing == (2.0, 1.0, 1.0)
    assert description.output.segments[0].terminology.type_modifier.meaning == "Left"
    assert description.output.paint_order == ("Left part", "Right part")
    assert description.residual_axis == "axial"


def auto_context(network: object) -> dict:
    """Auto-context around a network description, which may be invalid."""
    return {"type": "auto_context", "arguments": {"outputs": 3, "network": network}, "weights": "network.safetensors"}


def with_copies(*copies: list[dict], channels: int) -> dict:
    description = changed("system.networks.0.arguments", {**ARGUMENTS, "input_channels": channels})
    description["inputs"][0]["copies"] = list(copies)
    return description


def nested_regions() -> dict:
    """Three regions, the first of which includes the others."""
    description = model_description(segments=3, regions=True)
    description["output"]["segments"][0]["includes"] = ["Part 2", "Part 3"]
    return description


@pytest.mark.parametrize(
    "description", [document(), with_copies([CLIP, SLICES], [EQUALIZE], channels=3), nested_regions()]
)
def test_written_description_is_read_back_unchanged(description: dict) -> None:
    files = {"network.safetensors": {"sha256": "0" * 64, "bytes": 3}}
    description = parse_description({**description, "files": files})
    assert parse_description(description.to_json().encode()) == description


def test_copies_count_as_channels_of_the_network() -> None:
    description = parse_description(with_copies([CLIP, SLICES], [EQUALIZE], channels=3))
    assert description.channel_count == 3
    (item,) = description.inputs
    assert item.channels == (item.intensity, (CLIP, SLICES), (EQUALIZE,))
    message = refusal("package-description", parse_description, with_copies([EQUALIZE], channels=1))
    assert "input_channels" in message and "must be 2" in message
    assert parse_description(document()).channel_count == 1


def test_format_version_1_is_read_and_has_no_copies() -> None:
    assert parse_description(older(document(), 1)) == parse_description(document())
    first = older(with_copies([EQUALIZE], channels=2), 1)
    message = refusal("package-description", parse_description, first)
    assert '"inputs[0].copies" is not a field of this format' in message


def test_roi_means_cut_before_format_version_3() -> None:
    assert parse_description(older(document(), 2)).preparation.roi == "cut"
    without_roi = {**older(document(), 2), "format_version": 3}
    assert '"preparation.roi"' in refusal("package-description", parse_description, without_roi)
    assert parse_description(changed("preparation.roi", "limit")).preparation.roi == "limit"


@pytest.mark.parametrize(("index", "included"), [(0, "Part 1"), (2, "Part 1"), (0, "Liver")])
def test_regions_include_only_regions_painted_over_them(index: int, included: str) -> None:
    description = nested_regions()
    assert [item.includes for item in parse_description(description).output.segments] == [("Part 2", "Part 3"), (), ()]
    description["output"]["segments"][index]["includes"] = [included]
    assert f"segments[{index}].includes" in refusal("package-description", parse_description, description)


def test_labels_and_format_version_1_have_no_includes() -> None:
    labels = model_description(segments=3)
    labels["output"]["segments"][0]["includes"] = ["Part 2"]
    assert "segments[0].includes" in refusal("package-description", parse_description, labels)
    first = older(nested_regions(), 1)
    del first["inputs"][0]["copies"]
    message = refusal("package-description", parse_description, first)
    assert 'includes" is not a field of this format' in message


def test_steps_in_wrong_order_are_refused_and_named() -> None:
    message = refusal("package-description", parse_description, with_copies([EQUALIZE], [CLIP, EQUALIZE], channels=3))
    assert '"inputs[0].copies[1][1]" must come before clip' in message
    message = refusal("package-description", parse_description, changed("inputs.0.intensity", [SLICES, EQUALIZE]))
    assert '"inputs[0].intensity[1]" must come before z_score_slices' in message


def test_example_in_documentation_is_valid(repository: Path) -> None:
    text = (repository / "docs" / "model-package.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(\{\n.*?\n\})\n```", text, re.DOTALL).group(1)
    assert parse_description(example.encode()).name == "hippocampus"


@pytest.mark.parametrize(
    ("orientation", "axis", "plane"), [("SAR", "S", "axial"), ("SLP", "W", "coronal"), ("ARS", "H", "sagittal")]
)
def test_residual_plane_follows_from_axis_and_orientation(orientation: str, axis: str, plane: str) -> None:
    arguments = {**ARGUMENTS, "residual_axis": axis}
    changes = changed("system.networks.0.arguments", arguments)
    changes["preparation"]["orientation"] = orientation
    assert parse_description(changes).residual_axis == plane


@pytest.mark.parametrize("field", [key for key in document() if key != "format_version"])
def test_missing_field_is_named(field: str) -> None:
    description = document()
    del description[field]
    assert f'"{field}" is missing' in refusal("package-description", parse_description, description, "a/model.json")


WRONG = [
    ("format", "nnunet"),
    ("name", "../organ"),
    ("name", "aux.1"),
    ("name", "organ\n"),
    ("title", " "),
    ("title", "An\x1b[2J organ"),
    ("version", "latest"),
    ("license", 7),
    ("inputs", []),
    ("inputs.0.name", ""),
    ("inputs.0.keywords", "t1"),
    ("inputs.0.intensity", [{"step": "sharpen"}]),
    ("inputs.0.intensity", [{"step": ["clip"]}]),
    ("inputs.0.intensity", [{}]),
    ("inputs.0.copies", EQUALIZE),
    ("inputs.0.copies", [EQUALIZE]),
    ("inputs.0.copies", [[]]),
    ("inputs.0.copies", [None]),
    ("inputs.0.copies", [[{**EQUALIZE, "tiles": 0}]]),
    ("inputs.0.copies", [[EQUALIZE]] * 17),
    ("preparation.orientation", "SAS"),
    ("preparation.orientation", "sar"),
    ("preparation.spacing", [1, 1]),
    ("preparation.spacing", [1, 1, 0]),
    ("preparation.spacing", [1, 1, True]),
    ("preparation.spacing", [1, 1, float("nan")]),
    ("preparation.spacing", [1, 1, 10**400]),
    ("preparation.foreground", "brain"),
    ("preparation.roi", "ignore"),
    ("system.networks", {}),
    ("system.networks.0.weights", "network.pth"),
    ("system.networks.0.weights", "folder/network.safetensors"),
    ("system.networks.0.arguments", {"base_width": float("inf")}),
    ("system.networks.0.arguments", {"input_channels": 2, "outputs": 3}),
    ("system.networks.0.arguments", {"input_channels": 1, "outputs": 2}),
    ("system.networks.0.arguments", {"residual_axis": "X"}),
    ("system.networks.0.arguments", {"input_channels": 1, "outputs": 3}),
    ("system.networks.0.arguments", {"input_channels": 1, "outputs": 3, "residual_outputs": None}),
    ("system.networks.0.arguments", {"input_channels": 1, "outputs": 3, "residual_outputs": 3}),
    ("system.networks.0", auto_context("conresnet")),
    ("system.networks.0", auto_context({"type": "unet", "arguments": []})),
    ("system.networks.0", auto_context({"type": [], "arguments": {}})),
    ("system.networks.0", auto_context({"type": "conresnet", "arguments": {}})),
    ("inference.window", [16, 32, 100_000]),
    ("inference.window", [16, 32.5, 32]),
    ("inference.overlap", 1.0),
    ("inference.tiling", "mosaic"),
    ("inference.mirror_axes", ["S", "S"]),
    ("output.kind", "contours"),
    ("output.segments.0.label", 0),
    ("output.segments.0.label", 2),
    ("output.segments.0.name", "right PART"),
    ("output.segments.0.color", [0, 0, 256]),
    ("output.segments.0.terminology.type.meaning", "Kidney~Left"),
    ("output.paint_order", ["Left part"]),
    ("output.segments.0.volume_ml", [2.0, 1.0]),
    ("output.segments.0.volume_ml", [0.5, 10**400]),
    ("output.segments.0.volume_ml", [0.5, float("inf")]),
    ("output.swapped_segments", [["Left part", "Left part"]]),
    ("output.swapped_segments", [["Left part", "Middle"]]),
    ("residual_axis", "coronal"),
    ("overlap", 0.5),
    ("inference.overlp", 0.5),
    ("files", {"model.json": {"sha256": "0" * 64, "bytes": 1}}),
    ("format_version", 0),
    ("files", {"code.py": {"sha256": "0" * 64, "bytes": 1}}),
    ("files", {"../network.safetensors": {"sha256": "0" * 64, "bytes": 1}}),
    ("files", {"network.safetensors": {"sha256": "abc", "bytes": 1}}),
    ("files", {"network.safetensors": {"sha256": "0" * 64, "bytes": -1}}),
    ("files", {"other.safetensors": {"sha256": "0" * 64, "bytes": 1}}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}={str(value)[:30]!a}" for path, value in WRONG])
def test_invalid_value_is_refused_and_field_named(path: str, value: object) -> None:
    message = refusal("package-description", parse_description, changed(path, value), "a/model.json")
    assert "a/model.json" in message
    # The check of a list or of several fields together may name the list or a related field.
    field = re.search(r'is wrong: "([^"]+)"', message).group(1)
    assert re.split(r"[.\[]", field)[0] in (path.split(".")[0], "system")


def test_number_instead_of_text_asks_for_quotes() -> None:
    message = refusal("package-description", parse_description, changed("version", 1.0), "a/model.json")
    assert '"version" must be text in quotes, but is 1.0' in message


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99])
def test_newer_format_asks_for_an_update(version: int) -> None:
    newer = {"format": "conresnet-model", "format_version": version, "something": "new"}
    message = refusal("package-newer", parse_description, newer, "a/model.json")
    assert f"format version {version}" in message and "update ConResNet" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"format": ', "Expecting value"),
        (b"[1, 2]", "does not contain a JSON object"),
        (b'{"name": "caf\xe9"}', "not UTF-8"),
        (b'{"overlap": NaN}', "NaN"),
        (b'{"overlap": -Infinity}', "Infinity"),
        (b'{"name": "a", "name": "b"}', '"name" occurs twice'),
        (b'{"label": ' + b"9" * 5000 + b"}", "is too large"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"volume_ml": [0.5, 1e400]}', "1e400 is too large"),
        (b"\x80\x04\x95pickle", "not UTF-8"),
    ],
)
def test_invalid_json_is_refused_with_reason(text: bytes, reason: str) -> None:
    message = refusal("package-json", parse_description, text, "a/model.json")
    assert "a/model.json" in message and reason in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    *document(),
    "inputs.0",
    "inputs.0.intensity.0",
    "inputs.0.copies",
    "preparation.spacing",
    "system.networks.0",
    "output.segments",
]


@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_field_is_read_or_refused_with_one_line(path: str, value: object) -> None:
    try:
        description = parse_description(changed(path, value))
    except UserError as error:
        assert error.code in ("package-description", "package-newer") and "\n" not in error.message
    else:
        assert parse_description(json.loads(description.to_json())) == description
