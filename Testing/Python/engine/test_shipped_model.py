"""The hippocampus model: its package, and its results on real cases not used in training."""

import json
from pathlib import Path

import numpy as np
import pytest

from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.reader import read_package
from conresnet.package.store import find_model
from conresnet.request import SegmentOptions

CASES = ("hippocampus_004", "hippocampus_123", "hippocampus_210")


@pytest.fixture(scope="module")
def package():
    return read_package(find_model("hippocampus"))


@pytest.fixture(scope="module")
def model(package):
    return load_model(package, "cpu", "fp32")


@pytest.fixture(scope="module")
def images(data_folder: Path) -> dict[str, tuple[Volume, np.ndarray]]:
    """Image and expert's labels of each case."""
    folder = data_folder / "MSD_Task04_Hippocampus"
    return {
        name: (read_volume(folder / f"imagesTr/{name}.nii.gz"), read_volume(folder / f"labelsTr/{name}.nii.gz").array)
        for name in CASES
    }


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice of anterior and posterior."""
    shares = []
    for label in (1, 2):
        found_mask, true_mask = found == label, truth == label
        shares.append(2 * (found_mask & true_mask).sum() / (found_mask.sum() + true_mask.sum()))
    return float(np.mean(shares))


def test_package_is_small_and_has_license_of_training_data(package):
    size = sum(file.stat().st_size for file in Path(package.path).iterdir())
    assert size <= 12e6
    assert package.description.license == "CC-BY-SA-4.0"
    assert "Medical Segmentation Decathlon" in package.description.attribution


def test_metrics_name_cases_and_meet_the_goal(package):
    metrics = json.loads(package.read_file("metrics.json"))
    cases = metrics["dice_a_case"]
    assert len(cases) == 40 and set(CASES) <= set(cases)
    assert metrics["mean_dice"] == pytest.approx(np.mean([list(row.values()) for row in cases.values()]), abs=1e-4)
    assert metrics["mean_dice"] >= 0.88


def test_unseen_cases_get_reported_dice(package, model, images):
    stated = json.loads(package.read_file("metrics.json"))["dice_a_case"]
    for name, (image, truth) in images.items():
        found = segment(model, [image], SegmentOptions()).labels.array
        assert overlap(found, truth) == pytest.approx(np.mean(list(stated[name].values())), abs=0.01)
        assert overlap(found, truth) > 0.8


def test_crop_in_a_larger_volume_gives_same_result_inside_roi(model, images):
    """A crop pasted into a volume of other tissue, with the ROI drawn along the borders of the crop."""
    image, _ = images["hippocampus_123"]
    alone = segment(model, [image], SegmentOptions()).labels.array
    before, after = (9, 14, 6), (5, 3, 11)
    tissue = 3 * float(image.array.mean())
    whole = np.pad(image.array.astype(np.float32), list(zip(before, after, strict=True)), constant_values=tissue)
    affine = image.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(before[::-1])
    corners = image.grid.corners()
    bounds = np.stack([corners.min(axis=0), corners.max(axis=0)], axis=1).ravel()
    volume = Volume(whole, Grid(whole.shape, affine), "pasted")
    found = segment(model, [volume], SegmentOptions(roi=BoxROI.from_bounds(bounds))).labels.array
    inside = tuple(slice(a, a + side) for a, side in zip(before, image.array.shape, strict=True))
    assert overlap(found[inside], alone) > 0.99
    found[inside] = 0
    assert not found.any()


def test_roi_need_not_be_exact(model, images):
    """An ROI that is 3 mm smaller on every side gives nearly the same result."""
    image, truth = images["hippocampus_004"]
    corners = image.grid.corners()
    bounds = np.stack([corners.min(axis=0) + 3, corners.max(axis=0) - 3], axis=1).ravel()
    found = segment(model, [image], SegmentOptions(roi=BoxROI.from_bounds(bounds))).labels.array
    assert overlap(found, truth) > 0.8
