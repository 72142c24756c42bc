"""Installing model packages and importing checkpoints from ConRes Training."""

from __future__ import annotations

from pathlib import Path

import pytest
import slicer
from PySide6 import QtWidgets

from conresnet.package.reader import read_package
from conresnet.package.store import find_model, list_models
from module.checkpoints import answers, checkpoint
from module.models import write_four_channels
from slicer_host import dialogs
from training.commands import message_of
from training_module.training_driver import TrainingDriver

__all__ = ["checkpoint"]


def status(training: TrainingDriver) -> str:
    return training.ui.resultsStatusLabel.text


def test_checkpoint_is_imported_with_values_from_the_dialog(
    training: TrainingDriver, checkpoint: Path, tmp_path: Path
) -> None:
    shown = []

    def look(dialog: QtWidgets.QDialog) -> int:
        dialog.grab().save(str(tmp_path / "dialog.png"))
        shown.append(dialog.findChild(QtWidgets.QLineEdit, "nameEdit").text)
        return answers(titleEdit="Mine", spacingEdit="2, 1, 1")(dialog)

    button = training.ui.checkpointButton
    dialogs.answer(str(checkpoint), look)
    training.click(button)
    assert status(training) == "Reading BraTS final.pth" and button.text == "Cancel"
    training.wait(lambda: status(training) == "Importing BraTS final.pth")
    training.picture(tmp_path / "importing.png")
    training.wait(lambda: button.text == "Checkpoint...")
    assert status(training) == "Imported BraTS-final." and shown == ["BraTS-final"]
    description = read_package(find_model("BraTS-final")).description
    assert (description.title, description.preparation.spacing) == ("Mine", (2, 1, 1))
    # The model is chosen in ConRes Segmentation.
    training.app.moduleManager().select("ConResSegmentation")
    training.settle()
    segmentation = training.app.moduleManager().module("ConResSegmentation").widgetRepresentation().self()
    assert segmentation.ui.modelSelector.currentText == "Mine" and len(segmentation.channels.combos) == 4


def test_import_can_be_canceled_and_errors_are_reported(
    training: TrainingDriver, checkpoint: Path, tmp_path: Path
) -> None:
    before = [entry.name for entry in list_models()]
    button = training.ui.checkpointButton
    dialogs.answer(answers(result=0))
    training.drop(checkpoint)
    training.wait(lambda: button.text == "Checkpoint...")
    assert status(training) == "Canceled."
    dialogs.answer(answers())
    training.drop(checkpoint)
    training.wait(lambda: status(training).startswith("Importing"))
    training.drop(checkpoint)
    assert dialogs.shown[-1].text == "Wait until the other command has ended."
    training.click(button)
    assert status(training) == "Canceled." and button.text == "Checkpoint..."
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    training.drop(tmp_path / "broken.pth")
    training.wait(lambda: button.text == "Checkpoint...")
    assert "broken.pth" in status(training) and "color" in training.ui.resultsStatusLabel.styleSheet
    assert [entry.name for entry in list_models()] == before


def test_disk_error_in_the_last_step_ends_the_import(
    training: TrainingDriver, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, _package: str) -> str:
        raise OSError(5, "Input/output error")

    button = training.ui.checkpointButton
    monkeypatch.setattr(type(slicer.util.getModuleLogic("ConResSegmentation")), "install", fail)
    dialogs.answer(answers())
    training.drop(checkpoint)
    training.wait(lambda: button.text == "Checkpoint...")
    assert status(training) == "The last step failed; see the log." and "Input/output error" in training.log


def test_import_without_the_other_module_is_refused_with_a_sentence(
    training: TrainingDriver, checkpoint: Path, repository: Path, tmp_path: Path
) -> None:
    before, manager = [entry.name for entry in list_models()], training.app.moduleManager()
    manager.unload("ConResSegmentation")
    try:
        for file in (write_four_channels(tmp_path / "four.zip"), checkpoint):
            training.drop(file)
            assert status(training) == message_of("segmentation-module-not-loaded", path=file)
            assert training.ui.checkpointButton.text == "Checkpoint..."
        assert [entry.name for entry in list_models()] == before
    finally:
        manager.load(repository / "ConResSegmentation" / "ConResSegmentation.py")


def test_dropped_package_is_installed_and_dropped_folder_is_chosen_as_data_set(
    training: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    dialogs.answer("No")
    training.drop(write_four_channels(tmp_path / "four.zip"))
    assert "four is installed" in status(training) and find_model("four")
    dialogs.answer("Cancel")
    training.drop(tmp_path / "four.zip")
    assert status(training) == "Canceled."
    training.drop(data_set)
    training.wait(lambda: training.widget.dataSetPanel.isSettled)
    assert "6 labeled cases" in training.ui.dataSetSummaryLabel.text
