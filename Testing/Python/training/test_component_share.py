"""Small components that a plan for coarse-to-fine removes."""

import numpy as np
import pytest

from conresnet.systems.coarse_to_fine import spared_share
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.planner import Choices, labeled_masks, make_plan
from training.data_folders import decathlon, image, save

SHAPE = (40, 30, 20)
TARGETS = {"near": [1], "far": [2]}


def labelled(sizes):
    """An organ of 4000 voxels as label 1, and label 2 in separate pieces of the given sizes."""
    label = np.zeros(SHAPE, np.uint8)
    label[:20, :10, :20] = 1
    for place, size in enumerate(sizes):
        rows = label[22:38, 12 + 3 * place]
        flat = np.zeros(rows.size, np.uint8)
        flat[:size] = 2
        rows[...] = flat.reshape(rows.shape)
    return label


@pytest.mark.parametrize(
    ("pieces", "share"),
    [([200], 0.2), ([200, 1], 0.2), ([200, 60], 0.2), ([200, 30], 0.05), ([200, 30, 5], 0.0), ([], 0.2)],
    ids=["one piece", "speck", "two lobes", "lesion", "lesion and specks", "no label"],
)
def test_labels_lose_hardly_any_voxels(tmp_path, pieces, share):
    folder = decathlon(tmp_path / "set")
    for number in range(3):
        save(image(number, SHAPE), folder / "imagesTr" / f"case_{number}.nii.gz")
        save(labelled(pieces), folder / "labelsTr" / f"case_{number}.nii.gz")
    data_set = read_data_set(folder)
    assert spared_share(labeled_masks(data_set, TARGETS)) == share
    plan, reasons = make_plan(data_set, folder, choices=Choices("coarse-to-fine"))
    assert plan.model.system.arguments["smallest_component"] == share
    (reason,) = [reason for reason in reasons if reason.what == "dropped components"]
    assert reason.value == (f"under {share:.0%} of a segment" if share else "none")
