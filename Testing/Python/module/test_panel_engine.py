"""The engine's Python and processes as the panel manages them, and the self-test."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import slicer

from module.panel_driver import PanelDriver


def children() -> set[int]:
    """IDs of this process's children and their children, without image readers and Python's resource tracker."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        # A process that has ended in the meantime has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            others = ("images.files import serve", "multiprocessing.resource_tracker")
            if not any(name in word for word in child.cmdline() for name in others):
                found.add(child.pid)
    return found


def open_advanced(panel: PanelDriver) -> None:
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "Ready: all required packages are installed.")


def test_devices_are_listed_when_advanced_section_is_opened(panel: PanelDriver) -> None:
    selector = panel.ui.deviceSelector
    assert [selector.itemText(n) for n in range(selector.count)] == ["Automatic"]
    open_advanced(panel)
    panel.wait(lambda: selector.count > 1)
    selector.setCurrentIndex(1)
    selector.activated.emit(1)
    assert panel.choices.device == "cpu"


def test_another_python_is_remembered_and_a_missing_one_is_reported(
    panel: PanelDriver, volume: object, tmp_path: Path
) -> None:
    panel.ui.pythonPathEdit.currentPath = sys.executable
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "Ready: all required packages are installed.")
    assert slicer.util.settingsValue("ConResSegmentation/EnginePython", "") == sys.executable
    assert panel.segment() is not None
    panel.ui.pythonPathEdit.currentPath = str(tmp_path / "no python")
    panel.wait(lambda: "does not exist" in panel.ui.engineStatusLabel.text)
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "does not exist" in panel.status
    assert not panel.ui.advancedCollapsibleButton.collapsed


def test_clearing_the_path_restores_slicers_python(panel: PanelDriver) -> None:
    panel.ui.pythonPathEdit.currentPath = "/no/python"
    panel.wait(lambda: "does not exist" in panel.ui.engineStatusLabel.text)
    panel.ui.pythonPathEdit.currentPath = ""
    panel.wait(lambda: "Ready" in panel.ui.engineStatusLabel.text)
    assert panel.widget.logic.enginePython.isSlicers
    assert slicer.util.settingsValue("ConResSegmentation/EnginePython", "") == ""
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "Ready: all required packages are installed.")


def test_typing_the_path_of_another_python_does_not_stop_a_run(
    panel: PanelDriver, volume: object, tmp_path: Path
) -> None:
    panel.click_segment()
    panel.wait_until_computing()
    path = str(tmp_path / "no python")
    for end in range(len(path) - 3, len(path) + 1):
        panel.ui.pythonPathEdit.currentPath = path[:end]
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in")
    panel.segment()
    assert "does not exist" in panel.status, "the next run uses the other Python"


def test_typed_path_is_used_after_editing_and_only_if_it_is_a_python(panel: PanelDriver, tmp_path: Path) -> None:
    # A program whose path is the beginning of the typed path.
    (tmp_path / "clean").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/ran"\n', encoding="utf-8")
    (tmp_path / "clean").chmod(0o755)
    python = tmp_path / "clean-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n', encoding="utf-8")
    python.chmod(0o755)
    edit = panel.ui.pythonPathEdit.comboBox().lineEdit()
    for end in range(len(str(tmp_path)), len(str(python)) + 1):
        edit.text = str(python)[:end]
        panel.settle()
    assert slicer.util.settingsValue("ConResSegmentation/EnginePython", "") == "", "editing is not finished"
    edit.editingFinished.emit()
    panel.wait(lambda: "does not run as a Python" in panel.ui.engineStatusLabel.text)
    assert (tmp_path / "asked").exists() and not (tmp_path / "ran").exists()
    edit.text = str(tmp_path / "clean")
    panel.wait(lambda: "does not look like a Python" in panel.ui.engineStatusLabel.text)
    assert not (tmp_path / "ran").exists()


def test_death_of_the_engine_is_shown_until_it_is_ready_again(panel: PanelDriver, volume: object) -> None:
    open_advanced(panel)
    panel.wait(lambda: panel.ui.deviceSelector.count > 1)
    ready = panel.ui.engineStatusLabel.text
    psutil.Process(panel.widget.logic.engine._connection.hello["pid"]).kill()
    panel.wait(lambda: panel.ui.engineStatusLabel.text != ready)
    assert not panel.widget.logic.engine.isRunning
    assert panel.segment() is not None
    assert panel.ui.engineStatusLabel.text == ready


def test_cancel_works_before_the_engine_has_started(panel: PanelDriver, volume: object) -> None:
    panel.click_segment()
    panel.ui.cancelButton.click()
    assert panel.status == "Canceled."
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "Ready: all required packages are installed.")
    # Once the devices are listed, a request sent along with theirs would have started.
    panel.wait(lambda: panel.ui.deviceSelector.count > 1)
    panel.settle()
    assert panel.status == "Canceled." and not panel.widget.runPanel.isRunning
    assert not panel.widget.logic.engine.isSegmenting


def test_memory_can_be_freed_only_while_the_engine_is_idle(
    panel: PanelDriver, volume: object, many_windows: object
) -> None:
    selector = panel.widget.channels.combos[0]
    selector.setCurrentNode(volume)
    panel.segment()
    assert children()
    panel.ui.freeMemoryButton.click()
    panel.wait(lambda: not children())
    selector.setCurrentNode(many_windows)
    panel.click_segment()
    panel.wait_until_computing()
    panel.ui.freeMemoryButton.click()
    assert children() and panel.widget.runPanel.isRunning
    panel.ui.cancelButton.click()
    selector.setCurrentNode(volume)
    assert panel.segment() is not None


@pytest.mark.parametrize("value", [["a", "b"], None, 5])
def test_invalid_values_in_the_settings_are_ignored(slicer_app: object, repository: Path, value: object) -> None:
    for key in ("EnginePython", "EngineServer", "EngineServerPython", "StartEngine", "Model", "Seconds/hippocampus"):
        slicer_app.userSettings().setValue(f"ConResSegmentation/{key}", value)
    slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py")
    panel = PanelDriver(slicer_app)
    panel.open()
    expected = "5" if value == 5 else ""
    assert panel.ui.pythonPathEdit.currentPath == panel.ui.serverEdit.text == expected and panel.choices.model
    assert sys.modules["ConResSegmentation"].Gallery.cards([])
    slicer_app.moduleManager().unload("ConResSegmentation")


def test_opening_the_module_starts_the_engine_in_the_background(panel: PanelDriver, volume: object) -> None:
    engine = panel.widget.logic.engine
    panel.leave()
    assert not engine.hasProcess and not children(), "turned off by the user"
    panel.ui.startEngineCheckBox.click()
    panel.settle()
    assert not engine.hasProcess and not children(), "the module is not open"
    panel.open()
    # The panel can be used while the engine is being checked and started.
    assert not engine.isRunning and panel.ui.applyButton.enabled
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in"), panel.status
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert engine.isRunning, "closing the scene does not end it"
    panel.leave()
    panel.settle()
    assert engine.isRunning, "it is kept because it has a model in memory"
    panel.ui.freeMemoryButton.click()
    panel.wait(lambda: not children())
    panel.open()
    panel.settle()
    assert not engine.hasProcess and not children(), "the user freed its memory"


def test_unused_engine_ends_when_the_module_is_left(panel: PanelDriver) -> None:
    engine = panel.widget.logic.engine
    panel.ui.startEngineCheckBox.click()
    panel.leave()
    panel.open()
    panel.wait(lambda: engine.isRunning)
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert engine.isRunning and children()
    panel.leave()
    panel.wait(lambda: not children())
    # This is also true while its Python is still being checked.
    panel.open()
    panel.leave()
    panel.wait(lambda: not children())
    panel.settle()
    assert not engine.hasProcess and not children()
    panel.open()
    panel.wait(lambda: engine.isRunning)
    panel.widget.cleanup()
    assert not engine.isRunning and not children()


def test_engine_ends_with_the_module(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    engine = panel.widget.logic.engine
    panel.widget.cleanup()
    assert not engine.isRunning


def test_no_engine_is_started_after_the_panel_is_closed(panel: PanelDriver, volume: object) -> None:
    others = children()
    panel.click_segment()
    assert children() - others, "the engine's Python is being checked"
    panel.widget.cleanup()
    panel.wait(lambda: not children() - others)
    panel.settle()
    assert not children() - others


def test_self_test_passes(panel: PanelDriver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        slicer.selfTests["ConResSegmentation"]()
    assert "Self-test: segmented with" in caplog.text
    assert "NOT TESTED" not in caplog.text


def test_slicers_process_never_imports_torch(repository: Path) -> None:
    program = """
import sys
for name in ("torch", "safetensors", "monai", "lightning_fabric", "nibabel", "click"):
    sys.modules[name] = None
from slicer_host import start_application
import slicer
app = start_application()
module = app.moduleManager().load(sys.argv[1])
assert "SimpleITK" not in sys.modules, "importing it would delay the start of Slicer"
module.widgetRepresentation()
slicer.util.selectModule("ConResSegmentation")
print(module.widgetRepresentation().self().ui.modelSelector.findData("hippocampus"))
app.quit_host()
"""
    module = repository / "ConResSegmentation" / "ConResSegmentation.py"
    host = repository / "Testing" / "SlicerHost"
    run = subprocess.run(
        [sys.executable, "-c", program, str(module)], cwd=host, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) >= 0, "the model is not listed"
    assert "Traceback" not in run.stderr
