"""Runs that are killed at chosen moments by killed_at.py, and bitwise comparison of their results."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from conresnet_training.runs import PROGRESS_FILE, read_progress


@contextmanager
def killing() -> Iterator[Callable[[list[list[str]]], list[tuple[int, str]]]]:
    """Yield a function that runs commands, each with its moment, by killed_at.py and returns their (status, moment)."""
    driver = [sys.executable, Path(__file__).with_name("killed_at.py")]
    pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(driver, stdin=pipe, stdout=pipe, text=True, env=environment) as process:

        def run_all(commands: list[list[str]]) -> list[tuple[int, str]]:
            ends = []
            for command in commands:
                process.stdin.write(json.dumps(command) + "\n")
                process.stdin.flush()
                ends.append((int(process.stdout.readline()), command[0]))
            return ends

        yield run_all


def checkpoint(run: Path, name: str = "last") -> dict:
    """A run's checkpoint, "last" or "best"."""
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(one, other, place=""):
    """Compare nested values bitwise."""
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
    """Data of the curves, without values that depend on the time."""
    progress = read_progress(run / PROGRESS_FILE)
    passing = ("event", "time", "seconds_left", "samples_per_second", "gpu_memory")
    points = [{key: value for key, value in point.items() if key not in passing} for point in progress.points]
    return points, [(event["step"], event["dice"], event["best"]) for event in progress.validations]
