"""How a plan trains: number of steps, samples, and final weights."""

import pytest

from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.planner import make_plan, planned_steps
from training.data_folders import decathlon


@pytest.mark.parametrize(("cases", "steps"), [(2, 50_000), (1251, 50_000), (2000, 60_000), (20_000, 250_000)])
def test_more_steps_are_planned_on_a_gpu(cases, steps):
    """After two thousand steps, a network is far from converged, and a GPU has spent little time."""
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
def test_steps_at_a_limit_are_explained_by_it(cases, steps, why):
    assert planned_steps(cases, False, 1) == (steps, why)


@pytest.fixture
def planned(tmp_path):
    """A plan for a GPU, and the explanation of each of its lines."""
    folder = decathlon(tmp_path / "set")
    plan, reasons = make_plan(read_data_set(folder), folder, Budget(64 * 2**30, (16, 8), "plenty", is_gpu=True))
    return plan, {reason.what: f"{reason.value}: {reason.why}" for reason in reasons}


def test_all_segments_are_sampled_equally_often(planned):
    plan, reasons = planned
    assert plan.training.balanced_segments
    assert reasons["samples"] == "50% around segments: all segments equally often, however small"


def test_weights_are_averaged_and_steps_on_gpu_explained(planned):
    plan, reasons = planned
    assert (plan.training.weight_average, plan.training.steps) == (0.999, 50_000)
    assert reasons["averaging"].startswith("0.999: ") and "nnU-Net runs 250,000" in reasons["steps"]
    assert Budget.given(8).is_gpu
