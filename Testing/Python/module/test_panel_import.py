"""Importing a checkpoint by the paper's authors in the panel: dialog, process and errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PySide6 import QtWidgets

from conresnet.errors import UserError
from conresnet.package.reader import read_package
from conresnet.package.store import find_model
from module.checkpoints import answers, checkpoint
from module.panel_driver import PanelDriver
from slicer_host import dialogs

__all__ = ["checkpoint"]


def end(panel: PanelDriver) -> None:
    panel.wait(lambda: not panel.widget.runPanel.isRunning)


def test_dropped_checkpoint_is_imported_and_chosen(panel: PanelDriver, checkpoint: Path, tmp_path: Path) -> None:
    shown = []

    def look(dialog: QtWidgets.QDialog) -> int:
        dialog.grab().save(str(tmp_path / "dialog.png"))
        shown.append(dialog.findChild(QtWidgets.QLineEdit, "nameEdit").text)
        shown.extend(re.findall(r"\d+ channels and \d+ outputs", dialog.findChildren(QtWidgets.QLabel)[0].text))
        return 1

    dialogs.answer(look)
    panel.drop(checkpoint)
    assert panel.widget.runPanel.isRunning
    end(panel)
    assert shown == ["BraTS-final", "4 channels and 3 outputs"] and panel.status == "Imported BraTS-final."
    assert panel.choices.model == "BraTS-final" and len(panel.widget.channels.combos) == 4
    assert "Enhancing tumor" in panel.ui.modelSummaryLabel.text
    assert read_package(find_model("BraTS-final")).description.inference.tiling == "authors"


def test_dialog_accepts_the_same_values_as_the_command(panel: PanelDriver, checkpoint: Path) -> None:
    wrong = answers(nameEdit="mine", segmentsEdit="Big")
    several = [answers(segmentsEdit="Big=1"), answers(segmentsEdit="", orientationEdit="XYZ")]
    right = answers(
        titleEdit="Mine",
        licenseEdit="CC0-1.0",
        channelsEdit="A, B,C, D",
        segmentsEdit="Big=1, Middle one=2, Small=7",
        orientationEdit="sar",
        spacingEdit="2, 1, 1",
    )
    dialogs.answer("A checkpoint", str(checkpoint), wrong, *several, right)
    panel.ui.installModelButton.click()
    end(panel)
    shown_texts = [shown.text for shown in dialogs.shown if shown.text]
    for words, text in zip(("Big", "1 segments were named", "orientation"), shown_texts[-3:], strict=True):
        assert words in text, "the dialog is shown again with its contents"
    description = read_package(find_model("mine")).description
    assert (description.title, description.license) == ("Mine", "CC0-1.0")
    assert [item.name for item in description.inputs] == ["A", "B", "C", "D"]
    assert [(one.name, one.label) for one in description.output.segments] == [
        ("Big", 1),
        ("Middle one", 2),
        ("Small", 7),
    ]
    assert (description.preparation.orientation, description.preparation.spacing) == ("SAR", (2, 1, 1))


def test_failed_or_canceled_import_is_reported_and_nothing_is_installed(
    panel: PanelDriver, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    titles = [panel.ui.modelSelector.itemText(n) for n in range(panel.ui.modelSelector.count)]
    panel.drop(tmp_path / "broken.pth")
    end(panel)
    assert "broken.pth" in panel.status and not dialogs.shown, "it is refused before any question"
    dialogs.answer(answers(result=0))
    panel.drop(checkpoint)
    end(panel)
    assert panel.status == "Canceled."
    dialogs.answer(answers())
    panel.drop(checkpoint)
    panel.wait(lambda: panel.status.startswith("Importing"))
    panel.ui.cancelButton.click()
    assert panel.status == "Canceled." and not panel.widget.runPanel.isRunning

    def fail(_source: str) -> str:
        raise UserError("disk-full", path="models")

    monkeypatch.setattr(sys.modules["ConResSegmentationLib.Models"], "installAsking", fail)
    dialogs.answer(answers())
    panel.drop(checkpoint)
    end(panel)
    assert panel.status.endswith("was not installed.") and "disk space" in dialogs.shown[-1].text
    assert [panel.ui.modelSelector.itemText(n) for n in range(panel.ui.modelSelector.count)] == titles
