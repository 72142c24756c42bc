"""Runs that are killed wherever it hurts, and end as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conresnet_training.progress import PROGRESS_FILE, read_progress
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

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")


def run_all(commands: list[list[str]]) -> list[tuple[int, str]]:
    """(exit status, moment) of each command of killed_at.py."""
    arguments = [part for command in commands for part in (*command, "--")][:-1]
    driver = Path(__file__).with_name("killed_at.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, driver, *arguments], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split(" ", 1) for line in done.stdout.splitlines() if line.endswith(tuple([*MOMENTS, "never"]))]
    return [(int(status), moment) for status, moment in ends]


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(one, other, place=""):
    """Bitwise, however deep."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def curve(run: Path) -> tuple[list, list]:
    """What the curves show, as far as it does not tell of time."""
    progress = read_progress(run / PROGRESS_FILE)
    keys = ("step", "loss", "segmentation_loss", "residual_loss", "boundary_loss", "learning_rate")
    points = [tuple(point[key] for key in keys) for point in progress.points]
    return points, [(event["step"], event["dice"], event["best"]) for event in progress.validations]


def test_run_that_is_killed_wherever_it_hurts_ends_as_an_unbroken_one(data_set, tmp_path):
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
    commands = [["never", "train", str(plan), "--output", str(whole)], [MOMENTS[0], *first]]
    commands += [[moment, "resume", str(broken)] for moment in [*MOMENTS[1:], "never"]]
    ends = run_all(commands)
    killed = [(-signal.SIGKILL, moment) for moment in MOMENTS]
    assert ends == [(0, "never"), *killed, (0, "never")]
    for name in ("last", "best"):
        assert_same(checkpoint(whole, name), checkpoint(broken, name))
    assert curve(whole) == curve(broken)
    assert len(curve(whole)[0]) == 2 and len(curve(whole)[1]) == 4
    assert not (broken / "prepared").exists() and not (broken / "running.json").exists()
    assert not list(broken.rglob(".part-*"))
