"""How many processes make samples, by the computer and by those that train on it."""

import os
import socket
from types import SimpleNamespace

import pytest
import torch

from conresnet_training.data.samples import JOBS_VARIABLE, sample_processes
from conresnet_training.planning.plan import read_plan
from conresnet_training.runs.run import start_run
from conresnet_training.training import loop
from conresnet_training.training.trainer import fit
from training.tiny_plan import write_tiny_plan


def training_on(device: str, processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), world_size=processes)


@pytest.fixture
def cores(monkeypatch):
    """Sets the cores that this process may use."""
    return lambda own: monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(own), raising=False)


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 1), (6, 5), (9, 8), (64, 8)])
def test_beside_a_gpu_each_has_a_core_and_one_is_left(cores, count, workers):
    cores(range(count))
    assert sample_processes(None, training_on("cuda")) == workers
    assert sample_processes(None, training_on("cpu")) == 0
    assert sample_processes(3, training_on("cuda")) == 3


def test_folds_that_are_trained_beside_each_other_share_the_cores(cores, monkeypatch):
    cores(range(16))
    monkeypatch.setenv(JOBS_VARIABLE, "4")
    assert sample_processes(None, training_on("cuda")) == 3


def test_all_cores_count_where_a_process_cannot_tell_its_own(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert sample_processes(None, training_on("mps")) == 3


def test_gpus_share_the_cores_unless_each_has_its_own(cores, monkeypatch):
    cores(range(16))
    here, other, last = (socket.gethostname(), tuple(range(16))), ("other", tuple(range(16))), tuple(range(16, 32))

    def gather(places, own):
        assert own == here
        places[:] = [own, *others]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for others, workers in (([here, other, other], 7), ([here] * 3, 3), ([(here[0], last)], 8)):
        assert sample_processes(None, training_on("cuda", 1 + len(others))) == workers


def test_run_makes_its_samples_with_them(data_set, tmp_path, monkeypatch):
    plan = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.workers=null"))
    seen = []
    original = loop.DataLoader
    monkeypatch.setattr(loop, "sample_processes", lambda planned, fabric: seen.append(planned) or 1)
    monkeypatch.setattr(
        loop, "DataLoader", lambda *given, **options: seen.append(options["num_workers"]) or original(*given, **options)
    )
    fit(start_run(plan, tmp_path / "run", 0), 2)
    assert seen == [None, 1]
