"""Post-processing of a segmentation, compared with another library's components and holes; and the option --fast."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from conresnet.cli import main
from conresnet.images import Volume
from conresnet.images.files import read_volume, write_volume
from conresnet.inference.labels import LabelWriter, PostProcessing, packed_size, region_mask
from conresnet.inference.segmentation import segment
from conresnet.package import parse_description
from conresnet.request import SegmentOptions
from engine.model_cases import description, make_model, use_test_networks, write_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume

TOUCHING = np.ones((3, 3, 3))
EVERYTHING = SegmentOptions(keep_largest=True, drop_below=0.003, fill_holes=True)
ML = 0.001  # per voxel


def description_of(regions: bool, nested: bool = False, **first: object):
    document = description(segments=2, regions=regions)
    document["output"]["segments"][0] |= first
    document["format_version"] = 4
    if nested:
        whole, part = document["output"]["segments"]
        whole["includes"] = [part["name"]]
    return parse_description(document)


def changed(masks: list[np.ndarray], options: SegmentOptions, regions: bool, nested: bool = False, **first: object):
    """Post-process two segments; returns their masks (of regions: the whole masks), the report and the warnings."""
    model = description_of(regions, nested, **first)
    writer = LabelWriter(model.output)
    packed = np.zeros((packed_size(2), *masks[0].shape), np.uint8) if regions else None
    labels = writer.labels(torch.from_numpy(np.stack(masks).astype(np.float32)), None, packed)
    changes = PostProcessing(model, options, grid(labels.shape), lambda share: None)
    changes.apply(SimpleNamespace(writer=writer, labels=labels, regions=packed))
    found = [region_mask(packed, index) if regions else labels == 10 * (index + 1) for index in range(2)]
    counted = writer.region_voxels if regions else writer.voxels
    assert counted.tolist() == [np.count_nonzero(mask) for mask in found]
    return found, changes.report, changes.warnings


def test_model_may_request_segments_in_one_piece() -> None:
    pieces = np.zeros((9, 11, 13), bool)
    pieces[2:5, 2:5, 2:5] = pieces[7, 7, 7] = True
    masks = [pieces, np.roll(pieces, 4, axis=2)]
    (first, second), report, _ = changed(masks, SegmentOptions(), False, pieces="largest")
    assert first.sum() == 27 and second.sum() == 28
    assert report["in_one_piece"] == ["Part 1"] and report["removed_ml"]["Part 1"] == pytest.approx(ML)
    assert not PostProcessing(description_of(regions=False), SegmentOptions(), grid(), lambda share: None).is_wanted


def kept(mask: np.ndarray, only_largest: bool, fewest: int) -> np.ndarray:
    """Reference: components with at least ``fewest`` voxels, or the largest one of them."""
    components, count = ndimage.label(mask, TOUCHING)
    sizes = [np.count_nonzero(components == number) for number in range(1, count + 1)]
    selected = [number for number, size in enumerate(sizes, start=1) if size >= fewest]
    if only_largest and selected:
        largest = max(sizes)
        assert sizes.count(largest) == 1, "otherwise either is right"
        selected = [1 + sizes.index(largest)]
    return np.isin(components, selected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.8]), st.booleans(), st.booleans())
def test_components_and_holes_match_another_library(seed, density, only_largest, regions):
    mask = np.random.default_rng(seed).random((9, 10, 11)) < density
    mask[2:6, 2:6, 2:8] = True
    mask[4, 4, 4] = False
    nothing = np.zeros_like(mask)
    options = SegmentOptions(keep_largest=only_largest, drop_below=3 * ML, fill_holes=True)
    (found, other), report, _ = changed([mask, nothing], options, regions)
    left = kept(mask, only_largest, 3)
    assert np.array_equal(found, ndimage.binary_fill_holes(left)) and not other.any()
    assert report["removed_ml"] == {"Part 1": pytest.approx(np.count_nonzero(mask & ~left) * ML)}
    assert report["filled_ml"] == {"Part 1": pytest.approx(np.count_nonzero(found & ~left) * ML)}


def shell() -> np.ndarray:
    """A hollow box with two holes, not touching the border of the image."""
    mask = np.zeros((8, 8, 12), bool)
    mask[1:7, 1:7, 1:11] = True
    mask[2:5, 2:5, 2:5] = mask[3:5, 3:5, 7:9] = False
    return mask


def test_hole_that_contains_another_segment_is_not_filled():
    inside = np.zeros((8, 8, 12), bool)
    inside[3, 3, 3] = True
    (found, other), _, _ = changed([shell(), inside], SegmentOptions(fill_holes=True), regions=False)
    assert np.array_equal(other, inside)
    assert not found[2:5, 2:5, 2:5].any() and found[3:5, 3:5, 7:9].all()


def test_cavities_open_to_the_outside_or_image_border_are_not_holes():
    open_one = shell()
    open_one[3, 3, :3] = False
    for mask in (open_one, shell()[3:]):
        (found, _), _, _ = changed([mask, np.zeros_like(mask)], SegmentOptions(fill_holes=True), regions=False)
        assert np.count_nonzero(found != mask) == 8 * (mask is open_one), "the other hole is one only when it is whole"


def test_overlapping_regions_are_processed_whole_and_parts_follow_their_region():
    whole, part = np.zeros((6, 6, 20), bool), np.zeros((6, 6, 20), bool)
    whole[1:5, 1:5, 1:9] = whole[1:5, 1:5, 12:15] = True
    part[2:4, 2:4, 2:4] = part[2:4, 2:4, 12:14] = part[4, 4, 8] = True
    (found, inner), _, _ = changed([whole, part], SegmentOptions(keep_largest=True), regions=True, nested=True)
    assert not found[..., 10:].any() and np.array_equal(found[..., :10], whole[..., :10])
    assert np.count_nonzero(inner) == 8 and inner[2:4, 2:4, 2:4].all()
    (apart, inner), _, _ = changed([whole, part], SegmentOptions(drop_below=2 * ML), regions=True)
    assert np.array_equal(apart, whole) and not inner[4, 4, 8] and inner[2:4, 2:4, 12:14].all()


def test_removed_segment_gets_a_warning():
    small, large = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    small[0, 0, :2], large[2:, 2:, 2:] = True, True
    (found, other), report, warnings = changed([small, large], EVERYTHING, regions=False)
    assert not found.any() and np.array_equal(other, large) and len(warnings) == 1
    assert report["removed_ml"] == {"Part 1": pytest.approx(2 * ML), "Part 2": 0.0}


@pytest.mark.parametrize("regions", [False, True])
def test_case_is_unchanged_without_options_and_options_are_reported(monkeypatch, tmp_path, regions):
    use_test_networks(monkeypatch)
    model = make_model(tmp_path / "model", scale=3, network="pointwise", regions=regions)
    on = grid((20, 22, 24), spacing=(1, 2, 3))
    # Smooth noise, so that thresholding gives blobs of all sizes.
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=on.shape), 1.2) * 1000
    volume = Volume(blobs.astype(np.float32), on, "blobs")
    plain = segment(model, [volume], SegmentOptions(threads=1))
    assert plain.report["postprocessing"] == {} and plain.report["fast"] is False
    options = SegmentOptions(threads=1, keep_largest=True, drop_below=0.05)
    result = segment(model, [volume], options)
    report = result.report["postprocessing"]
    assert (report["keep_largest"], report["drop_below_ml"], report["fill_holes"]) == (True, 0.05, False)
    pieces = 0
    for index, row in enumerate(result.report["segments"]):
        before = region_mask(plain.regions, index) if regions else plain.labels.array == row["label"]
        after = region_mask(result.regions, index) if regions else result.labels.array == row["label"]
        pieces += ndimage.label(before, TOUCHING)[1]
        assert ndimage.label(after, TOUCHING)[1] <= 1 and np.array_equal(after, kept(before, True, math.ceil(50 / 6)))
        assert result.report["volumes_ml"][row["name"]] == pytest.approx(np.count_nonzero(after) * 0.006)
    assert pieces > 2, "otherwise this shows nothing"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_drop_below_must_be_a_positive_volume(tmp_path, value):
    refusal("volume-not-positive", segment, make_model(tmp_path / "model"), [], SegmentOptions(drop_below=value))


def test_fast_uses_fewer_windows_and_no_mirroring(tmp_path):
    inference = {"overlap": 0.5, "tiling": "fitted", "mirror_axes": ["W"]}
    # A model of crops would process this image in a single window.
    settings = {"preparation": {"roi": "limit"}, "scale": 3}
    model = make_model(tmp_path / "model", inference=inference, **settings)
    plain = make_model(tmp_path / "plain", inference={**inference, "overlap": 0.25, "mirror_axes": []}, **settings)
    volume = random_volume(grid((40, 72, 40)))
    slow, fast = (segment(model, [volume], SegmentOptions(threads=1, fast=fast)) for fast in (False, True))
    same = segment(plain, [volume], SegmentOptions(threads=1))
    assert fast.report["fast"] and fast.report["windows"] < slow.report["windows"]
    assert np.array_equal(fast.labels.array, same.labels.array)
    assert not np.array_equal(fast.labels.array, slow.labels.array), "otherwise this shows nothing"


def test_fast_uses_fitted_windows_unless_tiling_is_set(tmp_path):
    model = make_model(tmp_path / "model", inference={"tiling": "authors", "blending": "uniform"})
    volume = random_volume(grid((20, 22, 24)))
    tilings = {
        tiling: segment(model, [volume], SegmentOptions(threads=1, fast=True, tiling=tiling)).report["tiling"]
        for tiling in (None, "authors")
    }
    assert tilings == {None: "fitted", "authors": "authors"}


def test_command_line_has_postprocessing_options(capsys, tmp_path):
    model = write_model(tmp_path / "model", description()).path
    volume = random_volume(grid((20, 22, 24)))
    write_volume(volume.array, volume.grid, tmp_path / "image.nii.gz")
    arguments = ["segment", str(tmp_path / "image.nii.gz"), "--model", str(model), "--threads", "1", "--output"]
    options = ["--keep-largest", "--drop-below", "0.01", "--fill-holes", "--fast"]
    assert main([*arguments, str(tmp_path / "result"), *options]) == 0
    report = json.loads((tmp_path / "result" / "report.json").read_text(encoding="utf-8"))
    assert report["fast"] and report["postprocessing"]["drop_below_ml"] == 0.01
    labels = read_volume(tmp_path / "result" / "segmentation.nii.gz").array
    assert all(ndimage.label(labels == value, TOUCHING)[1] <= 1 for value in (10, 20))
    for wrong in ("0", "nan", "much"):
        assert main([*arguments, str(tmp_path / "none"), "--drop-below", wrong]) == 2
        assert not (tmp_path / "none").exists()
