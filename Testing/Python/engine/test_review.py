"""The review list and the statistics of a result, on small cases that can be counted by hand."""

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet.images import Reordering, Volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.results import entropies
from conresnet.inference.segmentation import segment
from conresnet.messages import reason
from conresnet.package import parse_description
from conresnet.package.schema import dump
from conresnet.package.store import write_package
from conresnet.request import SegmentOptions
from conresnet.results import segment_statistics, surface_mm2, write_statistics
from conresnet.results.review import (
    COLUMNS,
    FALLBACK,
    RANKING_FILE,
    Slices,
    find_spots,
    make_review,
    read_ranking,
    slice_features,
    write_review,
)
from engine.model_cases import description, make_model, write_model
from engine.volumes import grid, random_volume, stored

PARTS = parse_description(description()).output
BITS = np.log2(3)
REGIONS = parse_description(description(regions=True)).output
# 2 mm along R, 1 mm along A, 3 mm along S.
GRID = grid((5, 6, 7), spacing=(2.0, 1.0, 3.0), origin=(10.0, 20.0, 30.0))


@pytest.fixture
def labels() -> np.ndarray:
    """Part 1 (value 10) in slices 1 to 3, Part 2 (value 20) in slice 3 only."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1, 1:3, 1:4] = 10
    labels[2, 1:3, 1:4] = 10
    labels[3, 1:3, 1:3] = 10
    labels[3, 4, 5] = 20
    return labels


def test_features_are_measured_in_mm2_in_slices_of_the_model(labels):
    slices = Slices(labels, None, PARTS, GRID, "SAR", 0, BITS)
    entropy = np.arange(15.0).reshape(3, 5)
    found = {(item.segment, item.place): item for item in slice_features(slices, entropy)}
    assert sorted(found) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 3)]
    middle = found[1, 2]
    assert not middle.is_end and found[1, 3].is_end and found[0, 1].is_end
    assert middle.values == pytest.approx(
        {"log_area": np.log1p(12), "log_entropy": np.log1p(14), "log_change": np.log1p(4), "overlap": 10 / 12}
    )
    assert middle.point == (14.0, 21.0, 36.0)
    # The same anatomy in the opposite direction, or along another axis.
    down = Slices(labels, None, PARTS, GRID, "IAR", 0, BITS)
    assert [down.number(place) for place in range(5)] == [4, 3, 2, 1, 0]
    sideways = Slices(labels, None, PARTS, GRID, "SAR", 2, BITS)
    assert len(sideways) == 7 and sideways.voxel_axis == 2 and sideways.pixel_mm2 == 3.0
    assert {item.place for item in slice_features(sideways, np.zeros((3, 7)))} == {1, 2, 3, 5}


def test_overlapping_regions_are_measured_whole():
    regions = np.zeros((1, *GRID.shape), np.uint8)
    regions[0, 2, :2] = 1
    regions[0, 2, 1] |= 2
    labels = np.where(regions[0] & 2, 20, np.where(regions[0], 10, 0)).astype(np.uint8)
    found = slice_features(Slices(labels, regions, REGIONS, GRID, "SAR", 0, BITS), np.zeros((3, 5)))
    areas = {item.segment: np.expm1(item.values["log_area"]) / 2 for item in found}
    assert areas == pytest.approx({0: 14, 1: 14, 2: 7})
    rows = segment_statistics(labels, GRID, REGIONS, {}, regions=regions)
    assert [row["voxels"] for row in rows] == [14, 7]


def test_list_has_slices_and_spots_ordered_by_expected_wrong_voxels(labels, tmp_path):
    slices = Slices(labels, None, PARTS, GRID, "SAR", 0, BITS)
    uncertainty = np.zeros(GRID.shape, np.float32)
    uncertainty[1:3, 3, 1:4] = 0.6  # 0.95 bits of two of three classes
    uncertainty[4, 0, 0] = 1  # a single voxel
    rows = make_review(slices, np.ones((3, 5)), uncertainty, FALLBACK)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    wrong = [row.expected_wrong_voxels for row in rows]
    assert wrong == sorted(wrong, reverse=True)
    assert {row.slice for row in rows if row.kind == "slice" and row.segment == "all"} == {1, 2, 3}
    assert [row.slice for row in rows if row.segment == "Part 2"] == [3]
    (spot,) = [row for row in rows if row.kind == "spot"]
    assert (spot.segment, spot.expected_dice) == ("Part 1", None)
    assert spot.expected_wrong_voxels == pytest.approx(6 * FALLBACK.spot_rate)
    assert (spot.r, spot.a, spot.slice) == (14.0, 23.0, (spot.s - 30) / 3)
    assert all(
        row.reason.endswith(" (ranked by area and entropy; not fitted to this model)")
        for row in rows
        if row.expected_dice
    )
    assert (spot.reason, spot.reason_codes) == ("uncertain boundary", ("reason-uncertain",))
    assert all(row.reason == reason(row.reason_codes) for row in rows)
    write_review(rows, tmp_path / "review.csv")
    with open(tmp_path / "review.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS and len(written) == len(rows)
    assert [row["reason"] for row in written] == [row.reason for row in rows]
    assert written[spot.rank - 1]["expected_dice"] == "" and float(written[0]["r"]) == rows[0].r
    # Slicer gets the rows as objects in the engine's report.
    write_review(json.loads(json.dumps([asdict(row) for row in rows])), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "review.csv").read_bytes()


def test_long_uncertain_boundary_is_reduced_to_its_most_uncertain_parts():
    uncertainty = np.zeros((5, 6, 60), np.float32)
    uncertainty[2, 2:4] = 0.85 / np.log2(3)
    millimeters = np.ones(3)
    assert find_spots(uncertainty, BITS, millimeters)[2] == []
    uncertainty[2, 2:4, 10:14] = uncertainty[2, 2:4, 30:40] = 0.92 / np.log2(3)
    spots, box, sizes = find_spots(uncertainty, BITS, millimeters)
    assert sorted(sizes) == [8, 20] and np.bincount(spots.ravel())[1:].tolist() == sizes
    assert (spots > 0).sum() == ((uncertainty * np.log2(3))[box] > 0.9).sum()
    assert find_spots(uncertainty, BITS, 0.3 * millimeters)[2] == [120]
    # With maximal uncertainty everywhere, it is divided into pieces.
    uncertainty[2, 2:4] = 1
    spots, box, sizes = find_spots(uncertainty, BITS, millimeters)
    assert sorted(sizes) == [40, 40, 40] and np.bincount(spots.ravel())[1:].tolist() == sizes


def test_small_blurred_slice_is_expected_to_be_worse_than_a_large_sharp_one(labels):
    entropy = np.ones((3, 5))
    entropy[:, 3] = 4
    rows = make_review(Slices(labels, None, PARTS, GRID, "SAR", 0, BITS), entropy, np.zeros(GRID.shape), FALLBACK)
    dice = {(row.segment, row.slice): row.expected_dice for row in rows}
    assert dice["Part 1", 3] < dice["Part 1", 2] and dice["Part 2", 3] < dice["Part 1", 3]


@pytest.mark.parametrize("settings", [{}, {"regions": True}, {"preparation": {"spacing": [2.0, 1.0, 1.0]}}])
def test_entropy_of_a_slice_matches_its_probabilities(tmp_path, settings):
    model = make_model(tmp_path, scale=3, **settings)
    options = SegmentOptions(review=True, maps=("probability", "uncertainty"), threads=1)
    roi = BoxROI.from_bounds((-100, 100, 8, 17, 22.5, 28.5))
    for chosen in (options, replace(options, roi=roi)):
        result = segment(model, [random_volume(grid((12, 16, 14)))], chosen)
        probability = result.maps["probability"].astype(np.float64)
        each = [entropies(one[None], exclusive=False)[0] for one in probability]
        expected = np.stack([result.maps["uncertainty"][0].astype(np.float64), *each]).sum(axis=(2, 3))
        assert result.entropy.shape == (3, 12) and expected.any()
        assert result.entropy == pytest.approx(expected, rel=0.02, abs=0.5)


def test_list_does_not_depend_on_orientation_of_the_image(tmp_path):
    model = make_model(tmp_path, scale=3, residual_axis="H")
    volume = random_volume(grid((12, 16, 14), spacing=(1.0, 1.5, 2.0)))
    lists = []
    for way in (Reordering((0, 1, 2), (False,) * 3), Reordering((2, 0, 1), (True, False, True))):
        image = stored(volume, way)
        result = segment(model, [image], SegmentOptions(review=True, threads=1))
        report = result.report["review"]
        axis = report["axis"]
        assert image.grid.shape[axis] == 16
        for row in report["rows"]:
            # The slice number and the point refer to the same position.
            index = np.linalg.inv(image.grid.array_affine) @ [row["r"], row["a"], row["s"], 1]
            assert index[axis] == pytest.approx(row["slice"], abs=0.02)
        kept = ("kind", "segment", "expected_wrong_voxels", "expected_dice", "reason")
        lists.append(sorted(str([row[name] for name in kept]) for row in report["rows"]))
    assert lists[0] == lists[1] and len(lists[0]) >= 16


def refused(function) -> str:
    """Name of the field in the error for an invalid review.json."""
    with pytest.raises(UserError) as caught:
        function()
    assert caught.value.code == "package-description"
    return caught.value.values["field"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda ranking: ranking.pop("whole"), "whole"),
        (lambda ranking: ranking["features"].append("luck"), "features"),
        (lambda ranking: ranking["segments"].update(dice_weights=[1.0]), "segments.dice_weights"),
        (lambda ranking: ranking["whole"].update(wrong_intercept="1"), "whole.wrong_intercept"),
        (lambda ranking: ranking.update(extra=1), "extra"),
        (lambda ranking: ranking.update(spot_rate=2), "spot_rate"),
    ],
)
def test_invalid_ranking_is_refused(tmp_path, change, named):
    package = write_model(tmp_path / "model", description("voxresnet", base_width=8))
    assert read_ranking(package) is FALLBACK
    files = {name: package.read_file(name) for name in package.description.files}

    def with_ranking(ranking: dict):
        content = json.dumps(ranking).encode()
        return write_package(package.description, {**files, RANKING_FILE: content}, tmp_path / "ranked", overwrite=True)

    ranking = dump(FALLBACK)
    uses_residual = {**ranking, "features": ["log_area", "log_disagreement"]}
    assert refused(lambda: read_ranking(with_ranking(uses_residual))) == "features"
    assert read_ranking(with_ranking(ranking)) == FALLBACK
    change(ranking)
    assert refused(lambda: read_ranking(with_ranking(ranking))) == named


def test_statistics_of_known_shapes(labels, tmp_path):
    image = Volume(np.arange(labels.size, dtype=np.int16).reshape(labels.shape), GRID, "image")
    # At half the resolution, each voxel is the nearest one of several label voxels.
    half = Volume(np.full((3, 3, 4), 7.0, np.float32), grid((3, 3, 4), (4.0, 2.0, 6.0), (10.0, 20.0, 30.0)), "half")
    rows = segment_statistics(labels, GRID, PARTS, {"T1": image, "T2": half}, np.full(labels.shape, 0.25, np.float32))
    first, second = rows
    assert (first["voxels"], first["volume_ml"]) == (16, pytest.approx(16 * 6 / 1000))
    assert first["mean_intensity"] == pytest.approx({"T1": image.array[labels == 10].mean(), "T2": 7.0})
    assert first["mean_uncertainty"] == 0.25 and second["voxels"] == 1
    write_statistics(rows, tmp_path / "statistics.csv")
    lines = (tmp_path / "statistics.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "segment,voxels,volume_ml,surface_cm2,mean_intensity T1,mean_intensity T2,mean_uncertainty"
    assert lines[1].startswith("Part 1,16,0.096,") and len(lines) == 3
    nothing = segment_statistics(np.zeros_like(labels), GRID, PARTS, {"T1": image})
    assert nothing[0]["voxels"] == 0 and nothing[0]["mean_intensity"] == {"T1": None}


def test_surface_area_of_a_sphere():
    places = np.indices((41, 41, 21)) - np.array([20, 20, 10])[:, None, None, None]
    ball = (places * np.array([1, 1, 2])[:, None, None, None] ** 1).astype(float)
    mask = (ball**2).sum(axis=0) <= 15**2
    assert surface_mm2(mask, (2.0, 1.0, 1.0)) == pytest.approx(4 * np.pi * 15**2, rel=0.05)
