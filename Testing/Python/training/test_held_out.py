"""Validation on whole cases, and in the boxes that a coarse network finds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from conresnet_training.found_boxes import FoundBoxes
from conresnet_training.held_out import HeldOutCases, dice_of_cases

ARGUMENTS = {"margin": 2, "smallest_component": 0.2}
CPU = torch.device("cpu")


class Bright(nn.Module):
    """Finds its only segment where the image is 1, and says how often it was asked."""

    def __init__(self):
        super().__init__()
        self.scale, self.asked = nn.Parameter(torch.tensor(4.0)), 0

    def forward(self, x, wanted):
        self.asked += 1
        return {"segmentation": self.scale * torch.cat([0.5 - x, x - 0.5], 1)}


def case(bright, label=None):
    label = np.zeros((24, 20, 16), np.uint8) if label is None else label
    image = np.zeros(label.shape, np.float32)
    image[bright] = 1
    return SimpleNamespace(name="a", image=image[None], label=label)


def boxes(network):
    return FoundBoxes(network, (8, 8, 8), 1, True, ARGUMENTS)


def dice(network, item, box_of):
    return dice_of_cases(network, HeldOutCases([item], [[1]], box_of), [0], (8, 8, 8), True, CPU, lambda: False).item()


def test_the_box_is_what_was_found_and_a_margin_without_small_components():
    network = Bright()
    item = case(np.s_[5:9, 1:6, 3:10])
    item.image[0, 22, 18, 14] = 1
    found = boxes(network)
    assert found(item) == (slice(3, 11), slice(0, 8), slice(1, 12))
    asked = network.asked
    assert found(item) == found(item) and network.asked == asked


@pytest.mark.parametrize(("labelled", "expected"), [(True, 0), (False, 1)])
def test_where_nothing_is_found_all_is_missed(labelled, expected):
    label = np.zeros((24, 20, 16), np.uint8)
    label[2:5, 2:5, 2:5] = labelled
    item = case(np.s_[0:0], label)
    assert boxes(Bright())(item) is None
    assert dice(Bright(), item, boxes(Bright())) == expected


def test_what_lies_outside_the_box_counts_as_missed():
    label = np.zeros((24, 20, 16), np.uint8)
    label[4:20, 5:10, 5:10] = 1
    item = case(label == 1, label)
    assert dice(Bright(), item, lambda case: (slice(0, 12), slice(0, 20), slice(0, 16))) == pytest.approx(2 * 8 / 24)
    assert dice(Bright(), item, boxes(Bright())) == 1
