"""Commands that segment lists of cases, and a Dask scheduler for them."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conresnet.cli import cohort
from conresnet.cli.cases import ListedCase
from conresnet.package.store import SHIPPED_FOLDER, read_model
from conresnet.request import SegmentOptions

IMAGES = ("hippocampus_004", "hippocampus_123", "hippocampus_210")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "conresnet", "segment", "--model", "hippocampus", *map(str, arguments)]


def table(output: Path) -> dict[str, dict[str, str]]:
    with (output / "cohort.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def run_cohort(names: list[str], output: Path, **options: object) -> str:
    """The code of the UserError that ends the run, or the name of another exception."""
    # A file that exists, because cases without their images are not passed to any worker.
    cases = [ListedCase(name, (Path(__file__),), "") for name in names]
    options = {"case_list": Path(__file__), "overwrite": False, "jobs": 0, "scheduler": "", **options}
    with pytest.raises(Exception) as caught:
        cohort.segment_cohort(cases, read_model(SHIPPED_FOLDER / "hippocampus"), SegmentOptions(), output, **options)
    return getattr(caught.value, "code", type(caught.value).__name__)


@contextlib.contextmanager
def running_scheduler(folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A scheduler with two workers, as on a cluster; yields its process and address."""
    from distributed import Client

    place = folder / "scheduler.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": folder}
    dask = [sys.executable, "-m", "dask"]
    first = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", place], **quiet
    )
    options = ["--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0", "--scheduler-file", place]
    second = subprocess.Popen([*dask, "worker", *options], **quiet)
    try:
        with Client(scheduler_file=str(place), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
            address = client.scheduler.addr
        yield first, address
    finally:
        # Stop the workers first: otherwise they would wait for a scheduler that no longer exists.
        for process in (second, first):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
