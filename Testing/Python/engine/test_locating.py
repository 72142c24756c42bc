"""A locator finds the ROIs: their names and positions, and how the results in them are combined."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import conresnet
from conresnet.cli import cohort
from conresnet.cli.cases import ListedCase
from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.files import write_volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.segmentation import LoadedModel, WarmModel, load_model, segment
from conresnet.package import parse_description
from conresnet.package.reader import ModelPackage, read_package
from conresnet.package.store import write_package
from conresnet.request import Progress, SegmentOptions
from engine.model_cases import WEIGHTS, description, use_test_networks, write_model
from engine.package_cases import document, refusal
from engine.volumes import grid

PLACES = [
    {
        "name": "Left",
        "segments": ["Part 1"],
        "type_modifier": {"scheme": "SCT", "value": "24028007", "meaning": "Right"},
    },
    {"name": "Right", "segments": ["Part 2"]},
]
LOCATOR = {"model": "finder", "margin": 3, "places": PLACES}


def located(**changes: object) -> dict:
    return document(format_version=4, locator={**LOCATOR, **changes})


def write(folder: Path, name: str, locator: dict | None = None) -> ModelPackage:
    """Write a model that assigns voxels of value 1 and 2 to the segment with that number."""
    values = description(network="pointwise", intensity=(), inference={"window": [8, 8, 8]}) | {"name": name}
    # The images in these tests are not scans.
    values["inputs"][0]["modality"] = "label map"
    if locator:
        values |= {"format_version": 4, "locator": locator}
    weights = {"layer.weight": torch.tensor([0.0, 4.0, 10.0]).reshape(3, 1, 1, 1, 1)}
    weights["layer.bias"] = torch.tensor([0.0, -2.0, -13.5])
    return write_package(parse_description(values), {WEIGHTS: safetensors.torch.save(weights)}, folder / name)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    use_test_networks(monkeypatch)
    monkeypatch.setenv("CONRESNET_MODELS", str(tmp_path))
    write(tmp_path, "finder")
    return load_model(write(tmp_path, "organ", LOCATOR), "cpu", "fp32")


@pytest.fixture
def image() -> Volume:
    """A block of 1 on one side with a speck of it far away, and a block of 2 on the other side."""
    array = np.zeros((40, 44, 48), np.float32)
    array[10:16, 20:27, 8:12] = 1
    array[35, 2, 2] = 1
    array[11:17, 20:27, 34:40] = 2
    return Volume(array, grid(array.shape), "head")


def test_result_has_segments_of_each_place(model: LoadedModel, image: Volume) -> None:
    result = segment(model, [image], SegmentOptions(maps=("probability",), review=True, statistics=True))
    expected = np.where(image.array == 1, 10, np.where(image.array == 2, 40, 0))
    expected[35, 2, 2] = 0
    np.testing.assert_array_equal(result.labels.array, expected)
    rows = {row["name"]: (row["label"], row["voxels"]) for row in result.report["segments"]}
    assert rows == {
        "Left part 1": (10, 168),
        "Left part 2": (20, 0),
        "Right part 1": (30, 0),
        "Right part 2": (40, 252),
    }
    assert result.report["volumes_ml"]["Right part 2"] == pytest.approx(252 * image.grid.voxel_volume / 1000)
    assert result.report["located"]["model"]["name"] == "finder"
    assert result.maps["probability"].shape == (4, *image.array.shape)
    assert (result.maps["probability"].argmax(axis=0)[expected == 40] == 3).all()
    names = [item.name for item in result.output.segments]
    assert names == [row["name"] for row in result.report["segments"]]
    assert names == [row["segment"] for row in result.report["statistics"]]
    slices = {row["segment"] for row in result.report["review"]["rows"] if row["kind"] == "slice"}
    assert slices == {"all", "Left part 1", "Right part 2"}


def test_maps_are_those_of_each_place_also_where_features_are_negative(model, image, tmp_path):
    values = description("conresnet", inference={"window": [16, 16, 16]}) | {"name": "features"}
    package = write_model(tmp_path / "features", values | {"format_version": 4, "locator": LOCATOR})
    organ = load_model(package, "cpu", "fp32")
    result = segment(organ, [image], SegmentOptions(maps=("features", "attention"), roi="auto"))
    expected = {name: np.zeros_like(array) for name, array in result.maps.items()}
    for roi in result.report["located"]["rois"].values():
        one = segment(organ, [image], SegmentOptions(maps=("features", "attention"), roi=BoxROI.from_dict(roi)))
        for name, array in one.maps.items():
            expected[name] += array
    assert expected["features"].min() < 0 < expected["features"].max()
    for name, array in expected.items():
        np.testing.assert_array_equal(result.maps[name], array)


def test_margin_surrounds_largest_component(model: LoadedModel, image: Volume) -> None:
    result = segment(model, [image], SegmentOptions(roi="auto"))
    roi = result.report["located"]["rois"]["Left"]
    points = image.grid.to_ras(np.argwhere(image.array == 1)[:-1].astype(float))
    np.testing.assert_allclose(roi["size"], np.ptp(points, axis=0) + 6, atol=1e-6)
    np.testing.assert_allclose(roi["center"], (points.min(axis=0) + points.max(axis=0)) / 2, atol=1e-6)


def test_missing_place_gets_a_warning(model: LoadedModel, image: Volume) -> None:
    image.array[image.array == 2] = 0
    result = segment(model, [image])
    assert result.report["located"]["rois"]["Right"] is None
    assert [text for text in result.report["warnings"] if "Right" in text]
    # The missing place has its own warning, so only found segments are compared with their usual volume.
    output = model.description.output
    known = tuple(replace(item, volume_ml=(100.0, 200.0)) for item in output.segments)
    model.description = replace(model.description, output=replace(output, segments=known))
    missing, *unusual = segment(model, [image]).report["warnings"]
    assert "Right" in missing and [text.split(" measures ")[0] for text in unusual] == ["Left part 1", "Left part 2"]
    image.array[image.array == 1] = 0
    image.array[0, 0, 0] = 0.1
    with pytest.raises(UserError) as caught:
        segment(model, [image])
    assert caught.value.code == "nothing-located"


def test_empty_result_gets_a_warning(model: LoadedModel, image: Volume) -> None:
    with torch.no_grad():
        model.system.predictors[0].networks[0].layer.bias[0] = 100
    result = segment(model, [image])
    assert len(result.report["located"]["rois"]) == 2 and not any(result.report["volumes_ml"].values())
    (warning,) = result.report["warnings"]
    assert "found nothing in this image" in warning


def test_removed_volumes_are_reported_per_place(model: LoadedModel, image: Volume) -> None:
    known = tuple(replace(item, volume_ml=(100.0, 200.0)) for item in model.description.output.segments)
    model.description = replace(model.description, output=replace(model.description.output, segments=known))
    voxel_ml = image.grid.voxel_volume / 1000
    # The locator's result is not changed, and a segment dropped at a place gets only one warning.
    result = segment(model, [image], SegmentOptions(drop_below=300 * voxel_ml))
    assert result.report["postprocessing"]["removed_ml"] == {
        "Left part 1": pytest.approx(168 * voxel_ml),
        "Right part 2": pytest.approx(252 * voxel_ml),
    }
    dropped = [text.split(":")[0] for text in result.report["warnings"]]
    assert dropped == ["Nothing is left of Left part 1", "Nothing is left of Right part 2"]
    result = segment(model, [image], SegmentOptions(drop_below=200 * voxel_ml, keep_largest=True))
    post = result.report["postprocessing"]
    assert post["in_one_piece"] == ["Left part 1", "Left part 2", "Right part 1", "Right part 2"]
    assert (post["removed_ml"]["Left part 1"], post["removed_ml"]["Right part 2"]) == (pytest.approx(168 * voxel_ml), 0)


def test_replaced_locator_is_reloaded(model: LoadedModel, tmp_path: Path) -> None:
    warm, package = WarmModel(), read_package(tmp_path / "organ")
    first = warm.get(package)
    assert warm.get(read_package(tmp_path / "organ")) is first
    old = first.finder().description.digest
    shutil.rmtree(tmp_path / "finder")
    write(tmp_path, "finder", LOCATOR | {"model": "third"})
    new = read_package(tmp_path / "finder").description.digest
    assert warm.get(package).finder().description.digest == new != old


def test_whole_image_crop_and_box_need_no_locator(model: LoadedModel, image: Volume, tmp_path: Path) -> None:
    (tmp_path / "finder" / "model.json").unlink()
    assert set(np.unique(segment(model, [image], SegmentOptions(roi="all")).labels.array)) == {0, 10, 20}
    crop = Volume(image.array[8:18, 18:29, 6:14].copy(), grid((10, 11, 8)), "crop")
    assert "located" not in segment(model, [crop]).report
    with pytest.raises(UserError) as caught:
        segment(model, [image])
    assert caught.value.code == "locator-not-installed"


def test_damaged_locator_is_not_called_missing(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "finder" / "network.safetensors").write_bytes(b"cut off")
    refusal("package-truncated", model.finder)


def test_results_of_another_locator_are_not_reused(model, image, tmp_path) -> None:
    write_volume(image.array, image.grid, tmp_path / "head.nii")
    case, options = ListedCase("case", (tmp_path / "head.nii",), ""), SegmentOptions(review=True, threads=1)
    job = cohort.Job(case, tmp_path / "organ", options, tmp_path / "out", False, case.images)
    assert cohort.segment_case(job).state == cohort.DONE and cohort.segment_case(job).state == cohort.SKIPPED
    shutil.rmtree(tmp_path / "finder")
    assert cohort.segment_case(job).state == cohort.SKIPPED
    write(tmp_path, "finder", LOCATOR | {"model": "third"})
    assert "because the model finder changed" in cohort.segment_case(job).problem.sentence


def test_auto_needs_a_locator_with_the_segments(model: LoadedModel, image: Volume, tmp_path: Path) -> None:
    plain = load_model(tmp_path / "finder", "cpu", "fp32")
    with pytest.raises(UserError) as caught:
        segment(plain, [image], SegmentOptions(roi="auto"))
    assert caught.value.code == "no-locator"
    other = {**LOCATOR, "places": [{"name": "Left", "segments": ["Liver"]}]}
    with pytest.raises(UserError) as caught:
        segment(load_model(write(tmp_path, "other", other)), [image])
    assert caught.value.code == "locator-differs"


def test_progress_never_decreases_and_segmentation_can_be_cancelled(model: LoadedModel, image: Volume) -> None:
    class Recorded(Progress):
        def __init__(self) -> None:
            self.reports: list[tuple[str, float]] = []

        def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
            self.reports.append((phase, fraction))

    recorded = Recorded()
    segment(model, [image], progress=recorded)
    fractions = [fraction for _phase, fraction in recorded.reports]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)
    assert recorded.reports[0][0] == "locating" and recorded.reports[-1][0] == "writing"


@pytest.mark.parametrize(
    ("code", "option"),
    [
        ("map-unavailable", {"maps": ("residual",)}),
        ("volume-not-positive", {"drop_below": -1.0}),
        ("tiling-unknown", {"tiling": "other"}),
    ],
)
def test_invalid_option_is_refused_before_locator_runs(model, image, code, option) -> None:
    class Refused(Progress):
        def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
            raise AssertionError(f"{phase} has begun")

    with pytest.raises(UserError) as caught:
        segment(model, [image], SegmentOptions(**option), Refused())
    assert caught.value.code == code


def test_python_accepts_roi_auto(model: LoadedModel, image: Volume) -> None:
    pair = (np.asarray(image.array).transpose(2, 1, 0), image.grid.affine)
    result = conresnet.segment(pair, "organ", roi="auto", device="cpu")
    assert set(np.unique(result.labels)) == {0, 10, 40}


def test_side_is_added_to_terminology() -> None:
    whole = located()
    first = parse_description(whole).located_output.segments[0]
    assert first.name == "Left left part" and first.terminology.type_modifier.meaning == "Left", "the segment had one"
    del whole["output"]["segments"][0]["terminology"]["type_modifier"]
    first, second = parse_description(whole).located_output.segments[:2]
    assert first.terminology.type_modifier.meaning == "Right" and second.terminology is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "organ"}, "locator.model"),
        ({"model": "../other"}, "locator.model"),
        ({"places": []}, "locator.places"),
        ({"places": [PLACES[0], PLACES[0]]}, "locator.places"),
        ({"margin": -1}, "locator.margin"),
    ],
)
def test_invalid_locator_is_refused(changes: dict, field: str) -> None:
    assert field in refusal("package-description", parse_description, located(**changes))


def test_locator_requires_format_version_4() -> None:
    assert parse_description(document()).locator is None
    assert "locator" in refusal("package-description", parse_description, document(locator=LOCATOR))
