"""Runs that are killed at critical moments end with the same results as an uninterrupted run."""

import os
import signal

import pytest

from training.broken_runs import assert_same, checkpoint, curve, killing
from training.test_stages import STEPS, staged_plan
from training.tiny_plan import write_tiny_plan

# In an order in which each process gets further than the one before, or has to repeat the same steps.
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


@pytest.fixture(scope="module")
def run_all():
    """Run commands that are killed at given moments, as ``killing`` does."""
    with killing() as run_all:
        yield run_all


@pytest.mark.parametrize(
    ("moments", "steps", "between"),
    [(FEW, 6, 2), pytest.param(MOMENTS, 12, 3, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_run_killed_at_critical_moments_ends_like_an_uninterrupted_one(
    data_set, tmp_path, run_all, moments, steps, between
):
    """Weights, their average, optimizer, best and last, and curves; with dropout and all options that have state."""
    plan = write_tiny_plan(
        data_set,
        tmp_path / "plan.yaml",
        f"training.steps={steps}",
        f"training.steps_between_checkpoints={between}",
        "training.boundary=true",
        "training.balanced_segments=true",
        "training.weight_average=0.9",
        "augmentation.elastic=0.2",
    )
    complete_run, killed_run = tmp_path / "whole", tmp_path / "broken run ü"
    first = ["train", str(plan), "--output", str(killed_run)]
    commands = [["never", "train", str(plan), "--output", str(complete_run)], [moments[0], *first]]
    commands += [[moment, "resume", str(killed_run)] for moment in [*moments[1:], "never"]]
    ends = run_all(commands)
    killed = [(-signal.SIGKILL, moment) for moment in moments]
    assert ends == [(0, "never"), *killed, (0, "never")]
    for name in ("last", "best"):
        assert_same(checkpoint(complete_run, name), checkpoint(killed_run, name))
    assert curve(complete_run) == curve(killed_run)
    assert [point["step"] for point in curve(complete_run)[0]] == [*range(10, steps, 10), steps]
    assert [step for step, *_ in curve(complete_run)[1]] == [*range(between, steps + 1, between)]
    assert not (killed_run / "prepared").exists() and not (killed_run / "running.json").exists()
    assert not list(killed_run.rglob(".part-*"))


@pytest.mark.parametrize("system", ["coarse-to-fine", pytest.param("voxresnet-auto-context", marks=pytest.mark.slow)])
def test_run_interrupted_around_stage_boundary_ends_like_an_uninterrupted_one(data_set, tmp_path, run_all, system):
    """Killed before and after the boundary's checkpoint and within the second stage; stopped in both stages."""
    settings = "training.weight_average=0.8", "training.boundary=true", "training.foreground_share=0.25"
    plan = staged_plan(data_set, tmp_path, system, *settings)
    complete_run, killed_run = tmp_path / "whole", tmp_path / "broken"
    resume = ["resume", str(killed_run)]
    commands = [
        ["never", "train", str(plan), "--output", str(complete_run)],
        ["never", "train", str(plan), "--output", str(killed_run), "--max-steps", "2"],
        ["during validation", *resume],
        ["between best and last", *resume],
        ["right after a checkpoint", *resume],
        ["right after a step", *resume],
        ["never", *resume, "--max-steps", str(STEPS + 2)],
        ["between best and last", *resume],
        ["never", *resume],
    ]
    expected = [(0 if moment == "never" else -signal.SIGKILL, moment) for moment, *_ in commands]
    assert run_all(commands) == expected
    for name in ("last", "best"):
        assert_same(checkpoint(complete_run, name), checkpoint(killed_run, name))
    assert curve(complete_run) == curve(killed_run)
    assert [point["step"] for point in curve(complete_run)[0]] == [STEPS, 2 * STEPS]
