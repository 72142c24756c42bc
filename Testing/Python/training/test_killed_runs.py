"""Runs that are killed wherever it hurts, and end as if nothing had happened."""

import os
import signal

import pytest

from training.broken_runs import assert_same, checkpoint, curve, run_all
from training.tiny_plan import write_tiny_plan

# In an order in which each process comes further than the one before, or has to make the same again.
MOMENTS = [
    "while a case is prepared",
    "between two cases",
    "before the first step",
    "between gradient and step",
    "while the best checkpoint is written",
    "between best and last",
    "right after a checkpoint",
    "right after it was resumed",
    "right after a step",
    "during validation",
    "in a line of the progress file",
    "right after a checkpoint",
    "between best and last",
    "right after a checkpoint",
    "while it clears up",
]
FEW = [
    "between two cases",
    "between gradient and step",
    "between best and last",
    "during validation",
    "while it clears up",
]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")


@pytest.mark.parametrize("moments", [FEW, pytest.param(MOMENTS, marks=pytest.mark.slow)], ids=["few", "all"])
def test_run_that_is_killed_wherever_it_hurts_ends_as_an_unbroken_one(data_set, tmp_path, moments):
    """Weights, their average, optimizer, best and last, and curves; with dropout and all options that have state."""
    plan = write_tiny_plan(
        data_set,
        tmp_path / "plan.yaml",
        "training.boundary=true",
        "training.balanced_segments=true",
        "training.weight_average=0.9",
        "augmentation.elastic=0.2",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken run ü"
    first = ["train", str(plan), "--output", str(broken)]
    commands = [["never", "train", str(plan), "--output", str(whole)], [moments[0], *first]]
    commands += [[moment, "resume", str(broken)] for moment in [*moments[1:], "never"]]
    ends = run_all(commands)
    killed = [(-signal.SIGKILL, moment) for moment in moments]
    assert ends == [(0, "never"), *killed, (0, "never")]
    for name in ("last", "best"):
        assert_same(checkpoint(whole, name), checkpoint(broken, name))
    assert curve(whole) == curve(broken)
    assert len(curve(whole)[0]) == 2 and len(curve(whole)[1]) == 4
    assert not (broken / "prepared").exists() and not (broken / "running.json").exists()
    assert not list(broken.rglob(".part-*"))
