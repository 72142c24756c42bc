"""Runs that are stopped, refused or fail: the files that remain, and the messages."""

import contextlib
import copy
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from conresnet.errors import UserError
from conresnet_training.data import samples
from conresnet_training.planning.plan import read_plan, with_settings
from conresnet_training.runs import (
    PROGRESS_FILE,
    RUNNING_FILE,
    STOP_FILE,
    ask_to_stop,
    read_progress,
    running_process,
    sole_process,
)
from conresnet_training.runs.run import Run, start_run
from conresnet_training.training import loop, trainer, validation
from conresnet_training.training.stopping import PARENT_VARIABLE, StopWatch
from conresnet_training.training.trainer import PREPARED_FOLDER, fit
from training.broken_runs import checkpoint
from training.commands import message_of, refused, run_command
from training.tiny_plan import write_tiny_plan


@pytest.fixture
def plan_file(data_set, tmp_path):
    return write_tiny_plan(data_set, tmp_path / "plan.yaml")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@contextlib.contextmanager
def training(*arguments, **environment):
    """Run ``python -m conresnet_training`` in a separate process, which is killed at the end of the block."""
    command = [sys.executable, "-m", "conresnet_training", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def read_until(terminal: int, condition) -> None:
    """Read what a process writes to its terminal, so that it does not block."""
    while not condition():
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)


def points(run: Path) -> int:
    return len(read_progress(run / PROGRESS_FILE).points)


# As in a shell in a SLURM job with four tasks, or of torchrun; a single process still has rank 0.
IN_A_JOB = dict.fromkeys(("RANK", "SLURM_PROCID", "LOCAL_RANK"), "1")
IN_A_JOB |= {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}


def test_running_run_is_detected_protected_and_stopped(data_set, run, tmp_path, monkeypatch, capsys):
    plan = write_tiny_plan(
        data_set, tmp_path / "plan.yaml", "training.steps=100000", "training.steps_between_checkpoints=100000"
    )
    with training("train", plan, "--output", run, **IN_A_JOB) as process:
        wait_for(lambda: points(run) > 1, process)
        assert running_process(run)["pid"] == process.pid
        assert run_command(monkeypatch, "resume", run) == 2
        assert message_of("run-in-use", pid=process.pid, path=run) in capsys.readouterr().err
        assert run_command(monkeypatch, "stop", run) == 0
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    progress = read_progress(run / PROGRESS_FILE)
    assert progress.state == "stopped" and checkpoint(run)["global_step"] == progress.step
    assert errors.splitlines()[-1].startswith(f"{run} stopped at {progress.step} of 100000 steps. ")
    assert running_process(run) is None and not (run / STOP_FILE).exists() and not (run / RUNNING_FILE).exists()
    assert any(run.glob("tensorboard/**/events*")), "only the first of several processes writes them"
    with refused("run-not-running"):
        ask_to_stop(run)

    before, make_step = progress.step, loop.TrainingLoop._make_step

    def end_after_one_step(self, batch):
        make_step(self, batch)
        if self.step == before + 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.TrainingLoop, "_make_step", end_after_one_step)
    capsys.readouterr()
    assert run_command(monkeypatch, "resume", run) == 143
    assert "SIGTERM" in capsys.readouterr().err
    assert checkpoint(run)["global_step"] == read_progress(run / PROGRESS_FILE).step > before


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="Windows closes a window otherwise")
def test_closed_terminal_ends_a_run_with_a_checkpoint(data_set, run, tmp_path, default_signals):
    """Processes that make samples get the hangup, too, but must continue until the end."""
    steps = ("training.steps=100000", "training.steps_between_checkpoints=100000")
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", *steps, "training.workers=1")
    parent_end, child_end = os.openpty()
    command = [sys.executable, "-m", "conresnet_training", "train", str(plan), "--output", str(run)]
    process = subprocess.Popen(command, stdin=child_end, stdout=child_end, stderr=child_end, start_new_session=True)
    try:
        os.close(child_end)
        draining = threading.Thread(target=read_until, args=(parent_end, lambda: points(run) > 1), daemon=True)
        draining.start()
        wait_for(lambda: not draining.is_alive(), process)
        os.close(parent_end)
        # A shell sends a hangup to its jobs, and the system to the shell's jobs when the shell ends.
        for _ in range(2):
            os.killpg(process.pid, signal.SIGHUP)
            time.sleep(0.05)
        process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
    progress = read_progress(run / PROGRESS_FILE)
    assert process.returncode == 128 + signal.SIGHUP
    assert progress.state == "stopped" and checkpoint(run)["global_step"] == progress.step > 0


def test_ignored_signal_stays_ignored(tmp_path, default_signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopWatch(tmp_path) as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.asked()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_empty_parent_variable_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv(PARENT_VARIABLE, "")
    assert not StopWatch(tmp_path).asked()


def test_zombie_parent_counts_as_ended(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as parent:
        monkeypatch.setenv(PARENT_VARIABLE, str(parent.pid))
        stop = StopWatch(tmp_path)
        assert not stop.asked()
        parent.stdin.close()
        # It keeps its process id until the end of this block.
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        assert stop.asked() and stop.status


def test_second_signal_ends_immediately(tmp_path, default_signals):
    with StopWatch(tmp_path) as stop:
        assert not stop.asked()
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked() and "SIGTERM" in stop.reason
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopWatch(tmp_path) as stop:
        assert stop.status == 0
        (tmp_path / STOP_FILE).touch()
        assert stop.asked()


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT"])
def test_signals_of_job_schedulers_have_their_own_status(tmp_path, default_signals, name):
    """They may arrive several times; for example, the CPU time limit sends one every second."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopWatch(tmp_path) as stop:
        signal.raise_signal(number)
        assert stop.asked() and name in stop.reason and stop.status == 128 + number
        if name != "SIGQUIT":
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)
        assert stop.status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_lock_of_a_killed_process_is_free_even_if_its_pid_is_reused(tmp_path):
    code = (
        "import os, pathlib, sys; from conresnet_training.runs import sole_process\n"
        "with sole_process(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"in\n"
        assert running_process(tmp_path)["pid"] == process.pid
        with pytest.raises(UserError) as raised, sole_process(tmp_path):
            pass
        assert raised.value.values["pid"] == process.pid
        process.kill()
        process.wait()
    content = (tmp_path / RUNNING_FILE).read_text(encoding="utf-8").replace(str(process.pid), str(os.getpid()))
    (tmp_path / RUNNING_FILE).write_text(content, encoding="utf-8")
    (tmp_path / STOP_FILE).touch()
    assert running_process(tmp_path) is None
    with sole_process(tmp_path):
        assert not (tmp_path / STOP_FILE).exists()


def test_validation_is_repeated_after_stop_during_validation(plan_file, run, monkeypatch):
    """No step is lost, and the curve has the validation at the same step as an uninterrupted run."""
    original = validation.found_segments

    def stopped(*arguments, **options):
        (run / STOP_FILE).touch()
        return original(*arguments, **options)

    monkeypatch.setattr(validation, "found_segments", stopped)
    assert run_command(monkeypatch, "train", plan_file, "--output", run) == 130
    progress = read_progress(run / PROGRESS_FILE)
    assert (progress.state, progress.step, progress.validations) == ("stopped", 3, [])
    monkeypatch.undo()
    assert run_command(monkeypatch, "resume", run, "--max-steps", "4") == 0
    assert [event["step"] for event in read_progress(run / PROGRESS_FILE).validations] == [3]
    assert checkpoint(run)["global_step"] == 4


def test_non_finite_loss_ends_the_run_and_names_the_case(plan_file, run, monkeypatch, capsys):
    """The case is named, and the previous checkpoint is kept."""
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 1) == 0
    (file,) = (run / "prepared").glob("case_2_*_image.npy")
    image = np.load(file)
    image[:, 5:] = np.nan
    np.save(file, image)
    capsys.readouterr()
    assert run_command(monkeypatch, "resume", run) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    failed = read_progress(run / PROGRESS_FILE).failed
    assert failed["code"] == "not-finite" and failed["cases"] == ["case_2"] and failed["message"] == message
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint(run)["state_dict"].values())
    assert running_process(run) is None


def test_diverging_run_names_all_cases_of_the_step(plan_file, run, monkeypatch, capsys):
    settings = ("--set", "training.learning_rate=1e30", "--set", "training.steps_between_checkpoints=1")
    assert run_command(monkeypatch, "train", plan_file, "--output", run, *settings) == 2
    assert len(read_progress(run / PROGRESS_FILE).failed["cases"]) == 2
    for path in (run / "checkpoints").glob("*"):
        content = torch.load(path, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in content["state_dict"].values())


def test_full_disk_keeps_the_last_checkpoint(plan_file, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 2) == 0
    resource = pytest.importorskip("resource")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        status = run_command(monkeypatch, "resume", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert str(run / "checkpoints") in capsys.readouterr().err
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt"]
    assert read_progress(run / PROGRESS_FILE).failed["code"] == "disk-full"
    assert run_command(monkeypatch, "resume", run, "--max-steps", 3) == 0


def test_unusable_checkpoint_is_named(plan_file, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 1) == 0
    plan = run / "plan.yaml"
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace("base_width: 8", "base_width: 16"), encoding="utf-8")
    assert run_command(monkeypatch, "resume", run) == 2
    expected = message_of("plan-changed", path=plan, part="model.system")
    assert capsys.readouterr().err.strip().splitlines()[-1] == expected
    plan.write_text(text, encoding="utf-8")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK nonsense")
    assert run_command(monkeypatch, "resume", run) == 2
    assert capsys.readouterr().err.strip() == message_of("checkpoint-damaged", path=run / "checkpoints" / "last.ckpt")


def test_run_continues_from_previous_checkpoint_if_latest_is_damaged(plan_file, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 4) == 0
    expected = {name: tensor.clone() for name, tensor in checkpoint(run)["state_dict"].items()}
    newest = run / "checkpoints" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    assert run_command(monkeypatch, "resume", run, "--max-steps", 4) == 0
    assert "best.ckpt, after step 3" in capsys.readouterr().err
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint(run)["state_dict"].items())


def test_run_continues_from_previous_checkpoint_if_latest_is_deleted(plan_file, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 4) == 0
    expected = {name: tensor.clone() for name, tensor in checkpoint(run)["state_dict"].items()}
    (run / "checkpoints" / "last.ckpt").unlink()
    capsys.readouterr()
    assert run_command(monkeypatch, "resume", run, "--max-steps", 4) == 0
    assert "last.ckpt is missing; the run continues from" in capsys.readouterr().err
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint(run)["state_dict"].items())
    assert read_progress(run / PROGRESS_FILE).started["step"] == 3


def test_partial_checkpoint_is_ignored(data_set, run, tmp_path, monkeypatch):
    """It is left by a killed process; the folder may then be used again with other cases."""
    other = write_tiny_plan(data_set, tmp_path / "other.yaml", "training.seed=5")
    (run / "checkpoints").mkdir(parents=True)
    (run / "fold.txt").write_text("0\n", encoding="utf-8")
    (run / "checkpoints" / ".part-1-best.ckpt").write_bytes(b"PK")
    assert run_command(monkeypatch, "train", other, "--output", run, "--max-steps", 1) == 0


CHANGES = {
    "targets": lambda plan: plan["targets"].update({"Near box": [2], "Far box": [1]}),
    "model.preparation": lambda plan: plan["model"]["preparation"].update(spacing=[1, 1, 2]),
    "model.inputs": lambda plan: plan["model"]["inputs"][0].update(intensity=[]),
    "training.optimizer": lambda plan: plan["training"].update(optimizer="sgd"),
}


def test_plan_changes_that_affect_learning_are_refused(plan_file, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 1) == 0
    plan = run / "plan.yaml"
    content = yaml.safe_load(plan.read_text(encoding="utf-8"))
    content["training"]["learning_rate"], content["model"]["title"] = 1e-3, "Another title"
    plan.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run_command(monkeypatch, "resume", run, "--max-steps", 2) == 0
    for part, change in CHANGES.items():
        changed = copy.deepcopy(content)
        change(changed)
        plan.write_text(yaml.safe_dump(changed), encoding="utf-8")
        capsys.readouterr()
        for command in (("resume", run), ("evaluate", run), ("export", run, "--output", run.parent / "package")):
            assert run_command(monkeypatch, *command) == 2
            expected = message_of("plan-changed", path=plan, part=part)
            assert capsys.readouterr().err.strip().splitlines()[-1] == expected


def test_changed_case_gets_a_warning_on_resume(plan_file, data_set, run, monkeypatch, capsys):
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 1) == 0
    os.utime(data_set / "labelsTr" / "case_1.nii.gz", (1, 1))
    capsys.readouterr()
    assert run_command(monkeypatch, "resume", run, "--max-steps", 2) == 0
    assert "Case case_1 has changed since the run began" in capsys.readouterr().err


def test_run_that_failed_before_its_first_checkpoint_can_be_restarted(plan_file, data_set, run, monkeypatch):
    """Refused immediately, it leaves no folder; refused for a case, it leaves one that the corrected command uses."""
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--devices", 3) == 2
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--set", "training.folds=7", "--fold", 6) == 2
    assert not run.exists()
    label = data_set / "labelsTr" / "case_5.nii.gz"
    content = label.read_bytes()
    label.write_bytes(b"")
    assert run_command(monkeypatch, "train", plan_file, "--output", run) == 2
    assert read_progress(run / PROGRESS_FILE).state == "failed"
    label.write_bytes(content)
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 1, "--fold", 1) == 0
    assert (run / "fold.txt").read_text(encoding="utf-8") == "1\n"
    assert run_command(monkeypatch, "train", plan_file, "--output", run) == 2, "now it has learned something"


def test_data_without_foreground_are_refused_before_the_first_step(plan_file, data_set, run, monkeypatch, capsys):
    for path in (data_set / "labelsTr").iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    assert run_command(monkeypatch, "train", plan_file, "--output", run) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == message_of("no-foreground", path=data_set)


def test_out_of_memory_is_reported(plan_file, run, monkeypatch, capsys):
    """The error is also recorded in the progress file."""
    monkeypatch.setattr(loop.TrainingLoop, "_make_step", lambda *_: torch.empty(2**52))
    assert run_command(monkeypatch, "train", plan_file, "--output", run) == 2
    assert message_of("training-out-of-memory", path=run) in capsys.readouterr().err
    assert read_progress(run / PROGRESS_FILE).failed["code"] == "training-out-of-memory"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_killed_sample_process_is_reported(data_set, run, tmp_path, monkeypatch, capsys):
    """The message names the setting for the number of processes."""
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.workers=1")
    monkeypatch.setattr(samples.TrainingSamples, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert run_command(monkeypatch, "train", plan, "--output", run) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "A process that made samples" in error and "training.workers" in error


def test_run_with_more_steps_than_planned_is_finished(plan_file, run):
    """Its last step is validated, although no checkpoint was due there."""
    plan = read_plan(plan_file)
    started = start_run(plan, run, 0)
    fit(started, 5)
    shorter = Run(run, with_settings(plan, ["training.steps=2"]), 0)
    outcome = fit(shorter)
    assert (outcome.step, outcome.steps, outcome.finished) == (5, 2, True)
    assert [event["step"] for event in read_progress(run / PROGRESS_FILE).validations] == [3, 5]
    assert not (run / PREPARED_FOLDER).exists()
    assert fit(shorter).finished


def test_of_two_runs_started_in_one_folder_the_locked_one_writes_it(data_set, tmp_path, monkeypatch):
    """Otherwise, the folder would name another fold than the one that was held out."""
    plan, folder = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml")), tmp_path / "run"
    lock = trainer.sole_process

    @contextlib.contextmanager
    def lock_after_another(place):
        start_run(plan, place, 1)
        with lock(place):
            yield

    monkeypatch.setattr(trainer, "sole_process", lock_after_another)
    fit(Run(folder, plan, 0), 1, is_new=True)
    assert (folder / "fold.txt").read_text(encoding="utf-8") == "0\n"
    assert "case_0" in (folder / "split.json").read_text(encoding="utf-8").split("held_out")[1]
    with refused("run-exists"):
        fit(Run(folder, plan, 2), 1, is_new=True)


def test_deleted_run_folder_is_reported(data_set, tmp_path, monkeypatch):
    plan, folder = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml")), tmp_path / "run"
    make_step = loop.TrainingLoop._make_step

    def make_last_step(self, batch):
        make_step(self, batch)
        shutil.rmtree(folder)

    monkeypatch.setattr(loop.TrainingLoop, "_make_step", make_last_step)
    # Also if the run was named relative to the current folder.
    monkeypatch.chdir(tmp_path)
    with refused("run-files-gone"):
        fit(Run(Path("run"), plan, 0), is_new=True)
