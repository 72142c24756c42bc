"""Installing what the engine lacks, at the click on Segment: what fails, what only seems to, and what is declined."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import qt
import slicer

from module.panel_driver import PanelDriver
from slicer_host import dialogs

WHOLE = "Has all that the engine needs."


def lacking(panel: PanelDriver, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Have the engine's Python lack packages: what is taken out of the returned list is installed."""
    engine_python = sys.modules["ConResSegmentationLib.EnginePython"]
    missing = list(names)

    def check(on_checked: object) -> None:
        problem = "The engine needs packages." if missing else ""
        found = engine_python.EngineCheck(tuple(missing), problem, bool(missing))
        qt.QTimer.singleShot(0, lambda: on_checked(found))

    monkeypatch.setattr(panel.widget.logic.enginePython, "check", check)
    return missing


def torch_extension(monkeypatch: pytest.MonkeyPatch, install: Callable[[], None]) -> None:
    """Have the PyTorch extension there, which imports torch when it has installed it (its PyTorchUtils.py)."""
    logic = types.SimpleNamespace(installTorch=lambda **_options: install())
    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = lambda: logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)


def end(panel: PanelDriver) -> None:
    """Click Segment and wait for the end; then the panel must be ready for the next click."""
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.ui.applyButton.enabled and not panel.ui.cancelButton.enabled


def test_a_failed_installation_ends_the_run(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_requirements: str) -> None:
        raise subprocess.CalledProcessError(1, ["PythonSlicer", "-m", "pip", "install"])

    lacking(panel, monkeypatch, "safetensors")
    monkeypatch.setattr(slicer.util, "pip_install", fail)
    dialogs.answer("OK")
    end(panel)
    assert panel.status == panel.ui.engineStatusLabel.text == "The engine needs packages."
    assert len(dialogs.shown) == 2 and "The installation failed." in dialogs.shown[1].text
    assert "CalledProcessError" in dialogs.shown[1].details


def test_who_declines_is_asked_once(panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(panel, monkeypatch, "safetensors")
    dialogs.answer("Cancel")
    end(panel)
    assert panel.status == "The engine needs packages." and len(dialogs.shown) == 1


def test_torch_that_slicer_itself_cannot_import_is_there_for_the_engine(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = lacking(panel, monkeypatch, "torch", "safetensors")
    monkeypatch.setattr(slicer.util, "pip_install", lambda _requirements: missing.remove("safetensors"))
    dialogs.answer("OK")

    def install() -> None:
        missing.remove("torch")
        raise ImportError("libgomp.so.1: cannot allocate memory in static TLS block")

    torch_extension(monkeypatch, install)
    end(panel)
    assert panel.status.startswith("Done in") and len(dialogs.shown) == 1


def test_torch_that_is_not_there_afterwards_has_failed(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(panel, monkeypatch, "torch")
    monkeypatch.setattr(sys.modules["ConResSegmentationLib.EnginePython"], "find_packages", dict)
    torch_extension(monkeypatch, lambda: 1 / 0)
    end(panel)
    assert panel.status == "The engine needs packages."
    assert [shown.text.splitlines()[0] for shown in dialogs.shown] == ["The installation failed."]


def test_the_button_installs_too(panel: PanelDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = lacking(panel, monkeypatch, "safetensors")
    monkeypatch.setattr(slicer.util, "pip_install", lambda _requirements: missing.clear())
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "The engine needs packages.")
    assert not panel.ui.installEngineButton.isHidden()
    dialogs.answer("OK")
    panel.ui.installEngineButton.click()
    panel.wait(lambda: panel.ui.engineStatusLabel.text == WHOLE)
    assert panel.ui.installEngineButton.isHidden()
    panel.wait(lambda: panel.ui.deviceSelector.count > 1)


def test_a_fault_at_the_click_ends_the_run(panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel.widget.runControl, "_task", lambda: 1 / 0)
    end(panel)
    assert "could not be started" in panel.status and "ZeroDivisionError" in panel.widget.runPanel.log
