"""The model of organs in CT: on a synthetic head and neck not used in training, and on a CT without its organs."""

from pathlib import Path

import numpy as np
import pytest

from conresnet.images.files import read_volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.request import SegmentOptions

EXAMPLE = "ConResSegmentation/Resources/Examples/head_neck_ct.nii.gz"


@pytest.fixture(scope="module")
def model():
    return load_model("head-neck-organs", "cpu", "fp32")


def test_organs_of_head_and_neck_are_found(model, repository: Path, data_folder: Path) -> None:
    result = segment(model, [read_volume(repository / EXAMPLE)], SegmentOptions(threads=1))
    found, truth = result.labels.array, read_volume(data_folder / "Synthetic_CT" / "labels.nii.gz").array
    for label, least in ((1, 0.70), (2, 0.65)):
        found_mask, true_mask = found == label, truth == label
        assert 2 * (found_mask & true_mask).sum() / (found_mask.sum() + true_mask.sum()) > least
    centers = [
        result.labels.grid.to_ras(np.argwhere(found == label).astype(float)).mean(axis=0) for label in range(1, 6)
    ]
    brainstem, cord, right, left, mandible = centers
    assert right[0] > cord[0] + 30 and left[0] < cord[0] - 30
    assert brainstem[2] > cord[2] + 30 and mandible[1] > cord[1] + 30
    assert result.report["warnings"] == []


def test_ct_without_these_organs_gets_a_warning(model, ct_image: Path) -> None:
    (warning,) = segment(model, [read_volume(ct_image)], SegmentOptions(threads=1)).report["warnings"]
    assert (
        " segments are much smaller or larger than in the training labels. For example, Brainstem measures 0" in warning
    )
