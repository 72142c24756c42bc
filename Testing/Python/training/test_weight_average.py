"""Exponential moving average of a network's weights."""

import pytest
import torch
from torch import nn

from conresnet_training.planning.plan import read_plan, with_settings
from conresnet_training.runs.run import Run, start_run
from conresnet_training.training import WeightAverage
from conresnet_training.training.trainer import fit
from training.broken_runs import assert_same, checkpoint
from training.tiny_plan import write_tiny_plan


def averaged(decay, values):
    """The average after the weight had each of the values in turn."""
    network = nn.Linear(1, 1)
    average = WeightAverage(network, decay)
    for value in values:
        nn.init.constant_(network.weight, value)
        average.update(network)
    return average.module.weight.item()


def test_initial_weights_are_soon_forgotten():
    begun = [100.0] + [1.0] * 200
    assert abs(averaged(0.998, begun) - 1) < 0.01 < abs(100 * 0.998**200)
    assert averaged(0.998, [5.0, 5.0]) == 5


def test_decay_reaches_the_configured_value():
    settled = [0.0] * 2000
    assert abs(averaged(0.9, [*settled, 1.0]) - 0.1) < 1e-6
    assert abs(averaged(0.99, [*settled, 1.0, 1.0]) - (1 - 0.99**2)) < 1e-6


@pytest.mark.parametrize("kept", [0.8, 0])
def test_toggling_the_average_does_not_affect_training(data_set, tmp_path, kept):
    plan = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml", f"training.weight_average={kept}"))
    runs = {decay: start_run(plan, tmp_path / str(decay), 0) for decay in (0.8, 0)}
    for decay, run in runs.items():
        fit(run, 2)
        fit(Run(run.folder, with_settings(plan, [f"training.weight_average={decay}"]), 0), 4)
    averaged, plain = (checkpoint(run.folder) for run in runs.values())
    assert_same(averaged["training_state_dict"], plain["state_dict"])
    assert_same(averaged["optimizer"], plain["optimizer"])
    assert "training_state_dict" not in plain
    assert any(not torch.equal(averaged["state_dict"][name], plain["state_dict"][name]) for name in plain["state_dict"])
