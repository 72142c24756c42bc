"""Validation on whole cases, and in the boxes found by a coarse network."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from conresnet import load_network
from conresnet.images.files import read_volume
from conresnet.images.preparation import prepare
from conresnet.inference import Tiling, fitted_windows
from conresnet.inference.devices import Backend
from conresnet.inference.labels import FoundSegments
from conresnet.inference.segmentation import load_model
from conresnet.inference.sliding import Passes
from conresnet.package.outputs import Output, Segment
from conresnet.request import Progress, Tracker
from conresnet.systems.coarse_to_fine import box_around
from conresnet_training.training.validation import FirstStageBoxes, HeldOutCases, dice_of_cases, found_segments
from peak_memory import PEAK_MEMORY, REASON

FIND_BOX = partial(box_around, margin=2, smallest=0.2)
CPU = torch.device("cpu")


def output_of(kind: str, segments: int, threshold: float = 0.5) -> Output:
    names = tuple(map(str, range(segments)))
    own = tuple(Segment(name, place + 1, (0, 0, 0), None) for place, name in enumerate(names))
    return Output(kind=kind, threshold=threshold, segments=own, paint_order=names)


ONE_LABEL = output_of("labels", 1)


class Bright(nn.Module):
    """Finds its only segment where the image is 1, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(4.0)), 0

    def forward(self, x, wanted):
        self.calls += 1
        return {"segmentation": self.scale * torch.cat([0.5 - x, x - 0.5], 1)}


def case(bright, label=None):
    label = np.zeros((24, 20, 16), np.uint8) if label is None else label
    image = np.zeros(label.shape, np.float32)
    image[bright] = 1
    return SimpleNamespace(name="a", image=image[None], label=label)


def boxes(network):
    return FirstStageBoxes(network, (8, 8, 8), ONE_LABEL, FIND_BOX)


def dice(network, item, box_of):
    cases = HeldOutCases([item], [[1]], box_of)
    return dice_of_cases(network, cases, [0], (8, 8, 8), ONE_LABEL, CPU, lambda: False).item()


def test_box_contains_found_voxels_and_margin_without_small_components():
    network = Bright()
    item = case(np.s_[5:9, 1:6, 3:10])
    item.image[0, 22, 18, 14] = 1
    found = boxes(network)
    assert found(item) == (slice(3, 11), slice(0, 8), slice(1, 12))
    calls = network.calls
    assert found(item) == found(item) and network.calls == calls


@pytest.mark.parametrize(("labelled", "expected"), [(True, 0), (False, 1)])
def test_all_is_missed_if_nothing_is_found(labelled, expected):
    label = np.zeros((24, 20, 16), np.uint8)
    label[2:5, 2:5, 2:5] = labelled
    item = case(np.s_[0:0], label)
    assert boxes(Bright())(item) is None
    assert dice(Bright(), item, boxes(Bright())) == expected


def test_voxels_outside_the_box_count_as_missed():
    label = np.zeros((24, 20, 16), np.uint8)
    label[4:20, 5:10, 5:10] = 1
    item = case(label == 1, label)
    assert dice(Bright(), item, lambda case: (slice(0, 12), slice(0, 20), slice(0, 16))) == pytest.approx(2 * 8 / 24)
    assert dice(Bright(), item, boxes(Bright())) == 1


@pytest.mark.parametrize("box", [np.s_[6:11, 7:14, 3:12], np.s_[0:5, 13:20, 7:16], np.s_[2:22, 1:20, 4:12]])
def test_box_is_segmented_with_its_surroundings_as_in_the_engine(box):
    """If cropped, the box would be padded to the window with zeros, unlike in the engine."""
    random = np.random.default_rng(0)
    image = random.choice([0.25, 0.75], size=(1, 24, 24, 16)).astype(np.float32)
    shown = []

    class Network(Bright):
        def forward(self, x, wanted):
            shown.append(x[0].numpy())
            return super().forward(x, wanted)

    network = Network()
    with torch.no_grad():
        found = found_segments(network, image, box, (16, 16, 16), ONE_LABEL, CPU)
    assert np.array_equal(found, image[0][box] > 0.5)
    plan = fitted_windows(box, image.shape[1:], (16, 16, 16), 0.5)
    engine = [
        image[(slice(None), *(slice(first, first + side) for first, side in zip(start, plan.size, strict=True)))]
        for start in map(plan.start, plan)
    ]
    assert len(shown) == len(engine) and all(map(np.array_equal, shown, engine))


@pytest.mark.parametrize("exclusive", [True, False])
def test_dice_matches_masks_of_a_real_case(hippocampus_image, hippocampus_label, exclusive):
    """Counted by label value, without a mask of the whole case for each segment."""
    image, label = (read_volume(path).array for path in (hippocampus_image, hippocampus_label))
    item = SimpleNamespace(name="a", image=((image - image.mean()) / image.std())[None].astype(np.float32), label=label)
    targets, box = [[1], [2]] if exclusive else [[1, 2], [2]], (slice(3, len(label)), slice(0, 40), slice(5, 30))
    torch.manual_seed(0)
    convolution = nn.Conv3d(1, len(targets) + exclusive, 5, padding="same")

    class Network(nn.Module):
        def forward(self, x, wanted):
            return {"segmentation": 3 * convolution(x)}

    cases = HeldOutCases([item], targets, lambda case: box)
    output = output_of("labels" if exclusive else "regions", len(targets))
    found = dice_of_cases(Network(), cases, [0], (24, 24, 24), output, CPU, lambda: False)[0]
    with torch.no_grad():
        segments = found_segments(Network(), item.image, box, (24, 24, 24), output, CPU)
    for place, values in enumerate(targets):
        mask, truth = np.zeros(label.shape, bool), np.isin(label, values)
        mask[box] = segments == place + 1 if exclusive else segments[place]
        expected = 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))
        assert 0.05 < expected < 0.95 and float(found[place]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 0), (0.3, 1)])
def test_regions_are_cut_at_the_threshold_of_the_plan(threshold, expected):
    class Network(Bright):
        def forward(self, x, wanted):
            return {"segmentation": torch.where(x > 0, torch.logit(torch.tensor(0.4)), -9.0)}

    item = case(np.s_[5:9, 1:6, 3:10])
    item.label[5:9, 1:6, 3:10] = 1
    output = output_of("regions", 1, threshold)
    found = dice_of_cases(Network(), HeldOutCases([item], [[1]]), [0], (8, 8, 8), output, CPU, lambda: False)
    assert found.item() == expected


VALIDATION = f"""
import numpy as np, torch
from types import SimpleNamespace
from conresnet_training.training.validation import HeldOutCases, dice_of_cases

segments, side = 13, 96
class Network(torch.nn.Module):
    def forward(self, x, wanted):
        return {{"segmentation": torch.zeros(1, segments + 1, *x.shape[2:])}}

label = np.random.default_rng(0).integers(0, segments + 1, (side,) * 3).astype(np.uint8)
case = SimpleNamespace(name="a", image=np.zeros((1, *label.shape), np.float32), label=label)
cases = HeldOutCases([case], [[value + 1] for value in range(segments)])
before = int(open("/proc/self/statm").read().split()[1]) * 4096
output = SimpleNamespace(kind="labels", segments=[None] * segments)
dice_of_cases(Network(), cases, [0], (32,) * 3, output, torch.device("cpu"), lambda: False)
print(({PEAK_MEMORY} - before) / segments / label.size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_validation_keeps_probabilities_of_one_window_depth():
    """All of them would take 4 bytes per voxel and segment; with masks and targets as floats, it was 18."""
    command = [sys.executable, "-c", VALIDATION]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert 0.1 < float(done.stdout) < 5.5


def test_validation_matches_engine(hippocampus_image, monkeypatch):
    """Both use the same sliding-window pass: same positions, padding, blending and decision for every voxel."""
    model = load_model("hippocampus", "cpu", "fp32")
    volume = read_volume(hippocampus_image)
    case = prepare(model.description, [volume])
    image = case.block((0, 0, 0), case.shape)
    network = load_network("hippocampus")
    window = (24, 32, 24)
    box = tuple(slice(3, side - 2) for side in case.shape)
    with torch.no_grad():
        found = found_segments(network, image, box, window, model.description.output, CPU)
    results = FoundSegments(case, model.description.output)
    tiling = Tiling("fitted", window, 0.5, "gaussian")
    passes = Passes(Backend(CPU, "fp32"), tiling, (), None, Tracker(Progress(), {"segmenting": 1.0}))
    passes._tracker.begin("segmenting")
    # Validation does not mirror, which would double its time.
    monkeypatch.setattr(model.system.predictors[0], "_mirrorings", [])
    passes.make("only", model.system.predictors[0], case, box, tiling, results)
    engine = results.labels[box]
    assert len(passes.passes[0].plan) > 4 and len(np.unique(engine)) == 3
    # The engine folds weight standardization into the weights, which rounds differently.
    assert np.mean(found != engine) < 1e-4
