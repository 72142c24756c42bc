"""How the module follows a run by its files, on this computer or another, even after Slicer was closed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PySide6 import QtCore, QtTest

from conresnet_training.runs import PROGRESS_FILE, RUNNING_FILE, ProgressWriter
from training_module.training_driver import TrainingDriver

STARTED = {"step": 0, "steps": 100, "host": "cluster-7", "pid": 4, "segments": ["A"], "device": "cuda", "fold": 0}


def write_run(folder: Path, **step: object) -> Path:
    """Write the folder of a run that is training on another computer."""
    folder.mkdir()
    writer = ProgressWriter(folder / PROGRESS_FILE)
    writer.write("started", **STARTED)
    writer.write("step", step=10, loss=0.7, segmentation_loss=0.6, seconds_left=200.0, **step)
    writer.write("validation", step=10, dice=0.8, dice_a_segment={"A": 0.8}, best=True)
    writer.close()
    running = {"pid": 4, "host": "cluster-7", "started": "2026-01-01T00:00:00+00:00"}
    (folder / RUNNING_FILE).write_text(json.dumps(running), encoding="utf-8")
    return folder


def test_run_on_another_computer_is_followed_until_its_progress_stops(training: TrainingDriver, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples_per_second=0.0416, gpu_memory=2_100_000_000)
    training.choose_run(run)
    training.settle()
    assert training.state == "training"
    text = training.ui.runStatusLabel.text
    assert text == (
        "Step 10 of 100; about 3 min left; 0.042 samples/s; 2.1 GB of GPU memory; Dice 0.800, best 0.800; on cluster-7."
    )
    assert training.ui.progressBar.value == 100 and training.ui.stopButton.enabled
    # Its process cannot be killed from here, so a second click only asks it to stop again.
    training.click(training.ui.stopButton)
    assert (run / "stop").exists() and training.state == "stopping"
    training.click(training.ui.stopButton)
    # Its progress file was not written for a long time.
    (run / "stop").unlink()
    long_ago = time.time() - 3600
    os.utime(run / PROGRESS_FILE, (long_ago, long_ago))
    training.widget.jobPanel.look()
    assert training.state == "died" and "ended unexpectedly after step 10" in training.ui.runStatusLabel.text
    # The deleted run cannot be resumed.
    shutil.rmtree(run)
    training.open()
    text = "Training ended unexpectedly after step 10, and its folder no longer exists."
    assert training.ui.runStatusLabel.text == text and not training.ui.resumeButton.enabled


def test_run_that_stops_during_a_look_did_not_end_unexpectedly(
    training: TrainingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    training.choose_run(run)
    reader = training.job._reader
    events_before = reader.new_events

    def stop_after_reading() -> list[dict]:
        events = events_before()
        writer = ProgressWriter(run / PROGRESS_FILE)
        writer.write("stopped", step=10)
        writer.close()
        (run / RUNNING_FILE).unlink()
        monkeypatch.undo()
        return events

    monkeypatch.setattr(reader, "new_events", stop_after_reading)
    training.widget.jobPanel.look()
    assert training.state == "training" and "unexpectedly" not in training.ui.runStatusLabel.text
    training.wait(lambda: training.state == "stopped")


def test_typing_a_path_shows_no_other_runs(training: TrainingDriver, tmp_path: Path) -> None:
    for name in ("run-1", "run-12"):
        write_run(tmp_path / name)
        (tmp_path / f"{name}.log").write_text(f"This is {name}.\n", encoding="utf-8")
    # Even on a slow computer, the path counts as still being typed.
    training.widget.jobPanel._path._timer.interval = 3_600_000
    edit = training.ui.runPathEdit.comboBox().lineEdit()
    for letter in str(tmp_path / "run-12"):
        QtTest.QTest.keyClicks(edit, letter)
        training.settle()
        assert training.job is None and training.state == "none"
    QtTest.QTest.keyClick(edit, QtCore.Qt.Key.Key_Return)
    training.settle()
    assert training.state == "training" and training.job.folder == tmp_path / "run-12"
    assert "This is run-12." in training.log
    assert "This is run-1." not in training.log and training.ui.runsSelector.count == 1
    assert training.ui.runsSelector.currentText == "run-12: training"


def test_previous_run_cannot_be_stopped_while_another_path_is_typed(training: TrainingDriver, tmp_path: Path) -> None:
    for name in ("run-1", "run-2"):
        write_run(tmp_path / name)
    training.choose_run(tmp_path / "run-1")
    assert training.ui.stopButton.enabled
    training.ui.runPathEdit.currentPath = str(tmp_path / "run-2")
    assert training.job is None and not training.ui.stopButton.enabled and not training.ui.curvesButton.enabled
    training.wait(lambda: training.ui.stopButton.enabled)
    assert training.job.folder == tmp_path / "run-2"
    # Opening the module reads the run immediately.
    training.ui.runPathEdit.currentPath = str(tmp_path / "run-1")
    training.open()
    assert training.job.folder == tmp_path / "run-1"


def test_run_whose_data_set_was_moved_uses_the_chosen_one(
    training: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    training.choose_python(sys.executable)
    training.choose_data_set(data_set)
    training.choose_run(run)
    for folder, options in ((data_set, ()), (tmp_path / "gone", ("--data", str(data_set)))):
        (run / "plan.yaml").write_text(f"data: {json.dumps(str(folder))}\n", encoding="utf-8")
        assert training.widget.jobPanel.dataOptions() == options


def test_failed_run_shows_its_error_and_nan_is_left_out_of_its_curve(training: TrainingDriver, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    writer = ProgressWriter(run / PROGRESS_FILE)
    writer.write("step", step=20, loss=float("nan"), segmentation_loss=float("nan"))
    writer.write("failed", code="loss-not-finite", message="The loss of step 20 is not a number: case_1, case_4.")
    writer.close()
    training.choose_run(run)
    training.settle()
    assert training.state == "failed"
    assert training.ui.runStatusLabel.text == "The loss of step 20 is not a number: case_1, case_4."
    training.click(training.ui.curvesButton)
    assert training.points() == 2


def test_earlier_runs_are_listed_without_reading_all_their_progress(training: TrainingDriver, tmp_path: Path) -> None:
    from ConResTrainingLib.JobPanel import addRecentRun
    from ConResTrainingLib.TrainingJob import JobState, TrainingJob

    run = tmp_path / "long run"
    run.mkdir()
    writer = ProgressWriter(run / PROGRESS_FILE)
    writer.write("started", **STARTED)
    line = json.dumps({"event": "step", "time": 1, "step": 5, "loss": 0.5}).encode() + b"\n"
    writer.close()
    with open(run / PROGRESS_FILE, "ab") as file:
        file.write(line * 500_000)
        file.write(json.dumps({"event": "finished", "time": 2, "step": 100}).encode() + b"\n")
    addRecentRun(run)
    started = time.process_time()
    assert TrainingJob.glance(run).state is JobState.finished
    glance = time.process_time() - started
    started = time.process_time()
    TrainingJob(run).look()
    assert glance < (time.process_time() - started) / 20
    training.choose_run(tmp_path / "another")
    training.settle()
    assert training.ui.runsSelector.itemText(0) == "long run: finished"


@pytest.mark.skipif(os.name == "nt", reason="kills a process group")
def test_run_continues_if_slicer_and_all_its_children_are_killed(repository: Path, tmp_path: Path) -> None:
    backend = tmp_path / "backend"
    backend.write_text(f'#!/bin/sh\necho started\nsleep 2\necho "survived ü" > "{tmp_path}/answer"\n', encoding="utf-8")
    backend.chmod(0o755)
    program = """
import sys, time
from pathlib import Path
import slicer_host
from ConResSegmentationLib.Processes import ProcessLaunch
from ConResTrainingLib.TrainingJob import TrainingJob
job = TrainingJob(Path(sys.argv[2]))
job.start(ProcessLaunch(sys.argv[1], (), {}))
print("up", flush=True)
time.sleep(60)
"""
    paths = [repository / name for name in ("Testing/SlicerHost", "ConResSegmentation", "ConResTraining")]
    slicer = subprocess.Popen(
        [sys.executable, "-c", program, str(backend), str(tmp_path / "a run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert slicer.stdout.readline() == b"up\n"
    os.killpg(slicer.pid, signal.SIGKILL)
    slicer.wait()
    slicer.stdout.close()
    end = time.monotonic() + 30
    while not (tmp_path / "answer").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "answer").read_text(encoding="utf-8") == "survived ü\n"
    assert "started" in (tmp_path / "a run.log").read_text(encoding="utf-8")
