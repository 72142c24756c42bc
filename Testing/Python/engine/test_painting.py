"""Conversion of probabilities to label values."""

import numpy as np
import pytest
import torch

from conresnet.inference.labels import LabelWriter, packed_size, region_mask
from conresnet.inference.results import to_half
from conresnet.package import parse_description
from conresnet.package.outputs import check_maps
from engine.model_cases import description
from engine.package_cases import refusal


def output(regions: bool, **changes):
    document = description(segments=3, regions=regions)
    document["output"] |= changes
    return parse_description(document).output


def test_labels_are_most_likely_of_segments_and_background():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4, 5, 6, 7)) * 2
    every = np.exp(logits) / np.exp(logits).sum(axis=0)
    writer = LabelWriter(output(regions=False))
    labels = writer.labels(torch.from_numpy(every[1:].astype(np.float32)))
    assert np.array_equal(labels, 10 * logits.argmax(axis=0))
    assert labels.dtype == np.uint8
    assert list(writer.voxels) == [(labels == value).sum() for value in (10, 20, 30)]
    assert writer.region_voxels is None


def test_zero_probabilities_give_background():
    assert not LabelWriter(output(regions=False)).labels(torch.zeros(3, 2, 2, 2)).any()


def test_regions_are_painted_in_order():
    probability = np.zeros((3, 1, 1, 4), np.float32)
    probability[0, ..., :3] = 0.9
    probability[1, ..., 1:3] = 0.6
    probability[2, ..., 2:] = 0.8
    assert LabelWriter(output(regions=True)).labels(torch.from_numpy(probability)).ravel().tolist() == [10, 20, 30, 30]
    turned = LabelWriter(output(regions=True, paint_order=["Part 3", "Part 2", "Part 1"], threshold=0.7))
    assert turned.labels(torch.from_numpy(probability)).ravel().tolist() == [10, 10, 10, 30]
    assert list(turned.voxels) == [3, 0, 1]
    assert list(turned.region_voxels) == [3, 0, 2]


def test_every_region_is_kept_whole_besides_painted_labels():
    count = 11
    document = description(segments=count, regions=True)
    probability = np.random.default_rng(0).random((count, 4, 5, 6), np.float32)
    mask = np.random.default_rng(1).random((4, 5, 6)) > 0.3
    packed = np.full((packed_size(count), 4, 5, 6), 255, np.uint8)
    labels = LabelWriter(parse_description(document).output).labels(torch.from_numpy(probability), mask, packed)
    painted = np.zeros_like(labels)
    for index in range(count):
        np.testing.assert_array_equal(region_mask(packed, index), (probability[index] > 0.5) & mask)
        painted[region_mask(packed, index)] = 10 * (index + 1)
    assert len(packed) == 2
    np.testing.assert_array_equal(painted, labels)


def nested():
    """Regions like those of a brain tumor, whole tumor first: it includes the core, and the core the enhancing part."""
    document = description(segments=3, regions=True)
    whole, core, enhancing = document["output"]["segments"]
    whole["includes"], core["includes"] = [core["name"], enhancing["name"]], [enhancing["name"]]
    return parse_description(document).output


def test_region_includes_its_parts_in_regions_and_labels():
    probability = np.random.default_rng(0).random((3, 6, 7, 8), np.float32)
    mask = np.random.default_rng(1).random((6, 7, 8)) > 0.3
    writers = [LabelWriter(output(regions=True)), LabelWriter(nested())]
    packed = np.zeros((2, 1, 6, 7, 8), np.uint8)
    apart, labels = (
        writer.labels(torch.from_numpy(probability), mask, into) for writer, into in zip(writers, packed, strict=True)
    )
    np.testing.assert_array_equal(labels, apart)
    for index, values in enumerate([(10, 20, 30), (20, 30), (30,)]):
        region = region_mask(packed[1], index)
        np.testing.assert_array_equal(region, np.isin(labels, values))
        assert writers[1].region_voxels[index] == np.count_nonzero(region)
    assert not np.array_equal(packed[0], packed[1])


def test_small_component_of_a_region_is_kept_if_a_part_of_it_is():
    probability = np.zeros((3, 1, 1, 12), np.float32)
    probability[:2, ..., :8] = 0.9
    probability[:2, ..., 11] = probability[2, ..., 11] = 0.9  # 1/9 of the whole tumor, all of the enhancing part
    probability[0, ..., 9] = 0.9
    writer, packed = LabelWriter(nested()), np.zeros((1, 1, 1, 12), np.uint8)
    labels = writer.labels(torch.from_numpy(probability), None, packed)
    writer.drop_small_components(labels, packed, 0.2)
    assert labels.ravel().tolist() == [20] * 8 + [0, 0, 0, 30]
    assert list(writer.region_voxels) == [9, 9, 1]
    for index in range(3):
        assert region_mask(packed, index)[..., 11].all() and not region_mask(packed, index)[..., 9].any()


@pytest.mark.parametrize("regions", [True, False])
def test_labels_are_empty_outside_mask(regions):
    probability = np.full((3, 1, 1, 4), 0.3, np.float32)
    probability[1] = 0.6
    writer = LabelWriter(output(regions))
    assert writer.labels(torch.from_numpy(probability), np.array([[[True, False, True, False]]])).ravel().tolist() == [
        20,
        0,
        20,
        0,
    ]
    assert list(writer.voxels) == [0, 2, 0]


def test_maps_are_checked_by_name():
    model, without_residuals = (parse_description(description(network)) for network in ("conresnet", "pointwise"))
    assert check_maps(["residual", "residual"], model) == ("residual",)
    refusal("map-unknown", check_maps, ["rezidual"], model)
    assert "attention" in refusal("map-unavailable", check_maps, ["attention"], without_residuals)


def test_half_precision_conversion_avoids_infinity():
    assert np.isfinite(to_half(np.array([1e9, -1e9, 3.0], np.float32))).all()
