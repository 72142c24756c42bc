"""Pytest fixtures for the stand-in application: one per process, with an empty scene for each test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slicer_host import dialogs, packaging, slot_errors, start_application


@pytest.fixture(scope="session")
def slicer_session() -> object:
    """The running application; use ``slicer_app``, which also cleans up."""
    app = start_application()
    yield app
    app.quit_host()


@pytest.fixture
def slicer_app(slicer_session: object) -> object:
    """The application with an empty scene. A test fails if a slot or observer raised or an answer is left."""
    import slicer

    slicer.mrmlScene.Clear(0)
    slicer_session.processEvents()
    dialogs.clear()
    slot_errors.clear()
    packaging.requests.clear()
    slicer_session.extensionsManagerModel().requests.clear()
    slicer_session.extensionsManagerModel().installed.clear()
    slicer_session.settings().clear()
    slicer_session.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    # Views of earlier layouts are kept, and closing the scene keeps their nodes, which are singletons.
    for node in slicer.util.getNodesByClass("vtkMRMLPlotViewNode"):
        slicer.mrmlScene.RemoveNode(node)
    yield slicer_session
    slicer_session.moduleManager().select("")
    slicer_session.processEvents()
    errors, left = list(slot_errors), list(dialogs.answers)
    dialogs.clear()
    slot_errors.clear()
    assert not errors, "Exceptions in slots or observers:\n" + "\n".join(errors)
    assert not left, f"Answers that no dialog asked for: {left}"


@pytest.fixture
def no_main_window(slicer_app: object, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that removes the main window and the views, as with Slicer's option --no-main-window.

    Slicer's generic module tests run this way. ``slicer.app.layoutManager()`` (qSlicerApplication.cxx) and
    ``slicer.util.mainWindow()`` are then None.
    """

    def remove() -> None:
        monkeypatch.setattr(slicer_app, "_layout", None)
        monkeypatch.setattr(slicer_app._window, "objectName", "")

    return remove
