"""Benchmarks are scripts next to their own modules, not a package. Tests import them or run them as in a terminal."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from conresnet.networks import NETWORKS
from training.data_folders import decathlon
from training.tiny_plan import write_tiny_plan


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark's module by name."""
    monkeypatch.syspath_prepend(repository / "Testing" / "Benchmarks")
    return importlib.import_module


@pytest.fixture
def peers(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the peer networks, which are registered with the engine for the duration of the test."""
    module = benchmark("peer_networks")
    for name, network in module.PEERS.items():
        monkeypatch.setitem(NETWORKS.classes, name, network)
    return module


@pytest.fixture
def run_benchmark(repository: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a benchmark in a separate process with one thread; the test fails if it fails."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, repository / "Testing" / "Benchmarks" / script, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A Decathlon folder with three small cases that contain two boxes each."""
    return decathlon(tmp_path / "boxes")


@pytest.fixture
def plan_file(boxes: Path, tmp_path: Path) -> Path:
    """A plan for it with two steps, and windows that nnU-Net's rule halves twice."""
    settings = "training.steps=2", "training.steps_between_checkpoints=1", "model.inference.window=[24, 16, 16]"
    return write_tiny_plan(boxes, tmp_path / "plan.yaml", *settings)
