"""Fixtures for the tests of ConRes Training in the stand-in application, most with real processes of the backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pytest_plugin import no_main_window, slicer_app, slicer_session
from training.conftest import data_set
from training_module.training_driver import TrainingDriver

__all__ = ["data_set", "no_main_window", "slicer_app", "slicer_session"]

OURS = ("ConResSegmentationLib", "ConResTrainingLib", "conresnet", "conresnet_training")


@pytest.fixture
def training(slicer_app: object, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """The open panel with nothing chosen; the module is unloaded afterwards."""
    # The folder in which the module would create its environment.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user data"))
    kept = _our_modules()
    slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py")
    driver = TrainingDriver(slicer_app, repository / "ConResTraining" / "ConResTraining.py")
    driver.load()
    yield driver
    driver.end_training()
    for name in ("ConResTraining", "ConResSegmentation"):
        slicer_app.moduleManager().unload(name)
    # Reloading the module imports everything again, but other tests still use the earlier classes.
    for name in _our_modules():
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def here(training: TrainingDriver) -> TrainingDriver:
    """The panel with this Python chosen for training."""
    training.choose_python(sys.executable)
    return training


def _our_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] in OURS}
