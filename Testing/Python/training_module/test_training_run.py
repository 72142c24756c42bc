"""From a data set to a model that segments, with real training in real processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import matplotlib.image
import numpy as np
import pytest
import slicer
from PySide6 import QtCore, QtWidgets

from conresnet.package.store import install_model
from module.models import write_four_channels
from slicer_host import dialogs
from training_module.training_driver import TrainingDriver


def start(driver: TrainingDriver) -> None:
    """Start a run and wait for the first point of its curve."""
    driver.click(driver.ui.startButton)
    assert driver.state == "starting" and not driver.ui.startButton.enabled
    driver.wait(lambda: driver.points() > 0)


def check_size(driver: TrainingDriver, picture: Path) -> None:
    """Check that the panel has the width of Slicer's and fits a screen, with advanced sections collapsed."""
    from ConResSegmentationLib.Widgets import say

    driver.ui.placeCollapsibleButton.collapsed = True
    say(driver.ui.checkStatusLabel, "No problems were found in 6 cases.")
    say(
        driver.ui.planStatusLabel,
        f"Planned for 6 cases. Review and edit {'long/' * 16}plan.yaml, then use it for training.",
    )
    driver.settle()
    height, width = matplotlib.image.imread(driver.picture(picture)).shape[:2]
    assert height < 900 and width == 420 >= driver.representation.minimumSizeHint.width()


def test_data_set_becomes_a_model_that_segments(here: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    from ConResTrainingLib.JobPanel import addRecentRun

    # An earlier run, so that the lists of runs are shown.
    (tmp_path / "earlier").mkdir()
    addRecentRun(tmp_path / "earlier")
    here.use_tiny_plan(data_set, steps=20_000)
    start(here)
    manager = slicer.app.layoutManager()
    from ConResTrainingLib import TrainingCurves

    assert manager.layout == TrainingCurves.layout.number
    shown = [manager.plotWidget(number).mrmlPlotViewNode().GetPlotChartNode() for number in range(2)]
    assert shown == list(TrainingCurves.charts().values())
    before = here.points()
    here.wait(lambda: here.points() > before and here.job.progress.validations)
    here.wait(lambda: here.ui.importButton.enabled)
    assert "of 20000" in here.ui.runStatusLabel.text and "Dice" in here.ui.runStatusLabel.text

    assert not here.ui.otherRunsCollapsibleButton.isHidden() and not here.ui.progressBar.isHidden()
    check_size(here, tmp_path / "training.png")

    # Slicer is closed and opened again: the run has continued, and is found.
    step = here.job.progress.step
    here.unload()
    slicer.mrmlScene.Clear(0)
    here.load()
    assert here.state == "training"
    here.wait(lambda: here.job.progress.step > step)
    assert here.points() > before
    here.click(here.ui.stopButton)
    here.wait(lambda: here.state == "stopped")
    assert "Stopped." in here.ui.runStatusLabel.text and here.ui.resumeButton.enabled
    stopped_at = here.job.progress.step

    # The number of steps is reduced, so that the rest takes seconds.
    plan = here.job.folder / "plan.yaml"
    last = stopped_at + 10
    plan.write_text(plan.read_text(encoding="utf-8").replace("steps: 20000", f"steps: {last}"), encoding="utf-8")
    here.click(here.ui.resumeButton)
    here.wait(lambda: here.state == "finished")
    assert here.job.progress.step == last
    assert not here.ui.resumeButton.enabled

    dialogs.answer("Yes")
    here.run_command(here.ui.importButton)
    assert "is installed and chosen" in here.ui.resultsStatusLabel.text
    check_size(here, tmp_path / "imported.png")
    segmentation = slicer.modules.ConResSegmentationWidget
    assert slicer.app.moduleManager()._selected == "ConResSegmentation"
    assert segmentation.modelPanel.choice.name == "boxes" and segmentation.modelPanel.problem == ""
    volume = slicer.util.loadVolume(str(data_set / "imagesTr" / "case_0.nii.gz"))
    from ConResSegmentationLib.SegmentationRun import SegmentationTask

    task = SegmentationTask(str(segmentation.modelPanel.choice.path), (volume,))
    node = segmentation.logic.segmentAndWait(task).segmentationNode
    found = np.zeros(slicer.util.arrayFromVolume(volume).shape, bool)
    for number in range(node.GetSegmentation().GetNumberOfSegments()):
        identifier = node.GetSegmentation().GetNthSegmentID(number)
        found |= slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume) > 0
    truth = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(data_set / "labelsTr" / "case_0.nii.gz"))) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5


def test_training_behind_a_command_is_killed_after_confirmation(
    here: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    wrapper = tmp_path / "run over there"
    # It does not pass on the variables of this process.
    wrapper.write_text(f'#!/bin/sh\ntouch "{tmp_path}/wrapped"\nunset PYTHONPATH PYTHONUTF8\nexec "$@"\n')
    wrapper.chmod(0o755)
    here.use_tiny_plan(data_set, steps=20_000)
    here.choose_command(f"'{wrapper}'", sys.executable)
    start(here)
    assert (tmp_path / "wrapped").exists()
    here.wait(lambda: (here.job.folder / "checkpoints" / "last.ckpt").exists())
    # A suspended process cannot react to a request to stop.
    os.kill(here.job.progress.started["pid"], signal.SIGSTOP)
    here.click(here.ui.stopButton)
    assert here.state == "stopping"
    dialogs.answer("No", "Yes")
    here.click(here.ui.stopButton)
    assert here.state == "stopping"
    here.click(here.ui.stopButton)
    here.wait(lambda: here.state == "died")
    assert "latest checkpoint" in dialogs.shown[-1].text
    assert "ended unexpectedly after step" in here.ui.runStatusLabel.text
    assert here.ui.resumeButton.enabled and not here.ui.stopButton.enabled
    # Its state is the same after Slicer was opened again.
    here.unload()
    here.load()
    assert here.state == "died"
    assert "ended unexpectedly" in here.ui.runsSelector.currentText
    # Another run has its own folder, and the run that died is still listed.
    died = here.job.folder
    here.choose_run(died.with_name("another run"))
    here.settle()
    assert here.state == "none" and here.ui.startButton.enabled and not here.ui.resumeButton.enabled
    here.ui.runsSelector.setCurrentIndex(0)
    here.ui.runsSelector.activated.emit(0)
    assert here.job.folder == died and here.state == "died"


def test_reason_is_shown_if_training_does_not_start(training: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Loading'\necho 'In the plan, training.steps: wrong.' >&2\nexit 2\n")
    python.chmod(0o755)
    training.use_tiny_plan(data_set)
    training.choose_python(str(python))
    training.click(training.ui.startButton)
    training.wait(lambda: training.state == "died")
    assert training.ui.runStatusLabel.text == "Training did not start: In the plan, training.steps: wrong."
    # The folder can be used for another attempt.
    assert training.ui.startButton.enabled and not training.ui.resumeButton.enabled
    python.write_text("#!/bin/sh\nexit 7\n")
    training.click(training.ui.startButton)
    training.wait(lambda: training.state == "died")
    assert training.ui.runStatusLabel.text == "Training did not start: exit code 7"


def test_model_of_the_same_name_is_not_replaced_if_user_declines(training: TrainingDriver, tmp_path: Path) -> None:
    package = write_four_channels(tmp_path / "four.zip")
    installed = install_model(package).path
    before = (installed / "model.json").stat().st_ino
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    # This Python only has to write the package.
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncp '{package}' '{run}/model.zip'\n", encoding="utf-8")
    python.chmod(0o755)
    training.choose_python(str(python))
    training.choose_run(run)
    dialogs.answer("Cancel")
    training.run_command(training.ui.importButton)
    (question,) = dialogs.shown
    assert question.text.startswith("A model named four is already installed. Replace it, or keep both")
    assert training.ui.resultsStatusLabel.text == f"The model was packed as {run / 'model.zip'}, but not installed."
    assert training.ui.resultsStatusLabel.styleSheet == "", "not shown as an error"
    assert (installed / "model.json").stat().st_ino == before


def script_as_python(tmp_path: Path, script: str) -> str:
    """A Python for the panel that runs a shell script instead and writes its arguments to the file "arguments"."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/arguments"\n{script}\n', encoding="utf-8")
    python.chmod(0o755)
    return str(python)


class EnabledChanges(QtCore.QObject):
    """Counts how often a widget is enabled and disabled."""

    def __init__(self, found: list[bool]):
        super().__init__()
        self._found = found

    def eventFilter(self, watched: QtWidgets.QWidget, event: QtCore.QEvent) -> bool:
        if event.type() == QtCore.QEvent.Type.EnabledChange:
            self._found.append(watched.isEnabled())
        return False


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a run that the panel takes for one with a checkpoint."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    return run


def test_incomplete_report_is_opened_but_not_an_earlier_one(
    training: TrainingDriver, trained: Path, tmp_path: Path
) -> None:
    report = trained / "evaluation" / "report.html"
    report.parent.mkdir()
    training.choose_run(trained)
    message = "Measured 2 cases of Boxes; 1 case could not be measured: mean Dice 0.700."
    training.choose_python(script_as_python(tmp_path, f"touch '{report}'; echo '{message}' >&2; exit 2"))
    training.run_command(training.ui.evaluateButton)
    assert [Path(unquote(urlparse(url).path)) for url in dialogs.opened_urls] == [report]
    assert training.ui.resultsStatusLabel.text == message and "color" in training.ui.resultsStatusLabel.styleSheet
    training.choose_python(script_as_python(tmp_path, "echo 'The data set is missing.' >&2; exit 2"))
    training.run_command(training.ui.evaluateButton)
    assert training.ui.resultsStatusLabel.text == "The data set is missing."
    assert len(dialogs.opened_urls) == 1 and training.ui.openEvaluationButton.enabled


def test_chosen_data_set_is_used_if_that_of_the_run_was_moved(
    training: TrainingDriver, trained: Path, data_set: Path, tmp_path: Path
) -> None:
    (trained / "plan.yaml").write_text(f"data: {tmp_path / 'gone'}\n", encoding="utf-8")
    ui = training.ui
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    training.choose_data_set(data_set)
    training.choose_run(trained)

    def arguments() -> list[str]:
        return (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()

    training.run_command(ui.evaluateButton)
    assert arguments()[:5] == ["-m", "conresnet_training", "evaluate", str(trained), str(data_set)]
    training.run_command(ui.importButton)
    assert arguments()[2:4] == ["export", str(trained)] and arguments()[-2:] == ["--data", str(data_set)]
    training.click(ui.resumeButton)
    training.wait(lambda: not training.state == "starting")
    assert arguments()[2:] == ["resume", str(trained), "--data", str(data_set)]
    # It is not used if the data set is at the path in the plan.
    (trained / "plan.yaml").write_text(f"data: {data_set}\n", encoding="utf-8")
    training.run_command(ui.importButton)
    assert "--data" not in arguments()


def test_other_commands_are_enabled_after_a_canceled_or_failed_one(
    training: TrainingDriver, trained: Path, tmp_path: Path
) -> None:
    ui = training.ui
    training.choose_python(script_as_python(tmp_path, "exec sleep 60"))
    training.choose_run(trained)
    training.click(ui.evaluateButton)
    assert not ui.importButton.enabled and not ui.checkpointButton.enabled
    ui.evaluateButton.click()
    training.wait(lambda: ui.evaluateButton.text == "Evaluate")
    assert ui.resultsStatusLabel.text == "Canceled." and ui.importButton.enabled and ui.checkpointButton.enabled
    training.choose_python(script_as_python(tmp_path, "exit 2"))
    training.run_command(ui.importButton)
    assert ui.evaluateButton.enabled and ui.checkpointButton.enabled


def test_output_of_a_command_for_another_run_names_that_run(
    training: TrainingDriver, trained: Path, tmp_path: Path
) -> None:
    ui, other = training.ui, tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    training.choose_python(script_as_python(tmp_path, "sleep 1; echo 'Measured 2 cases.'"))
    training.choose_run(trained)
    training.click(ui.evaluateButton)
    training.choose_run(other)
    training.wait(lambda: ui.evaluateButton.text == "Evaluate")
    assert ui.resultsStatusLabel.text == "run: Measured 2 cases."


def test_output_of_a_test_of_another_python_is_not_shown(training: TrainingDriver, tmp_path: Path) -> None:
    training.choose_python(script_as_python(tmp_path, "sleep 1; echo 'No Python'; exit 1"))
    training.click(training.ui.testPlaceButton)
    training.choose_python(str(tmp_path / "nowhere"))
    # The button stays enabled and keeps the focus while the command runs.
    enabled = []
    training.ui.testPlaceButton.installEventFilter(changes := EnabledChanges(enabled))
    training.widget.placePanel._update()
    assert enabled == [] and training.ui.testPlaceButton.enabled
    training.wait(lambda: training.ui.testPlaceButton.text == "Test")
    assert "does not exist" in training.ui.placeStatusLabel.text
    training.ui.testPlaceButton.removeEventFilter(changes)


@pytest.mark.slow
def test_run_is_evaluated(here: TrainingDriver, data_set: Path) -> None:
    here.use_tiny_plan(data_set, steps=40)
    start(here)
    here.wait(lambda: here.state == "finished")
    here.run_command(here.ui.evaluateButton)
    report = here.job.folder / "evaluation" / "report.html"
    assert report.is_file()
    assert [Path(unquote(urlparse(url).path)) for url in dialogs.opened_urls] == [report]
    assert here.ui.openEvaluationButton.enabled and "mean Dice" in here.ui.resultsStatusLabel.text
