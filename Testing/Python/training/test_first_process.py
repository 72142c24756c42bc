"""Processes started by torchrun or SLURM: the others wait while the first one prepares, however long it takes."""

import os
import socket
import subprocess
import sys

import pytest

from conresnet_training.planning.plan import read_plan
from conresnet_training.runs import PROGRESS_FILE, read_progress
from conresnet_training.runs.run import start_run
from training.commands import message_of
from training.tiny_plan import write_tiny_plan

# They take long to start, and the first one waits for them.
pytestmark = pytest.mark.slow

# Collective calls may take 10 s here instead of half an hour; the first case takes longer, or cannot be prepared.
PROGRAM = """
import datetime, sys, time
from pathlib import Path
from lightning_fabric.strategies import DDPStrategy
from conresnet.errors import UserError
from conresnet_training.cli import main
from conresnet_training.training import trainer

begin, prepare = DDPStrategy.__init__, trainer.prepare_case
folder, rank, fails = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fails"

def begin_with_little_patience(self, *arguments, **options):
    begin(self, *arguments, **options, timeout=datetime.timedelta(seconds=10))

def prepare_slowly(*arguments, **options):
    if rank == "0" and not (folder / "slept").exists():
        (folder / "slept").touch()
        if fails:
            raise UserError("case-file-missing", case="case_0", path="image.nii.gz")
        time.sleep(15)
    return prepare(*arguments, **options)

DDPStrategy.__init__, trainer.prepare_case = begin_with_little_patience, prepare_slowly
(folder / rank).touch()
while not ((folder / "0").exists() and (folder / "1").exists()):
    time.sleep(0.1)
sys.argv = ["conresnet_training", "resume", str(folder / "run"), "--devices", "2"]
sys.exit(main())
"""


def launched(folder, how):
    """Two processes working on a run, as started by torchrun: (status, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, folder, rank, how],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.fixture
def run(data_set, tmp_path):
    """A run of four steps that has not started yet."""
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.steps=4", "model.inference.window=[8, 8, 8]")
    return start_run(read_plan(plan), tmp_path / "run", 0)


def test_preparation_may_exceed_the_timeout_of_a_step(run, tmp_path):
    (first, error), (second, other_error) = launched(tmp_path, "sleeps")
    assert first == 0, error
    assert second == 0, other_error
    progress = read_progress(run.folder / PROGRESS_FILE)
    assert progress.state == "finished" and progress.started["devices"] == 2


def test_failed_preparation_ends_all_processes_with_one_error(run, tmp_path):
    (first, error), (second, other_error) = launched(tmp_path, "fails")
    assert first == 2 and message_of("case-file-missing", case="case_0", path="image.nii.gz") in error
    assert second == 0 and "Traceback" not in other_error, other_error
    assert read_progress(run.folder / PROGRESS_FILE).failed["code"] == "case-file-missing"
