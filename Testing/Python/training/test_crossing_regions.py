"""Regions that overlap partially; where they do, a label map can hold only one of them."""

import numpy as np
import pytest
import torch

from conresnet.images import Volume
from conresnet.inference.labels import LabelWriter
from conresnet.inference.segmentation import SegmentResult
from conresnet_training.data.label_maps import read_label
from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import runs
from conresnet_training.evaluation.metrics import SegmentValues, crossing
from conresnet_training.evaluation.report import picture_of
from conresnet_training.evaluation.runs import measure_predictions
from training.commands import refused
from training.data_folders import turn_into_nnunet
from training.trained_runs import finished_run, small_plan

REGIONS = {"Near": [1, 2], "Far": [2, 3]}


@pytest.fixture
def crossing_regions(data_set):
    """``data_set`` in nnU-Net's layout, with two regions neither of which contains the other."""
    turn_into_nnunet(data_set, REGIONS, [1, 3])
    return data_set


def test_run_is_measured_by_its_regions_rather_than_painted_labels(crossing_regions, tmp_path, monkeypatch):
    labels = {str(case.images[0]): case.label for case in read_data_set(crossing_regions).cases}

    def perfect(model, channels, _options):
        truth = read_label(labels[channels[0].name]).array
        masks = np.stack([np.isin(truth, values) for values in REGIONS.values()]).astype(np.float32)
        packed = np.zeros((1, *truth.shape), np.uint8)
        painted = LabelWriter(model.description.output).labels(torch.from_numpy(masks), packed=packed)
        assert not np.array_equal(np.isin(painted, [1]), masks[0])
        return SegmentResult(Volume(painted, channels[0].grid, ""), {}, {}, packed)

    monkeypatch.setattr(runs, "segment", perfect)
    run = finished_run(small_plan(crossing_regions), tmp_path / "run")
    (tmp_path / "out").mkdir()
    measured = runs.measure_runs([run], tmp_path / "out")
    assert list(measured.evaluation.cases) == ["case_0", "case_3"]
    for figures in measured.evaluation.cases.values():
        assert all(figures[name]["dice"] == 1 and figures[name]["volume_difference_ml"] == 0 for name in REGIONS)
    assert picture_of("case_0", measured) is None, "its outlines would be of what is painted"


def test_label_maps_of_crossing_regions_are_refused(crossing_regions, predictions):
    with refused("regions-cross", first="Near", second="Far"):
        measure_predictions(predictions, read_data_set(crossing_regions))


@pytest.mark.parametrize(
    ("truths", "pair"),
    [
        ([(1, 2, 4), (1, 4), (4,)], None),
        ([(1,), (2,), (3, 4)], None),
        ([(1, 2), (1, 2)], None),
        ([(1, 2, 3), (1, 2), (2, 3)], ("1", "2")),
    ],
)
def test_regions_cross_if_neither_contains_the_other(truths, pair):
    assert crossing({str(place): SegmentValues(own, own) for place, own in enumerate(truths)}) == pair
