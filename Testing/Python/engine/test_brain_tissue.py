"""The model `brain-tissue` on a head not used in training, compared with silver labels, in other orientations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.images import Reordering, Volume
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.reader import read_package
from conresnet.package.store import find_model
from conresnet.request import SegmentOptions
from engine.volumes import stored

LABELS = {"CSF": 1, "Gray matter": 2, "White matter": 3}
LEAST_DICE = {"CSF": 0.62, "Gray matter": 0.85, "White matter": 0.89}
LEAST_DICE_STRIPPED = {"CSF": 0.55, "Gray matter": 0.85, "White matter": 0.89}
# Between the results of an image and of a finer one, which is smoother once resampled to the model's spacing.
LEAST_AGREEMENT = {"CSF": 0.68, "Gray matter": 0.86, "White matter": 0.90}


@pytest.fixture(scope="module")
def package():
    return read_package(find_model("brain-tissue"))


@pytest.fixture(scope="module")
def model(package):
    return load_model(package, "cpu", "fp32")


@pytest.fixture(scope="module")
def head(head_image: Path) -> Volume:
    return read_volume(head_image)


@pytest.fixture(scope="module")
def truth(head: Volume, head_label: Path) -> np.ndarray:
    labels = read_volume(head_label)
    assert labels.grid.matches(head.grid)
    return labels.array


@pytest.fixture(scope="module")
def middle(head: Volume) -> SegmentOptions:
    """A 96 mm cube in the center of the head; with its margin, it fits one window, so the test is fast."""
    return SegmentOptions(roi=BoxROI(head.grid.center, np.eye(3), np.full(3, 96.0)))


@pytest.fixture(scope="module")
def expected(model, head: Volume, middle: SegmentOptions) -> np.ndarray:
    """The result in that cube for the image as it is stored."""
    result = segment(model, [head], middle)
    assert result.report["windows"] == 1
    return result.labels.array


def dice(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of each tissue."""
    pairs = {name: (found == label, truth == label) for name, label in LABELS.items()}
    return {
        name: 2 * (found_mask & true_mask).sum() / (found_mask.sum() + true_mask.sum())
        for name, (found_mask, true_mask) in pairs.items()
    }


def too_low(found: dict[str, float], least: dict[str, float]) -> dict[str, float]:
    """Tissues whose Dice is below the required value, so that a failure names them."""
    return {name: value for name, value in found.items() if not value >= least[name]}


def test_package_is_small_and_describes_training_data(package):
    assert sum(file.stat().st_size for file in package.path.iterdir()) <= 20e6
    description = package.description
    assert description.license == "CC-BY-SA-3.0" and "IXI" in description.attribution
    assert {segment.name: segment.label for segment in description.output.segments} == LABELS
    for text in (description.training_data, description.limitations):
        assert "silver" in text, "labels of a program are not an expert's"


def test_unseen_whole_head_is_segmented_without_roi(model, head, truth):
    found = dice(segment(model, [head], SegmentOptions(fast=True)).labels.array, truth)
    assert too_low(found, LEAST_DICE) == {}


@pytest.mark.slow
def test_unseen_whole_head_gets_reported_dice(package, model, head, head_image, truth):
    found = dice(segment(model, [head]).labels.array, truth)
    assert too_low(found, LEAST_DICE) == {}
    stated = json.loads(package.read_file("metrics.json"))["dice_a_case"]
    assert found == pytest.approx(stated[head_image.name.removesuffix(".nii.gz")], abs=0.01)


def test_small_roi_is_segmented_as_well_as_whole_head(model, head, truth):
    """Its intensity is measured in the whole head, not only in the region."""
    region = BoxROI(head.grid.center + np.array([0, -45, 15]), np.eye(3), np.full(3, 50.0))
    inside = region.contains(head.grid.array_affine, head.grid.shape)
    found = segment(model, [head], SegmentOptions(roi=region)).labels.array
    assert not found[~inside].any()
    assert too_low(dice(found[inside], truth[inside]), LEAST_DICE) == {}


def test_borders_of_a_long_roi_are_segmented(model, head, truth):
    """A window is 128 mm long; without padding, the uppermost 4 mm of this region would have no context above them."""
    size = np.array([40.0, 40.0, 131.0])
    region, lower = (BoxROI(head.grid.center - [0, 0, less], np.eye(3), size - [0, 0, 2 * less]) for less in (0, 2))
    grid = head.grid.array_affine, head.grid.shape
    top = region.contains(*grid) & ~lower.contains(*grid) & (truth > 0)
    found = segment(model, [head], SegmentOptions(roi=region)).labels.array
    assert (found[top] == truth[top]).mean() > 0.8


@pytest.mark.slow
def test_skull_stripped_head_is_segmented(model, head, truth):
    """Other programs set the image to 0 where they removed the skull."""
    brain = Volume(np.where(truth > 0, head.array, 0).astype(head.array.dtype), head.grid, "stripped")
    found = segment(model, [brain]).labels.array
    assert too_low(dice(found, truth), LEAST_DICE_STRIPPED) == {}
    assert np.count_nonzero(found[truth == 0]) < 0.02 * np.count_nonzero(truth)


@pytest.mark.parametrize(
    "way", [Reordering((2, 0, 1), (True, False, False)), Reordering((1, 2, 0), (True, True, True))]
)
def test_other_orientation_gives_same_labels(model, head, middle, expected, way):
    found = segment(model, [stored(head, way)], middle).labels.array
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert np.array_equal(found, way.view(expected))


def test_finer_image_gives_similar_labels(model, head_image, tmp_path, middle, expected):
    """At 1 mm, where every second voxel coincides with one at 2 mm."""
    image = sitk.ReadImage(str(head_image), sitk.sitkFloat32)
    size, spacing = [2 * side - 1 for side in image.GetSize()], [side / 2 for side in image.GetSpacing()]
    finer = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection()
    )
    path = tmp_path / "finer.nii.gz"
    sitk.WriteImage(finer, str(path))
    found = segment(model, [read_volume(path)], middle).labels.array[::2, ::2, ::2]
    assert found.shape == expected.shape
    agreed = dice(found, expected)
    assert too_low(agreed, LEAST_AGREEMENT) == {}
