"""Fixtures for the tests of ConRes Segmentation in the stand-in application, most with a real engine process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from conresnet.package.store import install_model
from module.panel_driver import PanelDriver
from pytest_plugin import no_main_window, slicer_app, slicer_session
from worker.models import make_model

__all__ = ["no_main_window", "slicer_app", "slicer_session"]


@pytest.fixture
def panel(slicer_app: object, repository: Path, request: pytest.FixtureRequest) -> Iterator[PanelDriver]:
    """The open panel with the model *hippocampus*; the module is unloaded afterwards, which ends its engine.

    Opening the panel does not start the engine, because few tests need it. In test files that use ``warm_engine``, the
    next test reuses the engine process, because it starts slowly.
    """
    kept = _our_modules()
    slicer_app.userSettings().setValue("ConResSegmentation/StartEngine", False)
    slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py")
    driver = PanelDriver(slicer_app)
    driver.open()
    driver.choose_model("hippocampus")
    engines = request.getfixturevalue("warm_engine") if "warm_engine" in request.fixturenames else None
    if engines:
        _attach_process(engines.pop(), driver.widget.logic.engine)
    yield driver
    if engines is not None and (connection := _detach_process(driver.widget.logic.engine)):
        engines.append(connection)
    slicer_app.moduleManager().unload("ConResSegmentation")
    # Reloading the module imports everything again, but other tests still use the earlier classes.
    for name in _our_modules():
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture(scope="module")
def warm_engine() -> Iterator[list]:
    """The idle engine process of the previous test: a list of at most one EngineConnection."""
    engines: list = []
    yield engines
    for connection in engines:
        connection.close()
        connection.waitUntilClosed()


def _attach_process(connection: object, engine: object) -> None:
    """Let an engine use a running process."""
    connection._onMessage, connection._onEnded = engine._onMessage, engine._onEnded
    engine._connection, engine._lastId = connection, connection.lastId


def _detach_process(engine: object) -> object:
    """Detach an engine's process from it and return it; None if it is not running or not idle."""
    connection = engine._connection
    if connection is None or not connection.isRunning or not connection.hello or engine._current or engine._waiting:
        return None
    connection.lastId, engine._connection = engine._lastId, None
    return connection


def _our_modules() -> dict[str, ModuleType]:
    return {
        name: module
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("ConResSegmentationLib", "conresnet")
    }


@pytest.fixture
def volume(slicer_app: object, hippocampus_image: Path) -> object:
    """A T1 crop around a hippocampus, loaded into the scene."""
    import slicer

    return slicer.util.loadVolume(str(hippocampus_image))


@pytest.fixture
def head(slicer_app: object, head_image: Path) -> object:
    """A whole head, loaded into the scene."""
    import slicer

    return slicer.util.loadVolume(str(head_image))


@pytest.fixture
def many_windows(panel: PanelDriver, tmp_path: Path) -> Iterator[object]:
    """A volume that takes a while to segment, because it has many windows of the chosen small model.

    Afterwards, the fixture waits until the engine is idle, so that the next test can use it.
    """
    import slicer

    install_model(make_model(tmp_path))
    panel.widget.modelPanel.refresh()
    panel.choose(panel.ui.modelSelector, "An organ")
    array = np.random.default_rng(0).normal(100, 20, (112, 48, 48)).astype(np.float32)
    yield slicer.util.addVolumeFromArray(array, name="T1 with many windows")
    panel.wait(lambda: not panel.widget.logic.engine.isSegmenting)


@pytest.fixture
def labels(volume: object, hippocampus_label: Path) -> np.ndarray:
    """The expert's labels for the crop."""
    import slicer

    node = slicer.util.loadVolume(str(hippocampus_label))
    array = slicer.util.arrayFromVolume(node).astype(np.uint8)
    slicer.mrmlScene.RemoveNode(node)
    return array


@pytest.fixture
def result(volume: object, labels: np.ndarray) -> object:
    """A result with two segments, as the module adds it to the scene."""
    import slicer

    from ConResSegmentationLib import ResultSegmentation
    from module.result_cases import SEGMENTS, fill, origin_of

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
    made = ResultSegmentation.makeSegments(labels, SEGMENTS, volume)
    fill(node, made, volume)
    origin_of(volume).sign(node)
    return node
