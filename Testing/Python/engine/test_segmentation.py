"""Whole cases: stitched windows compared with a single pass, crops, ROIs, orientations, and unusual images."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.labels import region_mask
from conresnet.inference.segmentation import SegmentResult, _unusual_volumes, load_model, segment
from conresnet.package.outputs import Segment
from conresnet.request import SegmentOptions
from engine.model_cases import description, make_model, use_test_networks, write_model
from engine.package_cases import refusal
from engine.volumes import anatomy, every_reordering, grid, random_volume, rotation, stored

EVERYTHING = ("probability", "residual", "attention", "features")
ONE_WINDOW = {"window": [256, 256, 256]}
FIXED = [{"step": "rescale", "from": [0, 500], "to": [-1, 1]}]


def run(model, volumes, **options):
    volumes = volumes if isinstance(volumes, list) else [volumes]
    return segment(model, volumes, SegmentOptions(threads=1, **options))


def probability(result) -> np.ndarray:
    return result.maps["probability"].astype(np.float32)


@pytest.fixture
def networks(monkeypatch):
    use_test_networks(monkeypatch)


@pytest.mark.parametrize("tiling", ["fitted", "authors"])
@pytest.mark.parametrize("regions", [False, True])
def test_windows_of_a_pointwise_network_match_whole_head(networks, tmp_path, head_image, tiling, regions):
    settings = {"scale": 3, "network": "pointwise", "regions": regions}
    model, at_once = make_model(tmp_path, **settings), make_model(tmp_path / "once", inference=ONE_WINDOW, **settings)
    head = read_volume(head_image)
    whole = run(at_once, head, maps=("probability",))
    windows = run(model, head, maps=("probability",), tiling=tiling)
    assert whole.report["windows"] == 1 and windows.report["windows"] > 50
    assert np.array_equal(windows.labels.array, whole.labels.array)
    assert len(np.unique(whole.labels.array)) > 1
    assert np.abs(probability(windows) - probability(whole)).max() < 1e-3


def test_small_windows_match_one_large_window_on_a_whole_head(networks, tmp_path, head_image):
    settings = {"scale": 3, "network": "smooth"}
    model, at_once = make_model(tmp_path, **settings), make_model(tmp_path / "once", inference=ONE_WINDOW, **settings)
    head = read_volume(head_image)
    whole = run(at_once, head, maps=("probability",))
    windows = run(model, head, maps=("probability",))
    assert windows.report["windows"] > 50
    # Away from the image's border, where one window is padded and the others are not.
    inner = (slice(None), *[slice(8, -8)] * 3)
    difference = np.abs(probability(windows) - probability(whole))[inner]
    # The small remaining difference comes from the three voxels at a window's edge, whose weight is low.
    assert difference.mean() < 1e-3 and difference.max() < 0.1
    assert np.mean(windows.labels.array[inner[1:]] != whole.labels.array[inner[1:]]) < 2e-3
    # A stitching error of one voxel would be far larger.
    shifted = np.abs(np.roll(probability(whole), 1, axis=1) - probability(whole))[inner]
    assert shifted.mean() > 20 * difference.mean()


@pytest.mark.parametrize("spacing", [None, [2.5, 2, 2]])
def test_roi_in_a_whole_head_matches_windows_there(networks, tmp_path, head_image, spacing):
    # Fixed intensities that do not depend on the ROI, so that only the cropping matters.
    model = make_model(tmp_path, scale=3, network="smooth", intensity=FIXED, preparation={"spacing": spacing})
    head = read_volume(head_image)
    whole = run(model, head, maps=("probability",))
    center = head.grid.center
    box = BoxROI(center, np.eye(3), np.array([80.0, 96.0, 72.0]))
    cut = run(model, head, maps=("probability",), roi=box)
    inside = box.contains(head.grid.array_affine, head.grid.shape)
    assert inside.sum() > 10000
    assert not cut.labels.array[~inside].any() and not cut.maps["probability"][:, ~inside].any()
    core = BoxROI(center, np.eye(3), box.size - 24).contains(head.grid.array_affine, head.grid.shape)
    assert np.mean(cut.labels.array[core] != whole.labels.array[core]) < 2e-3
    assert np.abs(probability(cut) - probability(whole))[:, core].mean() < 2e-3


def test_roi_around_a_pasted_crop_matches_the_crop(tmp_path, hippocampus_image):
    model = make_model(tmp_path)
    crop = read_volume(hippocampus_image)
    alone = run(model, crop, maps=EVERYTHING)
    offset, shape = np.array([20, 31, 17]), tuple(side + 50 for side in crop.grid.shape)
    array = np.random.default_rng(0).normal(300, 100, shape).astype(crop.array.dtype)
    place = tuple(slice(a, a + n) for a, n in zip(offset, crop.grid.shape, strict=True))
    array[place] = crop.array
    affine = crop.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ offset[::-1]
    larger = Volume(array, Grid(shape, affine), "pasted")
    corners = crop.grid.corners()
    bounds = np.stack([corners.min(axis=0), corners.max(axis=0)], axis=1).ravel()
    result = run(model, larger, maps=EVERYTHING, roi=BoxROI.from_bounds(bounds))
    assert np.array_equal(result.labels.array[place], alone.labels.array)
    assert np.count_nonzero(result.labels.array) == np.count_nonzero(alone.labels.array) > 0
    for name, values in result.maps.items():
        assert np.array_equal(values[(slice(None), *place)], alone.maps[name]), name


def test_result_is_empty_outside_rotated_roi(tmp_path, head_image):
    model = make_model(tmp_path)
    head = read_volume(head_image)
    box = BoxROI(head.grid.center, rotation(30), np.array([40.0, 60.0, 50.0]))
    result = run(model, head, maps=("residual",), roi=box)
    inside = box.contains(head.grid.array_affine, head.grid.shape)
    assert result.labels.array[inside].any() and result.maps["residual"][:, inside].any()
    assert not result.labels.array[~inside].any() and not result.maps["residual"][:, ~inside].any()
    assert sum(row["voxels"] for row in result.report["segments"]) == np.count_nonzero(result.labels.array)


@pytest.mark.parametrize("spacing", [None, [1.5, 1.0, 1.2]])
def test_every_orientation_of_an_image_gives_same_segmentation(tmp_path, hippocampus_image, spacing):
    # A model of crops would process this image in a single window.
    preparation = {"spacing": spacing, "orientation": "SLP", "roi": "limit"}
    model = make_model(tmp_path, preparation=preparation, inference={"window": [16, 16, 16]})
    crop = read_volume(hippocampus_image)
    crop = Volume(crop.array[8:28, 6:34, 10:24], Grid((20, 28, 14), crop.grid.affine), "crop")
    expected = run(model, crop, maps=("residual",))
    assert expected.report["resampled"] == (spacing is not None) and expected.report["windows"] > 1
    for way in every_reordering():
        result = run(model, stored(crop, way), maps=("residual",))
        assert np.array_equal(result.labels.array, way.view(expected.labels.array)), way
        # With resampling, axes are interpolated in the order of their storage.
        tolerance = 2e-3 if spacing else 0
        assert np.allclose(result.maps["residual"], way.view(expected.maps["residual"]), rtol=0, atol=tolerance), way


def test_oblique_image_gives_same_segmentation_in_space(networks, tmp_path):
    model = make_model(
        tmp_path,
        scale=3,
        network="smooth",
        intensity=[{"step": "rescale", "from": [0, 100], "to": [-1, 1]}],
        preparation={"spacing": [1, 1, 1]},
    )
    straight = grid((64, 64, 64), origin=(-32, -32, -32))
    turned = grid((90, 90, 90), origin=rotation(25) @ [-45, -45, -45], rotation=rotation(25))
    expected = run(model, Volume(anatomy(straight), straight, "straight")).labels
    found = run(model, Volume(anatomy(turned), turned, "turned")).labels
    # The label of each axis-aligned voxel compared with that of the nearest rotated one, away from the border.
    places = straight.to_ras(np.moveaxis(np.indices(straight.shape), 0, -1))[12:-12, 12:-12, 12:-12]
    inverse = np.linalg.inv(turned.array_affine)
    index = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    same = found.array[tuple(np.moveaxis(index, -1, 0))] == expected.array[12:-12, 12:-12, 12:-12]
    assert len(np.unique(expected.array)) > 1 and same.mean() > 0.9


def test_channels_on_different_grids_are_aligned(tmp_path):
    model = make_model(tmp_path, channels=2)
    first = random_volume(grid((20, 24, 28)))
    coarse = grid((12, 12, 12), spacing=(3, 3, 3))
    result = run(model, [first, Volume(anatomy(coarse), coarse, "coarse")])
    assert result.labels.grid is first.grid and result.labels.array.shape == (20, 24, 28)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float64])
def test_all_data_types_are_segmented(tmp_path, dtype):
    model = make_model(tmp_path)
    values = np.random.default_rng(0).integers(0, 200, (20, 20, 20))
    expected = run(model, Volume(values.astype(np.float32), grid((20, 20, 20)), "float32"))
    result = run(model, Volume(values.astype(dtype), grid((20, 20, 20)), "other"))
    assert np.mean(result.labels.array == expected.labels.array) > 0.999


@pytest.mark.parametrize(("scale", "shift"), [(1.7e6, 0), (1, -1e5), (-1e8, 3)])
def test_huge_and_negative_intensities_are_segmented(tmp_path, scale, shift):
    model = make_model(tmp_path)
    values = np.random.default_rng(0).random((20, 20, 20))
    result = run(model, Volume(values * scale + shift, grid((20, 20, 20)), "huge"), maps=EVERYTHING)
    assert all(np.isfinite(array).all() for array in result.maps.values())
    assert result.labels.array.any()


@pytest.mark.parametrize("shape", [(1, 30, 30), (30, 1, 30), (2, 1, 1), (3, 50, 9)])
@pytest.mark.parametrize("tiling", ["fitted", "authors"])
def test_tiny_volumes_and_single_slices_are_segmented(tmp_path, shape, tiling):
    model = make_model(tmp_path)
    result = run(model, random_volume(grid(shape)), tiling=tiling, maps=EVERYTHING)
    assert result.labels.array.shape == shape
    assert all(np.isfinite(array).all() for array in result.maps.values())


def test_mirroring_averages_the_probabilities(networks, tmp_path):
    plain, mirrored = (
        make_model(tmp_path / name, scale=3, network="smooth", inference={"mirror_axes": axes})
        for name, axes in (("plain", []), ("mirrored", ["S", "W"]))
    )
    volume = random_volume(grid((16, 16, 16)))
    result = run(mirrored, volume, maps=("probability",))
    turned = [
        np.flip(
            probability(run(plain, Volume(np.flip(volume.array, axes), volume.grid, ""), maps=("probability",))),
            [axis + 1 for axis in axes],
        )
        for axes in ((), (0,), (2,), (0, 2))
    ]
    assert np.allclose(probability(result), np.mean(turned, axis=0), atol=2e-3)


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("axes", ["SW", "SHW"])
def test_left_and_right_are_swapped_in_mirrored_copies(networks, tmp_path, axes, regions):
    settings = {"network": "smooth", "segments": 3, "regions": regions}
    plain = make_model(tmp_path / "plain", scale=3, **settings)
    mirrored = description(inference={"mirror_axes": list(axes)}, **settings)
    # The test description is of an older format, which has no pairs.
    mirrored["format_version"], mirrored["output"]["swapped_segments"] = 4, [["Part 1", "Part 3"]]
    mirrored = load_model(write_model(tmp_path / "mirrored", mirrored, scale=3), "cpu", "fp32")
    volume = random_volume(grid((16, 16, 16)))
    expected = []
    for count in range(len(axes) + 1):
        for turned in combinations(["SHW".index(axis) for axis in axes], count):
            image = Volume(np.flip(volume.array, turned), volume.grid, "")
            output = np.flip(probability(run(plain, image, maps=("probability",))), [axis + 1 for axis in turned])
            # Mirroring along two axes is a rotation.
            expected.append(output[[2, 1, 0]] if count % 2 else output)
    assert np.allclose(probability(run(mirrored, volume, maps=("probability",))), np.mean(expected, axis=0), atol=2e-3)


@pytest.mark.parametrize("spacing", [None, [1.5, 1.5, 2.0]], ids=["own voxels", "resampled"])
def test_overlapping_regions_are_returned_whole_besides_painted_labels(tmp_path, spacing):
    model = make_model(tmp_path, regions=True, scale=3.0, preparation={"spacing": spacing})
    of = grid((40, 36, 30))
    center = of.array_affine @ [20, 18, 15, 1]
    box = BoxROI(center[:3], np.eye(3), np.array([20.0, 22.0, 24.0]))
    result = run(model, random_volume(of), maps=("probability",), roi=box)
    masks = [region_mask(result.regions, index) for index in (0, 1)]
    for mask, probability in zip(masks, result.maps["probability"].astype(np.float32), strict=True):
        sure = np.abs(probability - 0.5) > 1e-3
        np.testing.assert_array_equal(mask[sure], probability[sure] > 0.5)
    assert (masks[0] & masks[1]).any()
    np.testing.assert_array_equal(result.labels.array, np.where(masks[1], 20, np.where(masks[0], 10, 0)))
    volumes = [row["region_volume_ml"] for row in result.report["segments"]]
    assert volumes == [pytest.approx(mask.sum() * of.voxel_volume / 1000) for mask in masks]
    assert list(result.report["volumes_ml"].values()) == volumes
    assert run(make_model(tmp_path / "labels"), random_volume(grid((8, 9, 10)))).regions is None


def test_loaded_model_keeps_no_state_of_previous_case(tmp_path):
    model = make_model(tmp_path)
    volumes = [random_volume(grid((20, 40, 24)), seed=seed) for seed in (1, 2)]
    first = [run(model, volume).labels.array for volume in volumes]
    assert not np.array_equal(*first)
    assert np.array_equal(run(model, volumes[0]).labels.array, first[0])


@pytest.mark.parametrize("spacing", [[1.5, 1.5, 1.5], [0.8, 1.0, 1.2]])
@pytest.mark.parametrize("turn", [None, rotation(25)], ids=["straight", "oblique"])
def test_labels_of_a_resampled_image_grow_to_the_same_result(tmp_path, one_by_one, spacing, turn):
    model = make_model(tmp_path, scale=3.0, preparation={"spacing": spacing, "roi": "limit"})
    volume = random_volume(grid((90, 20, 22), rotation=turn))
    expected = run(model, volume).labels.array
    _result, arrays, grown = watched(model, volume)
    np.testing.assert_array_equal(arrays["labels"], expected)
    assert grown == sorted(grown) and grown[0] == 0 < grown[-1] < np.count_nonzero(expected)


def test_results_grow_in_the_allocated_arrays(tmp_path, one_by_one):
    model = make_model(tmp_path, preparation={"roi": "limit"})
    result, arrays, grown = watched(model, random_volume(grid((120, 20, 20))), maps=EVERYTHING)
    assert result.labels.array is arrays["labels"]
    assert {name: (array.shape[0], array.dtype) for name, array in arrays.items() if name != "labels"} == {
        "probability": (2, np.float16),
        "residual": (2, np.float16),
        "attention": (1, np.float16),
        "features": (2, np.float16),
    }
    assert grown == sorted(grown) and grown[0] == 0 < grown[-1] < np.count_nonzero(arrays["labels"])


def watched(model, volume, **options) -> tuple[SegmentResult, dict[str, np.ndarray], list[int]]:
    """The result, the arrays it is stored in, and the number of labeled voxels before each window."""
    arrays, grown = {}, []

    def allocate(name, shape, dtype):
        arrays[name] = np.zeros(shape, dtype)
        return arrays[name]

    (predictor,) = model.system.predictors
    predict = predictor.predict

    def counting(windows, maps, *how):
        if "labels" in arrays:
            grown.append(np.count_nonzero(arrays["labels"]))
        return predict(windows, maps, *how)

    predictor.predict = counting
    return segment(model, [volume], SegmentOptions(threads=1, **options), allocate=allocate), arrays, grown


def test_report_describes_the_run(tmp_path):
    model = make_model(tmp_path)
    of = grid((20, 24, 28), spacing=(0.5, 2, 3))
    report = run(model, random_volume(of)).report
    assert report["window"] == [24, 24, 32] and report["windows"] == 1 and report["device"] == "cpu"
    assert set(report["seconds"]) == {"preparing", "segmenting", "writing"}
    for row in report["segments"]:
        assert row["volume_ml"] == pytest.approx(row["voxels"] * 3 / 1000)
        assert report["volumes_ml"][row["name"]] == row["volume_ml"]


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_volume_outside_training_range_gets_a_warning(tmp_path, regions):
    model, image = make_model(tmp_path, segments=5, regions=regions), random_volume(grid((20, 24, 28)))
    volumes = run(model, image).report["volumes_ml"]

    def warnings(factors: list[float], **options) -> list[str]:
        output = model.description.output
        known = [
            replace(item, volume_ml=(volumes[item.name] / factor, volumes[item.name] / factor) if factor else None)
            for item, factor in zip(output.segments, factors, strict=True)
        ]
        model.description = replace(model.description, output=replace(output, segments=tuple(known)))
        return run(model, image, **options).report["warnings"]

    names = list(volumes)
    assert all(volumes.values())
    assert warnings([0.51, 1.99, 1, 0, 0]) == []
    small, large = warnings([0.49, 2.01, 1, 0, 0])
    assert small.startswith(f"{names[0]} measures ") and large.startswith(f"{names[1]} measures ")
    assert f"measures {volumes[names[0]]:.3g} mL; in the training labels, it measured " in small
    assert len(warnings([3, 3, 3, 1, 1])) == 3
    (together,) = warnings([3, 3, 3, 3, 1])
    assert together.startswith("4 of 5 segments are much smaller or larger") and names[0] in together
    assert warnings([3, 3, 3, 3, 1], roi="all") == [together]
    # An ROI may cut through a structure.
    box = BoxROI.from_bounds([-1000, 1000] * 3)
    assert warnings([3, 3, 3, 3, 1], roi=box) == []


def test_unusual_volumes_are_reported_once_with_rounded_numbers():
    liver, spleen = (
        Segment(name, label, (0, 0, 0), volume_ml=volumes)
        for name, label, volumes in (("Liver", 1, (800.0, 850.0)), ("Spleen", 2, (0.0, 300.0)))
    )
    assert _unusual_volumes([liver, spleen], {"Liver": 1723.4, "Spleen": 0.0}, SegmentOptions()) == [
        "Liver measures 1720 mL; in the training labels, it measured 800 to 850 mL. Check whether the image shows the "
        "whole structure, and check the result."
    ]
    # Segments that were not found have a separate warning.
    assert _unusual_volumes([liver, spleen], {"Liver": 0.0, "Spleen": 0.0}, SegmentOptions()) == []


def test_invalid_requests_are_refused(tmp_path, hippocampus_image):
    model = make_model(tmp_path, residual_mapping=False, attention_mapping=False)
    crop = read_volume(hippocampus_image)
    refusal("wrong-channel-count", run, model, [crop, crop])
    refusal("map-unavailable", run, model, crop, maps=("residual",))
    refusal("tiling-unknown", run, model, crop, tiling="other")
    assert crop.name in refusal("roi-outside", run, model, crop, roi=BoxROI.from_bounds([900, 910, 0, 10, 0, 10]))
    refusal("image-constant", run, model, Volume(np.zeros(crop.grid.shape), crop.grid, "empty"))
    empty = crop.array.copy()
    empty[10:20, 10:20, 10:20] = 0
    center = crop.grid.array_affine @ [14.5, 14.5, 14.5, 1]
    box = BoxROI(center[:3], np.eye(3), np.full(3, 8.0))
    assert "hole is empty inside the ROI" in refusal("roi-empty", run, model, Volume(empty, crop.grid, "hole"), roi=box)
