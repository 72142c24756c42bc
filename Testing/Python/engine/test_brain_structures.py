"""The model `brain-structures` on a head not used in training: compared with silver labels, and mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conresnet.images import Volume
from conresnet.images.files import read_volume
from conresnet.inference.segmentation import LoadedModel, load_model, segment
from conresnet.package.store import find_model
from conresnet.request import SegmentOptions

GRAY = ("cerebral cortex", "cerebellum cortex", "thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala")
WHITE = ("cerebral white matter", "cerebellum white matter", "Brain stem", "ventral diencephalon")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(find_model("brain-structures"), "cpu", "fp32")


@pytest.fixture(scope="module")
def head(head_image: Path) -> Volume:
    return read_volume(head_image)


@pytest.fixture(scope="module", params=["fast", pytest.param("best", marks=pytest.mark.slow)])
def found(model: LoadedModel, head: Volume, request: pytest.FixtureRequest) -> np.ndarray:
    return segment(model, [head], SegmentOptions(fast=request.param == "fast")).labels.array


def names_of(model: LoadedModel) -> dict[int, str]:
    return {segment.label: segment.name for segment in model.description.output.segments}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_tissues_agree_with_silver_labels(model: LoadedModel, found: np.ndarray, head_label: Path) -> None:
    tissue = read_volume(head_label).array
    for endings, value, least in ((GRAY, 2, 0.80), (WHITE, 3, 0.85)):
        labels = [label for label, name in names_of(model).items() if name.endswith(endings)]
        assert dice(np.isin(found, labels), tissue == value) > least


def test_left_is_left_and_right_is_right(model: LoadedModel, head: Volume, found: np.ndarray) -> None:
    labels = {name: label for label, name in names_of(model).items()}
    # The first axis of this image runs from left to right.
    assert abs(head.grid.array_affine[0, 0]) == pytest.approx(head.grid.spacing[2])
    right = [np.nonzero(found == labels[name])[0].mean() for name in labels if name.startswith("Right ")]
    left = [np.nonzero(found == labels[name])[0].mean() for name in labels if name.startswith("Left ")]
    assert np.sign(np.subtract(right, left)).tolist() == [np.sign(head.grid.array_affine[0, 0])] * len(left)


@pytest.mark.slow
def test_mirrored_head_has_mirrored_structures(model: LoadedModel, head: Volume, found: np.ndarray) -> None:
    labels = {name: label for label, name in names_of(model).items()}
    mirrored = Volume(head.array[::-1].copy(), head.grid, "mirrored")
    other = segment(model, [mirrored]).labels.array[::-1]
    for part in ("cerebral cortex", "thalamus", "putamen", "hippocampus"):
        for side, opposite in (("Left", "Right"), ("Right", "Left")):
            assert dice(found == labels[f"{side} {part}"], other == labels[f"{opposite} {part}"]) > 0.75


def test_labels_are_freesurfers_and_connected(model: LoadedModel, found: np.ndarray) -> None:
    names = names_of(model)
    assert [names[label] for label in (2, 17, 53, 16)] == [
        "Left cerebral white matter",
        "Left hippocampus",
        "Right hippocampus",
        "Brain stem",
    ]
    assert set(np.unique(found)) <= {0, *names}
    pieces = {segment.name: segment.pieces for segment in model.description.output.segments}
    assert pieces["Left cerebral cortex"] == "largest" and pieces["Cerebrospinal fluid"] == "all"
