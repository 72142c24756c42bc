"""What the panel proposes for a data set, and what it does not start: names of files, and plans of other data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slicer_host import slot_errors
from training_module.training_driver import TrainingDriver


@pytest.mark.parametrize("folder", ["/", "."])
def test_a_folder_without_a_name_is_as_good_as_others(
    training: TrainingDriver, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    training.choose_data_set(Path(folder))
    # As at the next start of Slicer, which finds the folder in its settings.
    training.unload()
    training.load()
    assert slot_errors == []
    assert training.ui.planPathEdit.currentPath == str(tmp_path / "data-set-plan.yaml")
    assert training.ui.runPathEdit.currentPath == str(tmp_path / "data-set-run-1")
    training.ui.runPathEdit.currentPath = folder
    training.settle()
    assert slot_errors == []


def test_a_plan_of_other_data_does_not_start(here: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "Other set"
    shutil.copytree(data_set, other)
    here.use_tiny_plan(data_set)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
    # What was edited is kept when another data set is chosen, and is still for the first.
    here.choose_data_set(other)
    assert not here.ui.startButton.enabled
    sentence = f"This plan is for the data set {data_set}; choose that folder, or make a plan for {other}."
    assert here.ui.startButton.toolTip == sentence
    # By another path on the other side of a command, where only the name can be compared.
    moved = tmp_path / "mounted" / data_set.name
    here.choose_command("env", "python3")
    here.choose_data_set(moved)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
    here.choose_data_set(data_set)
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
