"""The pytest fixture ``slicer_app``: one stand-in application a process, a clean scene and record a test."""

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
    """The application with an empty scene. A test fails when a slot or an observer raised or an answer was left."""
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
    # The views of the layouts before stay, and a closed scene keeps their nodes, which are singletons.
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
    """A function that takes main window and views away, as Slicer starts with --no-main-window: for its generic tests.

    ``slicer.app.layoutManager()`` is None then (qSlicerApplication.cxx), and so is ``slicer.util.mainWindow()``.
    """

    def take_away() -> None:
        monkeypatch.setattr(slicer_app, "_layout", None)
        monkeypatch.setattr(slicer_app._window, "objectName", "")

    return take_away
