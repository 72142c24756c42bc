"""Several runs in the panel: cross-validation, ensembles, and the comparison of two runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from conresnet_training.evaluation import Evaluation, write_tables
from conresnet_training.runs import PROGRESS_FILE, RUNNING_FILE, ProgressWriter
from module.models import write_four_channels
from slicer_host import dialogs
from training_module.test_training_run import script_as_python
from training_module.training_driver import TrainingDriver

FOLDS = 3


def write_fold(folder: Path, number: int, *events: tuple[str, dict]) -> Path:
    """Write the run of a fold with these events after its start; without events, it has not started."""
    run = folder / f"fold_{number}"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("plan.yaml", "fold.txt"):
        (run / name).write_text(f"data: {folder}\n", encoding="utf-8")
    if events:
        writer = ProgressWriter(run / PROGRESS_FILE)
        for event, values in (("started", {"step": 0, "steps": 20, "segments": ["A"], "pid": 1}), *events):
            writer.write(event, **values)
        writer.close()
    return run


def step(number: int) -> tuple[str, dict]:
    return "step", {"step": number, "loss": 1 / number, "seconds_left": 90.0}


def validation(number: int, dice: float) -> tuple[str, dict]:
    return "validation", {"step": number, "dice": dice, "dice_a_segment": {"A": dice}, "best": True}


@pytest.fixture
def cross_validation(tmp_path: Path) -> Path:
    """A cross-validation of three folds, stopped in the middle of the second."""
    folder = tmp_path / "cross"
    folder.mkdir()
    (folder / "crossval.yaml").write_text(f"data: {tmp_path}\n", encoding="utf-8")
    write_fold(folder, 0, step(10), validation(10, 0.5), step(20), validation(20, 0.7), ("finished", {"step": 20}))
    write_fold(folder, 1, step(10), validation(10, 0.6), ("stopped", {"step": 10}))
    write_fold(folder, 2)
    return folder


def curves(kind: str) -> dict[str, list[float]]:
    """The finite values of each curve in a chart, by its name."""
    from ConResTrainingLib import TrainingCurves

    table = TrainingCurves.charts()[kind].GetNthPlotSeriesNode(0).GetTableNode().GetTable()
    columns = [table.GetColumn(number) for number in range(1, table.GetNumberOfColumns())]
    values = {one.GetName(): [one.GetValue(row) for row in range(one.GetNumberOfTuples())] for one in columns}
    return {name: [round(value, 3) for value in found if value == value] for name, found in values.items()}


def test_cross_validation_shows_its_folds_and_can_be_resumed(
    training: TrainingDriver, cross_validation: Path, tmp_path: Path
) -> None:
    ui = training.ui
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    training.choose_run(cross_validation)
    training.settle()
    assert training.state == "stopped"
    expected = "Stopped. Fold 1, 1 of 3 folds trained; Step 10 of 20; Dice 0.600, best 0.600."
    assert ui.runStatusLabel.text == expected
    training.wait(lambda: ui.runsSelector.currentText == "cross: stopped")
    training.click(ui.curvesButton)
    assert curves("loss") == {"Fold 0": [0.1, 0.05], "Fold 1": [0.1], "Fold 2": []}
    assert curves("dice") == {"Fold 0": [0.5, 0.7], "Fold 1": [0.6], "Fold 2": []}
    assert not ui.importButton.enabled and "no checkpoint" in ui.importButton.toolTip
    training.click(ui.resumeButton)
    training.wait(lambda: training.state != "starting")
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    plan = str(cross_validation / "crossval.yaml")
    assert arguments == ["-m", "conresnet_training", "crossval", plan, "--output", str(cross_validation)]
    assert training.state == "died" and "did not start" in ui.runStatusLabel.text


def test_status_of_a_cross_validation_that_failed_or_finished(training: TrainingDriver, cross_validation: Path) -> None:
    training.choose_run(cross_validation)
    write_fold(cross_validation, 1, ("failed", {"code": "x", "message": "The disk is full."}))
    training.widget.jobPanel.look()
    assert training.state == "failed" and training.ui.runStatusLabel.text == "Fold 1: The disk is full."
    assert training.ui.resumeButton.toolTip != "This folder has no run that can be resumed."
    for number in (1, 2):
        write_fold(cross_validation, number, step(20), ("finished", {"step": 20}))
    training.widget.jobPanel.look()
    assert training.state == "finished"
    assert "not evaluated. Click Evaluate." in training.ui.runStatusLabel.text
    (cross_validation / "evaluation").mkdir()
    (cross_validation / "evaluation" / "report.html").touch()
    training.open()
    assert training.ui.runStatusLabel.text == "Finished. All 3 folds are trained and evaluated."
    assert training.ui.openEvaluationButton.enabled


def test_stop_ends_the_evaluation_of_a_cross_validation(
    training: TrainingDriver, cross_validation: Path, tmp_path: Path
) -> None:
    training.choose_run(cross_validation)
    finished = step(20), ("finished", {"step": 20})
    events = f"cat {write_fold(tmp_path, 1, *finished)}/progress.jsonl >> {cross_validation}/fold_1/progress.jsonl"
    write_fold(cross_validation, 2, *finished)
    training.choose_python(script_as_python(tmp_path, f"{events}\nexec sleep 1000"))
    training.click(training.ui.resumeButton)
    training.wait(lambda: training.state == "evaluating")
    assert "checkpoint" not in training.ui.stopButton.toolTip
    training.click(training.ui.stopButton)
    assert training.state == "finished" and not (cross_validation / "stop").exists()
    assert "not evaluated. Click Evaluate." in training.ui.runStatusLabel.text


def test_evaluation_on_another_computer_is_followed_and_asked_to_stop(
    training: TrainingDriver, cross_validation: Path, tmp_path: Path
) -> None:
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    for number in range(FOLDS):
        run = write_fold(cross_validation, number, step(20), ("finished", {"step": 20}))
        (run / "checkpoints" / "last.ckpt").touch()
        os.utime(run / PROGRESS_FILE, (1, 1))
    (cross_validation / "evaluation" / "segmentations").mkdir(parents=True)
    running = {"pid": 4, "host": "cluster-7", "started": "2026-01-01T00:00:00+00:00"}
    (cross_validation / RUNNING_FILE).write_text(json.dumps(running), encoding="utf-8")
    training.choose_run(cross_validation)
    training.settle()
    assert training.state == "evaluating" and not training.ui.evaluateButton.enabled
    assert "already evaluating" in training.ui.evaluateButton.toolTip
    training.click(training.ui.stopButton)
    assert training.state == "stopping" and (cross_validation / "stop").exists()


def test_evaluation_that_was_started_from_here_on_another_computer_is_asked_to_stop(
    training: TrainingDriver, cross_validation: Path, tmp_path: Path
) -> None:
    """If ssh were killed instead, the evaluation would go on there."""
    training.choose_run(cross_validation)
    finished = step(20), ("finished", {"step": 20})
    write_fold(cross_validation, 2, *finished)
    running, stop = cross_validation / RUNNING_FILE, cross_validation / "stop"
    steps = (
        f"cat {write_fold(tmp_path, 1, *finished)}/progress.jsonl >> {cross_validation}/fold_1/progress.jsonl",
        f"""echo '{{"pid": 4, "host": "cluster-7"}}' > {running}""",
        f"while [ ! -e {stop} ]; do sleep 0.1; done",
        f"rm {running} {stop}; touch {tmp_path}/asked; exit 130",
    )
    training.choose_python(script_as_python(tmp_path, "\n".join(steps)))
    training.click(training.ui.resumeButton)
    training.wait(lambda: training.state == "evaluating" and running.exists())
    training.click(training.ui.stopButton)
    assert training.state in ("stopping", "finished")
    training.wait(lambda: training.state == "finished")
    assert (tmp_path / "asked").exists()


def test_lowest_value_of_fold_starts_a_cross_validation(
    training: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    training.use_tiny_plan(data_set)
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    training.ui.foldSpinBox.value = training.ui.foldSpinBox.minimum
    assert "cross-validation" in training.ui.foldSpinBox.text
    assert "all folds" in training.ui.startButton.toolTip
    training.click(training.ui.startButton)
    training.wait(lambda: training.state == "died")
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    plan, run = training.ui.planPathEdit.currentPath, training.ui.runPathEdit.currentPath
    assert arguments[2:] == ["crossval", plan, "--output", run]
    # The next run is for one fold again.
    training.ui.foldSpinBox.value = 1
    training.click(training.ui.startButton)
    training.wait(lambda: training.state == "died")
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    assert arguments[2:] == ["train", plan, "--output", run, "--fold", "1"]


def test_run_on_all_cases_is_started(training: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    training.use_tiny_plan(data_set)
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    ui = training.ui
    ui.foldSpinBox.value = ui.foldSpinBox.minimum
    ui.allCasesCheckBox.checked = True
    assert not ui.foldSpinBox.enabled and "on all cases" in ui.startButton.toolTip
    training.click(ui.startButton)
    training.wait(lambda: training.state == "died")
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    plan, run = ui.planPathEdit.currentPath, ui.runPathEdit.currentPath
    assert arguments[2:] == ["train", plan, "--output", run, "--fold", "none"]
    ui.allCasesCheckBox.checked = False
    assert ui.foldSpinBox.enabled


def write_evaluation(folder: Path, better: float) -> None:
    """Write an evaluation of six cases, with ``better`` added to each Dice."""
    folder.mkdir()
    cases = {}
    for number in range(6):
        dice = 0.7 + 0.02 * number + better
        cases[f"case_{number}"] = {
            "A": {
                **{"dice": dice, "surface_dice": dice, "hd95": 3.0, "hd": 5.0},
                **{"volume_difference_ml": 0.1, "volume_ml": 2.0},
            }
        }
    write_tables(Evaluation("Boxes", "held out", folder.parent.name, 1.0, cases), folder)


@pytest.fixture
def runs(training: TrainingDriver, tmp_path: Path) -> list[Path]:
    """Three runs with a checkpoint; the first two were evaluated, and the first is chosen."""
    from ConResTrainingLib.JobPanel import addRecentRun

    folders = [tmp_path / f"run-{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        if number < 2:
            write_evaluation(folder / "evaluation", 0.1 * number)
        addRecentRun(folder)
    training.choose_run(folders[0])
    training.settle()
    return folders


def test_two_runs_are_compared(here: TrainingDriver, runs: list[Path]) -> None:
    ui = here.ui
    assert not ui.compareButton.enabled and "Check one run" in ui.compareButton.toolTip
    here.check_runs("run-3")
    assert not ui.compareButton.enabled and ui.compareButton.toolTip == "Evaluate run-3 first."
    here.check_runs("run-2")
    here.run_command(ui.compareButton)
    table = ui.comparisonTable
    assert not table.isHidden() and ui.resultsStatusLabel.text.startswith("A: run-1. B: run-2.")
    rows = [[table.item(row, column).text() for column in range(6)] for row in range(table.rowCount)]
    assert rows[0] == ["Dice", "A", "0.750", "0.850", "-0.100", "0.031"]
    assert "6 cases; 95% interval" in table.item(0, 0).toolTip()
    # The comparison is hidden when the choice changes.
    here.check_runs()
    assert table.isHidden()
    # The same applies if the choice changes during the comparison.
    here.check_runs("run-2")
    here.click(ui.compareButton)
    here.choose_run(runs[2])
    here.wait(lambda: ui.compareButton.text == "Compare")
    assert table.isHidden() and ui.resultsStatusLabel.text == ""


def test_checked_runs_are_imported_as_one_ensemble(training: TrainingDriver, runs: list[Path], tmp_path: Path) -> None:
    package = write_four_channels(tmp_path / "four.zip")
    training.choose_python(script_as_python(tmp_path, f"cp '{package}' '{runs[0]}/model.zip'"))
    ui = training.ui
    assert ui.importButton.text == "Import into ConRes Segmentation"
    training.check_runs("run-2", "run-3")
    assert ui.importButton.text == "Import 3 runs as one ensemble"
    (runs[2] / "checkpoints" / "last.ckpt").unlink()
    training.widget.updateButtons()
    assert not ui.importButton.enabled and ui.importButton.toolTip == "The run run-3 has no checkpoint yet."
    training.check_runs("run-2")
    dialogs.answer("No")
    training.run_command(ui.importButton)
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    assert arguments[2:5] == ["export", str(runs[0]), str(runs[1])]
    assert "is installed and chosen" in ui.resultsStatusLabel.text


def test_run_on_all_cases_gets_measurements_of_checked_runs(
    training: TrainingDriver, runs: list[Path], tmp_path: Path
) -> None:
    package = write_four_channels(tmp_path / "four.zip")
    training.choose_python(script_as_python(tmp_path, f"cp '{package}' '{runs[0]}/model.zip'"))
    writer = ProgressWriter(runs[0] / PROGRESS_FILE)
    writer.write("started", step=0, steps=20, segments=["A"], pid=1, fold=None)
    writer.write("finished", step=20)
    writer.close()
    training.widget.jobPanel.look()
    ui = training.ui
    assert not ui.evaluateButton.enabled and "no held-out cases" in ui.evaluateButton.toolTip
    assert not ui.importButton.enabled and "Check runs in the list" in ui.importButton.toolTip
    training.check_runs("run-2", "run-3")
    assert ui.importButton.text == "Import into ConRes Segmentation"
    assert "measurements of the checked runs" in ui.importButton.toolTip
    dialogs.answer("No")
    training.run_command(ui.importButton)
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    expected = ["export", str(runs[0]), "--measured-by", str(runs[2]), "--measured-by", str(runs[1])]
    assert arguments[2:8] == expected
    assert "is installed and chosen" in ui.resultsStatusLabel.text


@pytest.mark.slow
def test_all_folds_are_trained_evaluated_and_imported(here: TrainingDriver, data_set: Path) -> None:
    here.use_tiny_plan(data_set, steps=40)
    here.ui.foldSpinBox.value = here.ui.foldSpinBox.minimum
    here.click(here.ui.startButton)
    here.wait(lambda: here.job.current == 1)
    assert here.state in ("preparing", "training", "starting") and "of 3 folds trained" in here.ui.runStatusLabel.text
    here.click(here.ui.stopButton)
    here.wait(lambda: here.state == "stopped")
    here.click(here.ui.resumeButton)
    here.wait(lambda: here.state == "evaluating")
    here.wait(lambda: here.state == "finished")
    report = here.job.folder / "evaluation" / "report.html"
    assert report.is_file() and len(curves("dice")) == FOLDS
    here.click(here.ui.openEvaluationButton)
    assert [Path(unquote(urlparse(url).path)) for url in dialogs.opened_urls] == [report]
    dialogs.answer("No")
    here.run_command(here.ui.importButton)
    assert "is installed and chosen" in here.ui.resultsStatusLabel.text
