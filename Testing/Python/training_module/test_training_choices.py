"""What the panel proposes for a data set, and what it does not start: names of files, and plans of other data."""

from __future__ import annotations

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
    training.ui.dataSetPathEdit.currentPath = folder
    training.settle()
    # As at the next start of Slicer, which finds the folder in its settings.
    training.unload()
    training.load()
    assert slot_errors == []
    assert training.ui.planPathEdit.currentPath == str(tmp_path / "data-set-plan.yaml")
    assert training.ui.runPathEdit.currentPath == str(tmp_path / "data-set-run-1")
    training.ui.runPathEdit.currentPath = folder
    training.settle()
    assert slot_errors == []
