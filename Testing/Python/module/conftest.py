"""The module's tests run in the stand-in application, on real MRML, most of them with a real engine process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from module.panel_driver import PanelDriver
from pytest_plugin import slicer_app, slicer_session

__all__ = ["slicer_app", "slicer_session"]


@pytest.fixture
def panel(slicer_app: object, repository: Path) -> Iterator[PanelDriver]:
    """The module's panel, open; unloaded afterwards, which ends its engine."""
    module = slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py")
    driver = PanelDriver(slicer_app, module)
    driver.open()
    yield driver
    slicer_app.moduleManager().unload("ConResSegmentation")


@pytest.fixture
def volume(slicer_app: object, hippocampus_image: Path) -> object:
    """A T1 crop around a hippocampus, loaded into the scene."""
    import slicer

    return slicer.util.loadVolume(str(hippocampus_image))


@pytest.fixture
def head(slicer_app: object, head_image: Path) -> object:
    """A whole head, loaded into the scene: without a region the engine is busy with it for a while."""
    import slicer

    return slicer.util.loadVolume(str(head_image))
