"""The module's tests run in the stand-in application, on real MRML, most of them with a real engine process."""

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
    """The module's panel, open, the model of the hippocampus chosen; unloaded afterwards, which ends its engine.

    The engine is not started by opening the panel, as few tests need it.
    In a test file that uses ``warm_engine``, the engine process is handed on to the next test: it starts slowly.
    """
    kept = _our_modules()
    slicer_app.userSettings().setValue("ConResSegmentation/StartEngine", False)
    slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py")
    driver = PanelDriver(slicer_app)
    driver.open()
    driver.choose_model("hippocampus")
    engines = request.getfixturevalue("warm_engine") if "warm_engine" in request.fixturenames else None
    if engines:
        _hand_over(engines.pop(), driver.widget.logic.engine)
    yield driver
    if engines is not None and (connection := _taken_from(driver.widget.logic.engine)):
        engines.append(connection)
    slicer_app.moduleManager().unload("ConResSegmentation")
    # A reload of the module imports everything anew, while other tests hold the classes of before.
    for name in _our_modules():
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture(scope="module")
def warm_engine() -> Iterator[list]:
    """The idle engine process of the test before, if it has one: a list of at most one EngineConnection."""
    engines: list = []
    yield engines
    for connection in engines:
        connection.close()
        connection.waitUntilClosed()


def _hand_over(connection: object, engine: object) -> None:
    """Give an engine a running process."""
    connection._onMessage, connection._onEnded = engine._onMessage, engine._onEnded
    engine._connection, engine._lastId = connection, connection.lastId


def _taken_from(engine: object) -> object:
    """Take the process away from an engine; None if it is not running or not idle."""
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
    """A volume of so many windows of a small model, which is chosen, that the engine is busy with it for a while.

    The engine is idle again afterwards, so that the next test can have it.
    """
    import slicer

    install_model(make_model(tmp_path))
    panel.widget.modelPanel.refresh()
    panel.choose(panel.ui.modelSelector, "An organ")
    array = np.random.default_rng(0).normal(100, 20, (112, 48, 48)).astype(np.float32)
    yield slicer.util.addVolumeFromArray(array, name="T1 of many windows")
    panel.wait(lambda: not panel.widget.logic.engine.isSegmenting)


@pytest.fixture
def labels(volume: object, hippocampus_label: Path) -> np.ndarray:
    """The expert's labels of the crop."""
    import slicer

    node = slicer.util.loadVolume(str(hippocampus_label))
    array = slicer.util.arrayFromVolume(node).astype(np.uint8)
    slicer.mrmlScene.RemoveNode(node)
    return array


@pytest.fixture
def result(volume: object, labels: np.ndarray) -> object:
    """A segmentation as the module makes it."""
    import slicer

    from ConResSegmentationLib import ResultSegmentation
    from module.result_cases import SEGMENTS, fill, origin_of

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
    made = ResultSegmentation.makeSegments(labels, SEGMENTS, volume)
    fill(node, made, volume)
    origin_of(volume).sign(node)
    return node
