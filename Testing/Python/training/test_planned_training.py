"""How a plan trains: for how long, on which samples, and with which weights in the end."""

import pytest

from conresnet_training.data import read_data_set
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.planner import make_plan, planned_steps
from training.data_folders import decathlon


@pytest.mark.parametrize(("cases", "steps"), [(2, 50_000), (1251, 50_000), (2000, 60_000), (20_000, 250_000)])
def test_a_gpu_makes_more_steps(cases, steps):
    """Two thousand steps end long before a network has learned what it can, and take a GPU little time."""
    made, why = planned_steps(cases, True, 1)
    assert made == steps and ("on a GPU" in why) == (steps != 60_000)
    assert planned_steps(cases, True, 2)[1] == f"{why}, in each of 2 stages"


@pytest.mark.parametrize(
    ("cases", "steps", "why"),
    [
        (3, 2000, "the minimum; 30 per case would be 90"),
        (100, 3000, "30 per case"),
        (2000, 30_000, "the maximum; 30 per case would be 60000"),
    ],
)
def test_steps_are_explained_by_their_bound_if_it_decides(cases, steps, why):
    assert planned_steps(cases, False, 1) == (steps, why)


@pytest.fixture
def planned(tmp_path):
    """A plan for a GPU, and what is said of each of its lines."""
    folder = decathlon(tmp_path / "set")
    plan, reasons = make_plan(read_data_set(folder), folder, Budget(64 * 2**30, (16, 8), "plenty", is_gpu=True))
    return plan, {reason.what: f"{reason.value}: {reason.why}" for reason in reasons}


def test_rare_segments_are_drawn_as_often_as_others(planned):
    plan, said = planned
    assert plan.training.balanced_segments
    assert said["samples"] == "50% around segments: all segments equally often, however small"


def test_weights_are_averaged_and_a_gpus_steps_explained(planned):
    plan, said = planned
    assert (plan.training.weight_average, plan.training.steps) == (0.999, 50_000)
    assert said["averaging"].startswith("0.999: ") and "nnU-Net runs 250,000" in said["steps"]
    assert Budget.given(8).is_gpu
