"""How a plan trains: on which samples."""

import pytest

from conresnet_training.data_sets import read_data_set
from conresnet_training.memory_needs import Budget
from conresnet_training.planning import plan_with_reasons
from training.data_folders import decathlon


@pytest.fixture
def planned(tmp_path):
    """A plan, and what is said of each of its lines."""
    folder = decathlon(tmp_path / "set")
    plan, reasons = plan_with_reasons(read_data_set(folder), folder, Budget(64 * 2**30, (16, 8), "plenty"))
    return plan, {reason.what: f"{reason.value}: {reason.why}" for reason in reasons}


def test_rare_segments_are_drawn_as_often_as_others(planned):
    plan, said = planned
    assert plan.training.balanced_segments
    assert said["samples"] == "50% around segments: each segment as often, however small it is"
