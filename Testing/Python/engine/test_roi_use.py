"""The two meanings of an ROI for a model: it sees only the ROI, or only its result is limited to the ROI."""

import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet.images.geometry import ModelSpace
from conresnet.images.inputs import BoxROI
from conresnet.images.preparation import _whole, prepare
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.request import SegmentOptions
from engine.model_cases import description, make_model, use_test_networks, write_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume, rotation

COPY = [
    {"step": "subtract_gaussian", "sigma_mm": 5.0},
    {"step": "equalize", "clip_limit": 0.01, "tiles": 8},
    {"step": "z_score_slices", "over": "foreground", "outside": "zero"},
]
WINDOW = (16, 24, 16)


def settings(roi, spacing=None):
    preparation = {"roi": roi, "spacing": spacing, "foreground": "not_background"}
    return {"preparation": preparation, "inference": {"window": list(WINDOW)}}


def box_at(volume, place, size, turn=0):
    return BoxROI(np.array(volume.grid.center) + place, rotation(turn), np.array(size, dtype=float))


@pytest.mark.parametrize("spacing", [None, [3, 2.5, 2]])
@pytest.mark.parametrize("turn", [0, 30])
def test_limit_does_not_change_the_network_input(head_image, spacing, turn):
    head = read_volume(head_image)
    model = parse_description(description(copies=[COPY], **settings("limit", spacing)))
    whole = prepare(model, [head])
    part = prepare(model, [head], box_at(head, (10, -20, 5), (70, 60, 50), turn))
    where = part.space.part_of(whole.space)
    assert part.shape != whole.shape and tuple(side.stop - side.start for side in where) == part.shape
    expected = whole.block([side.start for side in where], part.shape)
    assert np.array_equal(part.block((0, 0, 0), part.shape), expected)
    assert part.backgrounds == whole.backgrounds


def test_cut_uses_only_the_roi(head_image):
    head = read_volume(head_image)
    box = box_at(head, (10, -20, 5), (70, 60, 50))
    limited, cut = (prepare(parse_description(description(**settings(roi))), [head], box) for roi in ("limit", "cut"))
    block, start = cut.block((0, 0, 0), cut.shape), [side.start for side in cut.space.part_of(limited.space)]
    assert not np.allclose(limited.block(start, cut.shape), block, atol=0.1)
    assert block.mean() == pytest.approx(0, abs=0.01) and block.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("place", "size", "start", "shape"),
    [
        ((0, 0, 0), (5, 5, 5), (12, 8, 12), (16, 24, 16)),
        ((-18, 0, 17), (5, 5, 5), (24, 8, 0), (16, 24, 16)),
        ((0, 0, 0), (5, 30, 16), (10, 2, 12), (20, 36, 16)),
        ((0, 0, 0), (5, 38, 5), (12, 0, 12), (16, 40, 16)),
    ],
    ids=["center", "corner", "longer", "all except borders"],
)
def test_limited_array_has_a_margin_and_at_least_window_size(place, size, start, shape):
    volume = random_volume(grid((40, 40, 40)))
    box = box_at(volume, place, size)
    whole = ModelSpace(volume.grid, "SAR")
    space = ModelSpace(volume.grid, "SAR", None, box, window=WINDOW)
    assert space.grid.shape == shape
    assert tuple(side.start for side in space.part_of(whole)) == pytest.approx(start, abs=1)
    assert box.contains(space.grid.array_affine, shape).sum() == box.contains(volume.grid.array_affine, (40,) * 3).sum()


def test_image_too_large_to_measure_is_refused():
    large = Volume(np.broadcast_to(np.int16(1), (3000, 3000, 3000)), grid((3000, 3000, 3000)), "large")
    space = ModelSpace(large.grid, "SAR", (2, 2, 2), box_at(large, (0, 0, 0), (9, 9, 9)), window=WINDOW)
    assert space.grid.shape == WINDOW
    with pytest.raises(UserError) as caught:
        _whole(parse_description(description(**settings("limit", [2, 2, 2]))), large)
    assert caught.value.code == "image-too-large-to-measure"


def test_image_smaller_than_a_window_is_used_whole():
    volume = random_volume(grid((9, 30, 9)))
    space = ModelSpace(volume.grid, "SAR", None, box_at(volume, (1, 1, 1), (3, 3, 3)), window=WINDOW)
    assert space.grid.shape == (9, 24, 9)


@pytest.mark.parametrize("spacing", [None, [3, 2.5, 2]])
@pytest.mark.parametrize("turn", [0, 30])
@pytest.mark.parametrize("regions", [False, True])
def test_limited_result_matches_whole_image_inside_roi_and_is_empty_outside(
    monkeypatch, tmp_path, head_image, spacing, turn, regions
):
    use_test_networks(monkeypatch)
    head = read_volume(head_image)
    model = make_model(tmp_path, scale=5, network="pointwise", regions=regions, **settings("limit", spacing))
    box = box_at(head, (0, -10, 5), (90, 80, 60), turn)
    inside = box.contains(head.grid.array_affine, head.grid.shape)
    maps = ("probability",)
    whole = segment(model, [head], SegmentOptions(maps=maps, threads=1))
    part = segment(model, [head], SegmentOptions(maps=maps, roi=box, threads=1))
    assert len(np.unique(whole.labels.array[inside])) > 1
    assert np.array_equal(part.labels.array, np.where(inside, whole.labels.array, 0))
    assert np.allclose(part.maps["probability"], whole.maps["probability"] * inside, atol=2e-3)
    volumes = {row["name"]: row["voxels"] for row in part.report["segments"]}
    if not regions:
        assert sum(volumes.values()) == np.count_nonzero(part.labels.array)


def test_crop_model_warns_about_whole_scan(tmp_path):
    changes = {"network": "conresnet", "base_width": 8, "inference": {"window": [16, 16, 16]}}
    model = make_model(tmp_path, **changes)
    crop, scan = random_volume(grid((20, 20, 20))), random_volume(grid((64, 48, 48)))
    assert segment(model, [crop], SegmentOptions(threads=1)).report["warnings"] == []
    (warning,) = segment(model, [scan], SegmentOptions(threads=1)).report["warnings"]
    assert "random is much larger" in warning and "A model for tests" in warning and "draw an ROI" in warning
    box = box_at(scan, (0, 0, 0), (16, 16, 16))
    assert segment(model, [scan], SegmentOptions(roi=box, threads=1)).report["warnings"] == []


@pytest.mark.parametrize(("slices", "share"), [(20, "50%"), (4, "10%"), (40, None), (39, None)])
def test_image_that_covers_little_of_the_case_gets_a_warning(slices, share):
    first, part = random_volume(grid((40, 20, 20))), grid((slices, 20, 20))
    second = Volume(random_volume(part, seed=1).array, part, "slab")
    case = prepare(parse_description(description(channels=2)), [first, second])
    expected = f"slab covers only {share} of the part of random to be segmented"
    assert [warning.split(";")[0] for warning in case.warnings] == ([expected] if share else [])


def test_second_channel_must_overlap_the_roi():
    first = random_volume(grid((40, 40, 40)))
    half = grid((10, 40, 40))
    second = Volume(random_volume(half, seed=1).array, half, "half")
    model = parse_description(description(channels=2, **settings("limit")))
    low, high = box_at(first, (0, 0, -15), (5, 5, 5)), box_at(first, (0, 0, 15), (5, 5, 5))
    prepare(model, [first, second], low)
    assert "half does not overlap" in refusal("channels-apart", prepare, model, [first, second], high)


@pytest.mark.parametrize(
    ("roi", "largest", "size", "windows"),
    [
        ("cut", None, (22, 30, 22), 1),
        ("cut", (20, 30, 20), (22, 30, 22), 1),
        ("cut", (20, 30, 24), (22, 30, 22), 8),
        ("cut", None, (40, 40, 40), 48),
        ("limit", None, (22, 30, 22), 18),
    ],
    ids=["crop", "as in training", "several windows", "larger crop", "part of a scan"],
)
def test_crop_model_processes_a_crop_in_one_window(tmp_path, monkeypatch, roi, largest, size, windows):
    """For crops of up to four times its window, (16, 24, 16); other windows are stretched by at most a quarter."""
    use_test_networks(monkeypatch)
    how = settings(roi)
    how["preparation"]["largest_crop"] = largest and list(largest)
    document = {**description(**how), "format_version": 4}
    model = load_model(write_model(tmp_path / "model", document), "cpu", "fp32")
    volume = random_volume(grid((48, 48, 48)))
    result = segment(model, [volume], SegmentOptions(roi=box_at(volume, (0, 0, 0), size[::-1])))
    assert result.report["windows"] == windows


@pytest.mark.parametrize(
    ("roi", "size", "warned"),
    [("cut", (20, 20, 20), False), ("cut", (20, 20, 26), True), ("cut", None, True), ("limit", None, False)],
    ids=["similar", "long", "no ROI", "model of scans"],
)
def test_crop_much_larger_than_in_training_gets_a_warning(roi, size, warned):
    how = settings(roi)
    how["preparation"]["largest_crop"] = [20, 20, 20]
    volume = random_volume(grid((40, 40, 40)))
    box = size and box_at(volume, (0, 0, 0), size)
    document = {**description(**how), "format_version": 4}
    warnings = prepare(parse_description(document), [volume], box).warnings
    assert any("crops of at most 20 x 20 x 20 mm" in text for text in warnings) == warned


def test_sizes_above_a_meter_are_written_in_full():
    how = settings("cut")
    how["preparation"] = {**how["preparation"], "largest_crop": [20, 20, 20]}
    volume = random_volume(Grid((30, 20, 20), np.diag([1.0, 1.0, 40.0, 1.0])))
    model = parse_description({**description(**how), "format_version": 4})
    warnings = prepare(model, [volume], BoxROI.from_bounds([-50, 50, -50, 50, -50, 2000])).warnings
    assert any("20 x 20 x 1200 mm" in text for text in warnings)
