"""Workers in separate processes with their own temporary folders, and the Slicer module's side in the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_plugin import slicer_app, slicer_session
from worker.client import FAKE, Client, running
from worker.engine_driver import Driver

__all__ = ["slicer_app", "slicer_session"]


@pytest.fixture
def client() -> Iterator[Client]:
    """A worker with the stand-in engine, ready for requests."""
    with running(*FAKE) as client:
        client.hello = client.ready()
        yield client


@pytest.fixture
def image() -> np.ndarray:
    """Twelve slices of noise."""
    return np.random.default_rng(1).normal(size=(12, 9, 7)).astype(np.float32)


@pytest.fixture
def driver(slicer_app: object, tmp_path: Path) -> Iterator[Driver]:
    """The module's side, with the stand-in engine; checks that no processes or files remain."""
    folder = tmp_path / "temporary ä"
    folder.mkdir()
    driver = Driver(slicer_app, folder)
    yield driver
    driver.engine.stop(wait=True)
    assert driver.children() == []
    assert driver.sessions() == []
