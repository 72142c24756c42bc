"""Installing the engine's packages in a separate process, with progress and Cancel, and other controls disabled."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import psutil
import pytest
import slicer

from conresnet.needs import ENGINE_PACKAGES
from ConResSegmentationLib.Processes import callLater
from module.panel_driver import PanelDriver
from slicer_host import dialogs

NEEDED = "The engine needs packages."


class FakePip:
    """A PythonSlicer whose pip only records its arguments.

    Args:
        folder: folder for the program and its files.
        panel: the panel; its check of the engine's Python reports the packages that were not installed yet.
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
        self._asked = None
        monkeypatch.setattr(panel.widget.logic.enginePython, "check", self._check)
        monkeypatch.setattr(panel.widget.logic.enginePython, "dropCheck", self._drop_check)

    def _check(self, on_checked: object) -> None:
        done = self.calls.read_text(encoding="utf-8")
        is_successful = "exit 0" in self.behavior.read_text(encoding="utf-8")
        missing = tuple(name for name in self._missing if not is_successful or f"{name}>=" not in done)
        found = self._library.EngineCheck(missing, NEEDED if missing else "", bool(missing))
        self._asked = on_checked
        callLater(lambda: on_checked(found) if self._asked is on_checked else None)

    def _drop_check(self) -> None:
        self._asked = None

    @property
    def requests(self) -> list[str]:
        """The arguments of each call of pip."""
        return self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def torch_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate that Slicer's PyTorch extension is loaded."""
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.ModuleType("PyTorchUtils"))


def end(panel: PanelDriver) -> None:
    """Click Segment and wait until the run has ended and the panel is ready for the next one."""
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.ui.applyButton.enabled and not panel.ui.cancelButton.enabled


def test_missing_packages_are_installed_and_the_run_continues(
    panel: PanelDriver, volume: object, tmp_path: Path, torch_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch", "safetensors"), monkeypatch)
    dialogs.answer("OK")
    end(panel)
    assert panel.status.startswith("Done in") and len(dialogs.shown) == 1
    assert "a large download" in dialogs.shown[0].text
    versions = [f"{name}>={ENGINE_PACKAGES[name]}" for name in ("torch", "safetensors")]
    assert all(version in dialogs.shown[0].text for version in versions)
    chooser, torch, rest = pip.requests
    assert chooser.startswith("-m pip install") and "light-the-torch" in chooser
    assert torch == f"-m light_the_torch install {versions[0]}", "it selects the build for the GPU"
    assert rest.startswith("-m pip install") and rest.endswith(f"--no-deps {versions[1]}")
    assert "Collecting it" in panel.ui.logTextEdit.toPlainText()


def test_failed_installation_ends_the_run_and_shows_its_last_line(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    pip.behavior.write_text("echo 'No space left on device' >&2; exit 1\n", encoding="utf-8")
    dialogs.answer("OK")
    end(panel)
    assert panel.status == "The installation failed (No space left on device); see the log."


def test_user_who_declines_is_asked_once(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    dialogs.answer("Cancel")
    end(panel)
    assert panel.status == NEEDED and len(dialogs.shown) == 1 and pip.requests == []
    assert "a large download" not in dialogs.shown[0].text


def test_only_cancel_is_enabled_during_an_installation(
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
    assert len(pip.requests) == 1 and ui.modelSelector.isEnabled() and ui.applyButton.enabled


def test_closing_scene_cancels_the_waiting_run_but_not_the_installation(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("safetensors",), monkeypatch)
    pip.behavior.write_text("sleep 1; exit 0\n", encoding="utf-8")
    dialogs.answer("OK")
    panel.click_segment()
    panel.wait(lambda: pip.requests)
    slicer.mrmlScene.Clear(0)
    assert panel.widget.runPanel.isRunning
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status == "The engine is ready." and len(pip.requests) == 1


def test_install_button_does_not_start_a_segmentation(
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


def test_disabled_pytorch_extension_is_reported_instead_of_offered_again(
    panel: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(tmp_path, panel, ("torch",), monkeypatch)
    panel.app.extensionsManagerModel().installed.append("PyTorch")
    end(panel)
    assert "enable it in the Extensions Manager" in panel.status and "another Engine Python" in panel.status
    assert pip.requests == [] and dialogs.shown == []


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_missing_pytorch_extension_is_offered(
    panel: PanelDriver, volume: object, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePip(tmp_path, panel, ("torch",), monkeypatch)
    dialogs.answer(answer)
    end(panel)
    model = panel.app.extensionsManagerModel()
    assert model.requests == (["PyTorch"] if answer == "Yes" else [])
    assert ("Restart Slicer, then" if answer == "Yes" else "is not installed") in panel.status


def test_internal_error_at_the_start_ends_the_run(
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
    assert not panel.widget.logic.engine.hasProcess and pip.requests == [] and dialogs.shown == []
