"""Coarse to fine: equations 4 and 5, results of networks with known outputs on real cases, and failures."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from conresnet.cli import main
from conresnet.errors import Cancelled
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.images.preparation import prepare
from conresnet.inference.labels import FoundSegments, region_mask
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.request import SegmentOptions
from conresnet.systems.coarse_to_fine import COARSE_SHARE, DeCrop, crop
from engine.coarse_to_fine_cases import (
    HUNDREDTHS,
    by_hand,
    coarse_to_fine,
    random_weights,
    threshold_pair,
    threshold_weights,
    write_pair,
)
from engine.model_cases import description, use_test_networks
from engine.package_cases import refusal
from engine.test_devices import ShortOfMemory
from engine.test_progress import Recorded
from engine.volumes import grid, random_volume, rotation

BONE, DENSE = 299.5, 599.5


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    use_test_networks(monkeypatch)


@pytest.fixture(scope="module")
def ct(ct_image):
    return read_volume(ct_image)


def run(package, volume, **options):
    return segment(load_model(package, "cpu", "fp32"), [volume], SegmentOptions(threads=1, **options))


def test_crop_covers_found_voxels_and_margin_within_image():
    found = np.zeros((20, 30, 40), np.uint8)
    found[9:11, 2:6, 39] = 7
    found[12, 5, 30] = 1
    assert crop(found, 3) == (slice(6, 16), slice(0, 9), slice(27, 40))
    assert crop(found, 0) == (slice(9, 13), slice(2, 6), slice(30, 40))
    assert crop(np.zeros_like(found), 3) is None


def test_decrop_replaces_only_the_box():
    whole, fine = np.zeros((2, 20, 20, 20)), np.random.default_rng(0).random((2, 20, 20, 20))

    class Whole:
        def finish(self, where, values):
            whole[(slice(None), *where)] += values["a"]

    box = (slice(5, 9), slice(0, 7), slice(13, 18))
    into_box = DeCrop(Whole(), box)
    # Slabs as from a stitcher: of windows that reach beyond the box, some of them entirely outside.
    for begin, end in [(2, 4), (4, 6), (6, 7), (7, 14)]:
        where = (slice(begin, end), slice(0, 16), slice(10, 20))
        into_box.finish(where, {"a": fine[(slice(None), *where)]})
    expected = np.zeros_like(whole)
    expected[(slice(None), *box)] = fine[(slice(None), *box)]
    assert np.array_equal(whole, expected)


@pytest.mark.parametrize("regions", [False, True])
def test_components_are_filtered_per_segment_and_box_holds_all(regions):
    output = parse_description(description(segments=2, regions=regions))
    volume = random_volume(grid((40, 40, 40)))
    found = FoundSegments(prepare(output, [volume]), output.output)
    probability = np.zeros((2, 40, 40, 40), np.float32)
    probability[0, 10:20, 10:20, 10:20] = 0.9
    probability[0, 30:33, 2:5, 2:5] = 0.9  # 27 of 1027
    probability[1, 5:8, 35:37, 20] = 0.9  # 6 of 7, and far less than 0.2 of all
    probability[1, 38, 38, 38] = 0.9
    found.finish((slice(0, 40),) * 3, {"probability": torch.from_numpy(probability)})
    assert crop(found.labels, 0) == (slice(5, 39), slice(2, 39), slice(2, 39))
    found.drop_small_components(0.2)
    assert crop(found.labels, 0) == (slice(5, 20), slice(10, 37), slice(10, 21))
    found.restart()
    assert crop(found.labels, 0) is None


@pytest.mark.parametrize("smallest", [0.2, 0.05, 0.0])
@pytest.mark.parametrize("tiling", [None, "fitted"])
def test_spine_in_ct_is_found_and_refined(tmp_path, ct, smallest, tiling):
    """The coarse network finds dense bone, the fine one all bone; with 0.2, the ribs are not part of the spine."""
    package = threshold_pair(tmp_path, [BONE], [249.5], smallest_component=smallest, inference={"window": [16, 32, 32]})
    result = run(package, ct, maps=("probability",), tiling=tiling)
    (expected,) = by_hand(ct.array, [BONE], [249.5], 3, smallest)
    assert np.array_equal(result.labels.array, 10 * expected)
    report = result.report
    assert report["segments"][0]["voxels"] == np.count_nonzero(expected) and report["warnings"] == []
    coarse, fine = report["passes"]
    assert (coarse["name"], fine["name"]) == ("coarse", "fine")
    assert coarse["box"] == [[0, side] for side in ct.grid.shape]
    assert report["windows"] == coarse["windows"] + fine["windows"]
    if tiling is None:
        # floor(W / w) + n windows per axis of the whole case, without duplicates; fewer voxels, fewer windows.
        assert coarse["windows"] == (30 // 16 + 6) * (101 // 32 + 6) * (122 // 32 + 6)
        lengths = [stop - start for start, stop in fine["box"]]
        counts = [
            min(length // side + 12, max(1, length - side + 1))
            for length, side in zip(lengths, (16, 32, 32), strict=True)
        ]
        assert fine["windows"] == np.prod(counts)
    outside = np.ones(ct.array.shape, dtype=bool)
    # The CT is stored in the model's orientation: superior, anterior, right.
    outside[tuple(slice(*ends) for ends in fine["box"])] = False
    assert result.maps["probability"][0][expected].min() > 0.5
    assert not result.maps["probability"][0][outside].any()


def test_overlapping_regions_in_ct_inside_rotated_roi(tmp_path, ct):
    levels = [BONE, DENSE], [199.5, 449.5]
    package = threshold_pair(tmp_path, *levels, regions=True, smallest_component=0.1)
    roi = BoxROI(ct.grid.center, rotation(20), np.array([150.0, 330.0, 60.0]))
    result = run(package, ct, roi=roi)
    inside = roi.contains(ct.grid.array_affine, ct.grid.shape)
    expected = by_hand(np.where(inside, ct.array, -1000), *levels, 3, 0.1)
    for index, mask in enumerate(expected):
        assert mask.any() and np.array_equal(region_mask(result.regions, index), mask), index
    labels = np.where(expected[1], 20, np.where(expected[0], 10, 0))
    assert np.array_equal(result.labels.array, labels)
    rows = result.report["segments"]
    assert [row["voxels"] for row in rows] == [(labels == 10).sum(), (labels == 20).sum()]
    volumes = [mask.sum() * ct.grid.voxel_volume / 1000 for mask in expected]
    assert [row["region_volume_ml"] for row in rows] == pytest.approx(volumes)


def test_resampled_head_is_cropped_in_the_models_voxels(tmp_path, head_image):
    """In the box, the fine network's result is as if it had seen the whole image; outside, there is nothing."""
    head = read_volume(head_image)
    spacing = {"spacing": [3, 2.5, 2.5]}
    bright = float(np.percentile(head.array, 99.9))
    settings = {"preparation": spacing, "inference": {"window": [24, 24, 24]}, "smallest_component": 0.0}
    package = threshold_pair(tmp_path / "pair", [bright], [bright / 3], coarse_windows=1, fine_windows=1, **settings)
    everywhere = threshold_pair(tmp_path / "all", [1], [bright / 3], coarse_windows=1, fine_windows=1, **settings)
    result, whole = (run(one, head, maps=("probability",)) for one in (package, everywhere))
    assert result.report["resampled"] and result.report["model_shape"] == [80, 96, 72]
    box = result.report["passes"][1]["box"]
    assert all(0 <= start < stop <= side for (start, stop), side in zip(box, (80, 96, 72), strict=True))
    assert np.prod([stop - start for start, stop in box]) < 0.9 * 80 * 96 * 72
    differing = result.labels.array != whole.labels.array
    assert not result.labels.array[differing].any() and whole.labels.array[differing].any()
    # The head's slices along S are stored along the second axis, upward.
    low, high = (edge * 3 / 2 for edge in box[0])
    slices = np.flatnonzero(result.labels.array.any(axis=(0, 2)))
    assert low - 2 <= slices.min() and slices.max() <= high + 2


def test_maps_of_fine_network_cover_its_crop(tmp_path, head_image):
    """With one window, the maps contain the fine network's outputs voxel by voxel, and nothing elsewhere."""
    head = read_volume(head_image)
    document = coarse_to_fine(
        description("pointwise", segments=2, intensity=HUNDREDTHS), fine=description("conresnet", segments=2)
    )
    level = float(np.sort(head.array.ravel())[-3])
    coarse = threshold_weights(level, level)
    package = write_pair(tmp_path, document, coarse, random_weights(document, 1))
    model = load_model(package, "cpu", "fp32")
    outputs_by_window = []
    fine = model.system.predictors[1]
    predict = fine.predict

    def listening(windows, maps, *how):
        outputs = predict(windows, maps, *how)
        outputs_by_window.append((windows[0].clone(), {name: value.clone() for name, value in outputs[0].items()}))
        return outputs

    fine.predict = listening
    names = ("probability", "residual", "attention", "features")
    result = segment(model, [head], SegmentOptions(threads=1, maps=names))
    *_trial, (block, values) = outputs_by_window
    (fine_pass,) = [one for one in result.report["passes"] if one["name"] == "fine"]
    box = [slice(*ends) for ends in fine_pass["box"]]
    assert fine_pass["windows"] == 1 and block.shape == (1, 32, 32, 32)
    # The head's axes (right, superior, posterior) as the model's (superior, anterior, right).
    as_model = head.array.transpose(1, 2, 0)[:, ::-1]
    # The box is in the center of the window, which also shows the image around it.
    start = [
        min(max(0, part.start - (32 - (part.stop - part.start)) // 2), side - 32)
        for part, side in zip(box, as_model.shape, strict=True)
    ]
    visible = as_model[tuple(slice(first, first + 32) for first in start)]
    assert np.allclose(block[0], visible / 100, rtol=1e-5)
    inner = tuple(slice(part.start - first, part.stop - first) for part, first in zip(box, start, strict=True))
    assert set(result.maps) == set(names) == set(values)
    for name, value in values.items():
        found = result.maps[name].transpose(0, 2, 3, 1)[:, :, ::-1]
        expected = np.zeros(found.shape, np.float16)
        expected[(slice(None), *box)] = value.numpy()[(slice(None), *inner)].astype(np.float16)
        assert expected.any() and np.array_equal(found, expected), name


@pytest.mark.parametrize("spacing", [None, [4, 4, 4]])
def test_coarse_pass_that_finds_nothing_gets_a_warning(tmp_path, ct, spacing):
    package = threshold_pair(tmp_path, [5000], [0], preparation={"spacing": spacing}, coarse_windows=1)
    result = run(package, ct, maps=("probability",))
    assert not result.labels.array.any() and not result.maps["probability"].any()
    (warning,) = result.report["warnings"]
    assert warning.startswith("The model found nothing in this image.")
    assert [one["name"] for one in result.report["passes"]] == ["coarse"]
    assert result.report["volumes_ml"] == {"Part 1": 0}


def test_command_line_warns_that_coarse_pass_found_nothing(tmp_path, capsys, ct_image):
    package = threshold_pair(tmp_path, [5000], [0], regions=True, coarse_windows=1)
    output = tmp_path / "out"
    call = ["segment", str(ct_image), "--model", str(package.path), "--output", str(output), "--threads", "1"]
    assert main(call) == 0
    captured = capsys.readouterr()
    assert "found nothing in this image" in captured.err and "Part 1 0.00 mL" in captured.out
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert len(report["warnings"]) == 1
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(output / "segmentation.nii.gz"))).any()


@pytest.mark.parametrize("index", [0, 1], ids=["coarse", "fine"])
def test_windows_are_reduced_if_memory_runs_out_in_either_pass(tmp_path, monkeypatch, one_by_one, ct, index):
    package = threshold_pair(tmp_path, [BONE], [249.5], inference={"window": [32, 64, 64]})
    expected = run(package, ct)
    model = load_model(package, "cpu", "fp32")
    short = ShortOfMemory(monkeypatch, model, fits=80_000, index=index)
    result = segment(model, [ct], SegmentOptions(threads=1))
    assert short.sizes[0] == (32, 64, 64) and max(map(np.prod, short.sizes[1:])) <= 80_000
    assert np.array_equal(result.labels.array, expected.labels.array) and result.labels.array.any()
    assert result.report["segments"] == expected.report["segments"]
    (warning,) = result.report["warnings"]
    assert "ran out of memory with windows of 32 x 64 x 64" in warning
    untouched = 1 - index
    assert result.report["passes"][untouched]["window"] == [32, 64, 64]
    assert np.prod(result.report["passes"][index]["window"]) <= 80_000


def test_too_little_memory_in_fine_pass_is_reported(tmp_path, monkeypatch, ct):
    model = load_model(threshold_pair(tmp_path, [BONE], [249.5]), "cpu", "fp32")
    ShortOfMemory(monkeypatch, model, fits=10, index=1)
    assert "ROI" in refusal("out-of-memory", segment, model, [ct], SegmentOptions(threads=1))


class UntilFraction(Recorded):
    """Stops once this fraction of the work is reported as done."""

    def __init__(self, fraction: float):
        super().__init__()
        self.fraction = fraction

    def cancelled(self):
        return self.reports[-1][1] >= self.fraction


FINE_BEGINS = 0.03 + 0.96 * COARSE_SHARE


@pytest.mark.parametrize(("fraction", "passes_done"), [(0.03, 0), (FINE_BEGINS, 1)], ids=["coarse", "fine"])
def test_cancel_works_in_either_pass_and_keeps_model_intact(tmp_path, one_by_one, ct, fraction, passes_done):
    model = load_model(threshold_pair(tmp_path, [BONE], [249.5]), "cpu", "fp32")
    windows = [0, 0]
    for index, predictor in enumerate(model.system.predictors):
        predictor.networks[0].register_forward_hook(
            lambda *_, index=index: windows.__setitem__(index, windows[index] + 1)
        )
    with pytest.raises(Cancelled):
        segment(model, [ct], SegmentOptions(threads=1), UntilFraction(fraction))
    # Only the trial that measures the cost; none of the pass's own windows was completed.
    assert windows[passes_done] == 1 and windows[0] > 50 * passes_done and windows[1] == passes_done
    assert all(not layer._forward_pre_hooks for one in model.system.predictors for layer in one.networks[0].modules())


def test_progress_covers_both_passes_and_only_last_pass_updates_result(tmp_path, one_by_one, ct):
    package = threshold_pair(tmp_path, [BONE], [249.5], inference={"window": [16, 32, 32]})
    model, progress, arrays = load_model(package, "cpu", "fp32"), Recorded(), {}
    calls = []
    for predictor in model.system.predictors:

        def watching(windows, maps, *how, predictor=predictor, predict=predictor.predict):
            calls.append((predictor, progress.reports[-1][1], np.count_nonzero(arrays["labels"])))
            return predict(windows, maps, *how)

        predictor.predict = watching

    def allocate(name, shape, dtype):
        arrays[name] = np.zeros(shape, dtype)
        return arrays[name]

    segment(model, [ct], SegmentOptions(threads=1), progress, allocate)
    fractions = [fraction for _, fraction, _ in progress.reports]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    coarse, fine = ([item[1:] for item in calls if item[0] is one] for one in model.system.predictors)
    assert all(fraction <= FINE_BEGINS + 1e-6 and grown == 0 for fraction, grown in coarse)
    assert all(fraction >= FINE_BEGINS - 1e-6 for fraction, _ in fine)
    assert fine[0][1] == 0 < fine[-1][1]


def test_mirroring_applies_only_to_fine_pass(tmp_path, one_by_one, ct):
    package = threshold_pair(tmp_path, [BONE], [249.5], coarse_windows=1, inference={"mirror_axes": ["W"]})
    model = load_model(package, "cpu", "fp32")
    calls = [0, 0]
    for index, predictor in enumerate(model.system.predictors):
        predictor.networks[0].register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    coarse, fine = segment(model, [ct], SegmentOptions(threads=1)).report["passes"]
    assert calls == [coarse["windows"] + 1, 2 * (fine["windows"] + 1)]


def test_pair_of_resdsn_networks_runs(tmp_path, hippocampus_image):
    one = description("resdsn", base_width=8, inference={"window": [32, 32, 32]})
    document = coarse_to_fine(one, coarse_windows=1, fine_windows=2, margin=2)
    package = write_pair(tmp_path, document, *(random_weights(document, index) for index in (0, 1)))
    result = run(package, read_volume(hippocampus_image), maps=("probability",))
    assert result.labels.array.any() and len(result.report["passes"]) == 2
    assert np.isfinite(result.maps["probability"]).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"margin": None}, "system.arguments.margin"),
        ({"margin": -1}, "system.arguments.margin"),
        ({"coarse_windows": 0}, "system.arguments.coarse_windows"),
        ({"fine_windows": 2.5}, "system.arguments.fine_windows"),
        ({"smallest_component": 2}, "system.arguments.smallest_component"),
        ({"smallest": 0.2}, "system.arguments.smallest"),
    ],
)
def test_arguments_are_checked(change, field):
    document = coarse_to_fine(description())
    assert parse_description(document).system.arguments == {
        "margin": 3,
        "coarse_windows": 6,
        "fine_windows": 12,
        "smallest_component": 0.2,
    }
    document["system"]["arguments"].update(change)
    assert f'"{field}"' in refusal("package-description", parse_description, document)


def test_networks_must_be_two_with_the_models_channels():
    document = coarse_to_fine(description())
    networks = document["system"]["networks"]
    document["system"]["networks"] = networks * 2
    assert "must have 2 entries" in refusal("package-description", parse_description, document)
    document["system"]["networks"] = [networks[0], {**networks[1], "arguments": {"input_channels": 2}}]
    assert "networks[1].arguments.input_channels" in refusal("package-description", parse_description, document)
