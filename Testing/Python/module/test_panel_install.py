"""Installing what the engine needs: in a process of its own, with progress and Cancel, and everything else disabled."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import psutil
import pytest
import slicer

from conresnet.needs import PACKAGES
from ConResSegmentationLib.Processes import callLater
from module.panel_driver import PanelDriver
from slicer_host import dialogs

NEEDED = "The engine needs packages."


class FakePip:
    """A PythonSlicer whose pip writes down what it is asked for.

    Args:
        folder: for the program and its files.
        panel: whose check of the engine's Python reports as missing what was not installed yet.
        missing: the packages that are missing at first.
    """

    def __init__(self, folder: Path, panel: PanelDriver, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
        self.calls, self.behavior, self._missing = folder / "calls", folder / "behavior", missing
        self.calls.touch()
        self.behavior.write_text("exit 0\n", encoding="utf-8")
        real = shutil.which("PythonSlicer")
        program = folder / "PythonSlicer"
        program.write_text(
            '#!/bin/sh\ncase "$2" in\n'
            f'pip|light_the_torch) echo "$@" >> "{self.calls}"; echo "Collecting it"; . "{self.behavior}";;\n'
            f'*) exec "{real}" "$@";;\nesac\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        self._library = sys.modules["ConResSegmentationLib.EnginePython"]
        monkeypatch.setattr(panel.widget.logic.enginePython, "check", self._check)

    def _check(self, on_checked: object) -> None:
        done = self.calls.read_text(encoding="utf-8")
        succeeds = "exit 0" in self.behavior.read_text(encoding="utf-8")
        missing = tuple(name for name in self._missing if not succeeds or f"{name}>=" not in done)
        found = self._library.EngineCheck(missing, NEEDED if missing else "", bool(missing))
        callLater(lambda: on_checked(found))

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def torch_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slicer's PyTorch extension is loaded."""
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.ModuleType("PyTorchUtils"))


def end(panel: PanelDriver) -> None:
    """Click Segment and wait for the end; then the panel must be ready for the next click."""
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.ui.applyButton.enabled and not panel.ui.cancelButton.enabled


def test_everything_missing_is_installed_by_processes_and_the_run_continues(
    panel: PanelDriver, volume: object, tmp_path: Path, torch_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch", "safetensors"), monkeypatch)
    dialogs.answer("OK")
    end(panel)
    assert panel.status.startswith("Done in") and len(dialogs.shown) == 1
    versions = [f"{name}>={PACKAGES[name]}" for name in ("torch", "safetensors")]
    assert all(version in dialogs.shown[0].text for version in versions)
    chooser, torch, rest = pip.asked
    assert chooser.startswith("-m pip install") and "light-the-torch" in chooser
    assert torch == f"-m light_the_torch install {versions[0]}", "it chooses the build for the graphics card"
    assert rest.startswith("-m pip install") and rest.endswith(f"--no-deps {versions[1]}")
    assert "Collecting it" in panel.ui.logTextEdit.toPlainText()


def test_a_failed_installation_ends_the_run_with_its_last_line(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    pip.behavior.write_text("echo 'No space left on device' >&2; exit 1\n", encoding="utf-8")
    dialogs.answer("OK")
    end(panel)
    assert panel.status == "The installation failed (No space left on device); see the log."


def test_a_user_who_declines_is_asked_once(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    dialogs.answer("Cancel")
    end(panel)
    assert panel.status == NEEDED and len(dialogs.shown) == 1 and pip.asked == []


def test_while_packages_are_installed_nothing_else_can_be_started_and_cancel_works(
    panel: PanelDriver, volume: object, tmp_path: Path, torch_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch",), monkeypatch)
    pip.behavior.write_text("exec sleep 60\n", encoding="utf-8")
    ui = panel.ui
    ui.advancedCollapsibleButton.collapsed = False
    panel.wait(lambda: ui.engineStatusLabel.text == NEEDED)
    dialogs.answer("OK")
    ui.installEngineButton.click()
    panel.wait(lambda: "Collecting it" in panel.status)
    assert ui.progressBar.maximum == 0 and ui.cancelButton.enabled
    for widget in (ui.applyButton, ui.installEngineButton, ui.pythonPathEdit, ui.freeMemoryButton, ui.modelSelector):
        assert not widget.isEnabled(), widget.objectName
    ui.installEngineButton.click()
    ui.applyButton.click()
    (child,) = [p for p in psutil.Process().children(recursive=True) if "sleep" in p.name()]
    ui.cancelButton.click()
    assert panel.status == "Canceled."
    panel.wait(lambda: not child.is_running() and ui.installEngineButton.isEnabled())
    assert len(pip.asked) == 1 and ui.modelSelector.isEnabled() and ui.applyButton.enabled


def test_closing_the_scene_stops_no_installation_but_what_waits_for_it(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    pip.behavior.write_text("sleep 1; exit 0\n", encoding="utf-8")
    dialogs.answer("OK")
    panel.click_segment()
    panel.wait(lambda: pip.asked)
    slicer.mrmlScene.Clear(0)
    assert panel.widget.runPanel.isRunning
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status == "The engine is ready." and len(pip.asked) == 1


def test_the_button_installs_without_segmenting(
    panel: PanelDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.wait(lambda: panel.ui.engineStatusLabel.text == NEEDED)
    assert not panel.ui.installEngineButton.isHidden()
    dialogs.answer("OK")
    panel.ui.installEngineButton.click()
    panel.wait(lambda: panel.status == "The engine is ready.")
    assert panel.ui.installEngineButton.isHidden()
    panel.wait(lambda: panel.ui.deviceSelector.count > 1)


def test_a_pytorch_extension_that_is_installed_but_disabled_is_not_offered_again_and_again(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch",), monkeypatch)
    panel.app.extensionsManagerModel().installed.append("PyTorch")
    end(panel)
    assert "enable it in the Extensions Manager" in panel.status and "another Engine Python" in panel.status
    assert pip.asked == [] and dialogs.shown == []


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_a_missing_pytorch_extension_is_offered(
    panel: PanelDriver, volume: object, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePip(tmp_path, panel, ("torch",), monkeypatch)
    dialogs.answer(answer)
    end(panel)
    model = panel.app.extensionsManagerModel()
    assert model.requests == (["PyTorch"] if answer == "Yes" else [])
    assert ("Restart Slicer, then" if answer == "Yes" else "is not installed") in panel.status


def test_an_internal_error_at_the_click_ends_the_run(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel.widget.runPanel, "_task", lambda: 1 / 0)
    end(panel)
    assert "could not be started" in panel.status and "ZeroDivisionError" in panel.ui.logTextEdit.toPlainText()


def test_opening_the_module_installs_nothing(
    panel: PanelDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch",), monkeypatch)
    panel.ui.startEngineCheckBox.click()
    panel.leave()
    panel.open()
    panel.wait(lambda: panel.ui.engineStatusLabel.text == NEEDED)
    panel.settle()
    assert not panel.widget.logic.engine.hasProcess and pip.asked == [] and dialogs.shown == []
