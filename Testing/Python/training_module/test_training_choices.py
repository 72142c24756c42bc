"""File names that the panel suggests, choices and plans with which it does not start, and unreadable settings."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import slicer

from conresnet_training.planning.plan import parse_yaml, yaml_text
from slicer_host import dialogs, slot_errors
from training_module.training_driver import TrainingDriver


@pytest.mark.parametrize("folder", ["/", "."])
def test_folder_without_a_name_can_be_chosen(
    training: TrainingDriver, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    training.choose_data_set(Path(folder))
    # The next start of Slicer reads the folder from the settings.
    training.unload()
    training.load()
    assert slot_errors == []
    assert training.ui.planPathEdit.currentPath == str(tmp_path / "data-set-plan.yaml")
    assert training.ui.runPathEdit.currentPath == str(tmp_path / "data-set-run-1")
    training.choose_run(folder)
    training.settle()
    assert slot_errors == []


def test_plan_for_another_data_set_is_not_started(here: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "Other set"
    shutil.copytree(data_set, other)
    here.use_tiny_plan(data_set)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
    # The edited plan is kept when another data set is chosen, and is still for the first one.
    here.choose_data_set(other)
    assert not here.ui.startButton.enabled
    message = f"This plan is for the data set {data_set}; choose that folder, or make a plan for {other}."
    assert here.ui.startButton.toolTip == message
    # Behind a command, the data set has another path, so only its name is compared.
    moved = tmp_path / "mounted" / data_set.name
    here.choose_command("env", "python3")
    here.choose_data_set(moved)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
    here.choose_data_set(data_set)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip


def test_saving_edits_asks_before_replacing_another_plan(here: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    here.use_tiny_plan(data_set)
    own, other = Path(here.ui.planPathEdit.currentPath), tmp_path / "other.yaml"
    other.write_text("# An hour of work\n", encoding="utf-8")
    here.ui.planPathEdit.currentPath = str(other)
    here.settle()
    dialogs.answer("No")
    here.click(here.ui.savePlanButton)
    assert other.read_text(encoding="utf-8") == "# An hour of work\n"
    assert "other.yaml contains a different plan" in dialogs.shown[-1].text
    assert "The edits were not saved" in here.ui.planStatusLabel.text
    # It also asks if another program has changed the plan's own file.
    here.ui.planPathEdit.currentPath = str(own)
    here.settle()
    here.click(here.ui.savePlanButton)
    assert len(dialogs.shown) == 1 and here.ui.planStatusLabel.text == "Saved."
    here.edit_plan(steps=7)
    own.write_text(own.read_text(encoding="utf-8") + "# Edited elsewhere\n", encoding="utf-8")
    dialogs.answer("Yes")
    here.click(here.ui.savePlanButton)
    assert "steps: 7" in own.read_text(encoding="utf-8") and "elsewhere" not in own.read_text(encoding="utf-8")
    # It also asks if the file cannot be read.
    here.edit_plan(steps=8)
    own.write_bytes(b"\xff\xfe")
    dialogs.answer("No")
    here.click(here.ui.savePlanButton)
    assert "plan.yaml cannot be read. Replace it?" in dialogs.shown[-1].text and own.read_bytes() == b"\xff\xfe"


def test_plan_changed_by_another_program_is_shown_before_it_is_trained(
    training: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncp "$4" "{tmp_path}/trained.yaml"\n', encoding="utf-8")
    python.chmod(0o755)
    training.use_tiny_plan(data_set, steps=30)
    training.choose_python(str(python))
    training.click(training.ui.savePlanButton)
    plan = Path(training.ui.planPathEdit.currentPath)
    text = plan.read_text(encoding="utf-8")
    plan.write_text(yaml_text({**parse_yaml(text), "data": str(tmp_path / "other data")}), encoding="utf-8")
    training.click(training.ui.startButton)
    assert training.state == "none" and not (tmp_path / "trained.yaml").exists()
    changed = "The plan was changed by another program; check it and click Start again."
    assert training.ui.runStatusLabel.text == changed
    assert training.ui.planTextEdit.toPlainText() == plan.read_text(encoding="utf-8")
    assert training.ui.startButton.toolTip.startswith(f"This plan is for the data set {tmp_path / 'other data'}")
    # A changed plan that is valid is shown, too, and is not started yet.
    plan.write_text(text, encoding="utf-8")
    training.open()
    plan.write_text(text.replace("steps: 30", "steps: 20"), encoding="utf-8")
    training.click(training.ui.startButton)
    assert training.ui.runStatusLabel.text == changed and training.state == "none"
    # If the file was deleted, the plan stays in the editor, and the next click saves it.
    shown = training.ui.planTextEdit.toPlainText()
    plan.unlink()
    training.click(training.ui.startButton)
    assert training.ui.planTextEdit.toPlainText() == shown and training.ui.savePlanButton.enabled
    assert "is missing or cannot be read" in training.ui.runStatusLabel.text and training.state == "none"
    training.click(training.ui.startButton)
    training.wait(lambda: training.state == "died")
    assert (tmp_path / "trained.yaml").read_text(encoding="utf-8") == training.ui.planTextEdit.toPlainText()
    assert "steps: 20" in training.ui.planTextEdit.toPlainText()


@pytest.mark.parametrize("stored", ['{"a": 1}', "[null, 5]", "5", "null", "nonsense"])
def test_damaged_list_of_runs_is_ignored(training: TrainingDriver, stored: str) -> None:
    slicer.app.userSettings().setValue("ConResTraining/Runs", stored)
    training.unload()
    training.load()
    assert slot_errors == [] and training.ui.runsSelector.count == 0


def test_folders_without_read_permission_are_reported(
    here: TrainingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()

    def denied(path: object, *_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    real = {name: getattr(os, name) for name in ("stat", "lstat", "scandir", "listdir")}
    for name, function in real.items():

        def guarded(path: object = ".", *rest: object, function: object = function, **options: object) -> object:
            return denied(path) if str(closed) in str(path) else function(path, *rest, **options)

        monkeypatch.setattr(os, name, guarded)
    for edit in (here.ui.dataSetPathEdit, here.ui.planPathEdit, here.ui.runPathEdit):
        for end in ("set", "set/x.yaml"):
            edit.currentPath = str(closed / end)
            here.wait(lambda: here.widget.dataSetPanel.isSettled)
            here.settle()
    assert slot_errors == []
    assert not here.ui.startButton.enabled and not here.ui.checkButton.enabled
    assert str(closed) in here.ui.dataSetSummaryLabel.text


def test_cleared_paths_are_not_used(here: TrainingDriver, data_set: Path) -> None:
    here.use_tiny_plan(data_set)
    ui, plan, run = here.ui, here.ui.planPathEdit.currentPath, here.ui.runPathEdit.currentPath
    here.click(ui.savePlanButton)
    assert ui.startButton.enabled and run

    here.choose_run("")
    assert not ui.startButton.enabled and ui.startButton.toolTip == "Choose a new folder for the run."
    here.choose_run(run)
    assert ui.startButton.enabled

    ui.planPathEdit.currentPath = ""
    assert not ui.makePlanButton.enabled and ui.makePlanButton.toolTip == "Choose a file for the plan."
    assert not ui.startButton.enabled and ui.startButton.toolTip.startswith("Make a plan first")
    ui.planPathEdit.currentPath = plan
    assert ui.makePlanButton.enabled and ui.startButton.enabled

    here.choose_data_set("")
    for button in (ui.checkButton, ui.makePlanButton):
        assert not button.enabled and button.toolTip == "Choose the folder of a data set."
    assert ui.dataSetSummaryLabel.text == ""

    ui.trainingPythonPathEdit.currentPath = ""
    assert not ui.testPlaceButton.enabled
    assert ui.testPlaceButton.toolTip == "Choose the Python to use for training."
    # The paths are still empty after the next start of Slicer.
    here.unload()
    here.load()
    assert here.ui.dataSetPathEdit.currentPath == here.ui.trainingPythonPathEdit.currentPath == ""


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_plans_with_either_suffix_are_read_and_other_files_are_ignored(
    here: TrainingDriver, data_set: Path, suffix: str
) -> None:
    here.use_tiny_plan(data_set)
    here.click(here.ui.savePlanButton)
    text = here.ui.planTextEdit.toPlainText()
    other = data_set.with_name(f"other{suffix}")
    other.write_text(text.replace("folds: 3", "folds: 2"), encoding="utf-8")
    accepted = []
    here.ui.planPathEdit.connect("currentPathChanged(QString)", accepted.append)
    here.ui.planPathEdit.currentPath = str(other)
    assert "folds: 2" in here.ui.planTextEdit.toPlainText() and here.ui.startButton.enabled
    assert accepted == [str(other)], "the field accepts plans with either suffix"
    # An incomplete path is not a plan.
    here.ui.planPathEdit.currentPath = str(other.with_suffix(""))
    assert here.ui.planTextEdit.toPlainText() == "" and not here.ui.startButton.enabled


@pytest.mark.parametrize(
    "text",
    ["data: data\ntraining:\n  folds: 3000000000\n", 'data: "\\u0000"\n', "data: loop\n"],
    ids=["huge number of folds", "zero byte in the path", "symbolic link to itself"],
)
def test_unusable_plan_text_raises_nothing_while_it_is_edited(
    here: TrainingDriver, data_set: Path, text: str, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    here.choose_data_set(data_set)
    here.ui.planPathEdit.currentPath = str(tmp_path / "plan.yaml")
    here.ui.planTextEdit.setPlainText(text)
    here.settle()
    assert slot_errors == []
    assert here.ui.foldSpinBox.maximum == 99
