"""Number of processes that make samples, depending on the computer and the training processes."""

import os
import socket
from types import SimpleNamespace

import pytest
import torch

from conresnet_training.planning.plan import read_plan
from conresnet_training.runs.run import start_run
from conresnet_training.training import loop
from conresnet_training.training.processes import sample_processes
from conresnet_training.training.stopping import JOBS_VARIABLE
from conresnet_training.training.trainer import fit
from training.tiny_plan import write_tiny_plan


def training_on(device: str, processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), world_size=processes)


@pytest.fixture
def cores(monkeypatch):
    """Set the cores that this process may use."""
    return lambda own: monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(own), raising=False)


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 1), (6, 5), (9, 8), (64, 8)])
def test_one_process_per_core_except_one_with_a_gpu(cores, count, workers):
    cores(range(count))
    assert sample_processes(None, training_on("cuda")) == workers
    assert sample_processes(None, training_on("cpu")) == 0
    assert sample_processes(3, training_on("cuda")) == 3


def test_parallel_folds_share_the_cores(cores, monkeypatch):
    cores(range(16))
    monkeypatch.setenv(JOBS_VARIABLE, "4")
    assert sample_processes(None, training_on("cuda")) == 3


def test_all_cores_count_if_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert sample_processes(None, training_on("mps")) == 3


def test_processes_on_one_computer_share_its_cores(cores, monkeypatch):
    cores(range(16))
    here, other, last = (socket.gethostname(), tuple(range(16))), ("other", tuple(range(16))), tuple(range(16, 32))

    def gather(places, own):
        assert own == here
        places[:] = [own, *other_places]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for other_places, workers in (([here, other, other], 7), ([here] * 3, 3), ([(here[0], last)], 8)):
        assert sample_processes(None, training_on("cuda", 1 + len(other_places))) == workers


def test_run_uses_these_processes_for_samples(data_set, tmp_path, monkeypatch):
    plan = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.workers=null"))
    counts = []
    original = loop.DataLoader
    monkeypatch.setattr(loop, "sample_processes", lambda planned, fabric: counts.append(planned) or 1)
    monkeypatch.setattr(
        loop,
        "DataLoader",
        lambda *given, **options: counts.append(options["num_workers"]) or original(*given, **options),
    )
    fit(start_run(plan, tmp_path / "run", 0), 2)
    assert counts == [None, 1]
