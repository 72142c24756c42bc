"""Several processes: for samples, for sharing a batch, and for cross-validation."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from conresnet.errors import UserError
from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import read_evaluation
from conresnet_training.planning.plan import read_plan, with_settings, write_plan
from conresnet_training.runs import (
    PROGRESS_FILE,
    RUNNING_FILE,
    STOP_FILE,
    ask_to_stop,
    read_progress,
    running_process,
)
from conresnet_training.runs.cross_validation import Fold, check_same_cases, cross_validate, open_folds
from conresnet_training.runs.run import start_run
from conresnet_training.training.trainer import as_user_error
from training.broken_runs import checkpoint
from training.commands import message_of, refused, run_command
from training.tiny_plan import write_tiny_plan
from training.trained_runs import end_run, finished_folds, finished_run, small_plan


def train(*arguments) -> subprocess.CompletedProcess:
    """Train in a separate process, since it starts processes in the same way as it was started."""
    command = [sys.executable, "-m", "conresnet_training", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_two_processes_give_same_steps_as_one(data_set, tmp_path, monkeypatch):
    """With Gloo, a batch of 4 in one process or 2 in each of two, without dropout, up to floating-point order."""
    plan = write_tiny_plan(
        data_set,
        tmp_path / "plan.yaml",
        "training.batch=4",
        "training.steps=4",
        "training.steps_between_checkpoints=2",
        "training.learning_rate=0.0005",
        "training.boundary=true",
        "training.weight_average=0.5",
        "model.inference.window=[8, 8, 8]",
        "model.system.networks.0.arguments.dropout=0",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_command(monkeypatch, "train", plan, "--output", one) == 0
    done = train("train", plan, "--output", two, "--devices", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is finished") == 1 and done.stdout.count("mean Dice") == 2
    single, shared = checkpoint(one), checkpoint(two)
    assert single["global_step"] == shared["global_step"] == 4
    for key in ("state_dict", "training_state_dict"):
        for name, tensor in single[key].items():
            torch.testing.assert_close(
                shared[key][name], tensor, rtol=1e-4, atol=2e-5, msg=lambda text, n=name: n + text
            )
    ones, twos = (read_progress(run / PROGRESS_FILE) for run in (one, two))
    assert twos.started["devices"] == 2
    for first, second in zip(ones.validations, twos.validations, strict=True):
        assert second["dice_a_segment"] == pytest.approx(first["dice_a_segment"], abs=0.02)
    for first, second in zip(ones.points, twos.points, strict=True):
        for name in ("loss", "segmentation_loss", "residual_loss", "boundary_loss"):
            assert second[name] == pytest.approx(first[name], rel=1e-3)


@contextlib.contextmanager
def starting_child(*arguments):
    """Run a command in a process group of its own, until it has started another process."""
    command, pipe = [sys.executable, "-m", "conresnet_training", *map(str, arguments)], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or psutil.Process(process.pid).children())
        yield process, *psutil.Process(process.pid).children()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def long_plan(data_set, tmp_path):
    steps = ("training.batch=4", "training.steps=100000", "model.inference.window=[8, 8, 8]")
    return write_tiny_plan(data_set, tmp_path / "plan.yaml", *steps)


@pytest.mark.skipif(os.name == "nt", reason="signals a group of processes")
@pytest.mark.parametrize("command, run", [("train", "."), ("crossval", "fold_0")])
def test_ctrl_c_while_another_process_starts_stops_the_run(long_plan, tmp_path, default_signals, command, run):
    """A terminal sends it to every process."""
    options = ("--devices", 2) if command == "train" else ("--folds", 0)
    with starting_child(command, long_plan, "--output", tmp_path / "run", *options) as (process, _child):
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert read_progress(tmp_path / "run" / run / PROGRESS_FILE).state == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="signals a group of processes")
def test_process_that_dies_while_it_starts_is_reported(long_plan, tmp_path):
    run = tmp_path / "run"
    with starting_child("train", long_plan, "--output", run, "--devices", 2) as (process, child):
        child.kill()
        _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and message_of("process-lost", path=run) in error
    assert read_progress(run / PROGRESS_FILE).failed["code"] == "process-lost"


SURVIVOR = """
import os, pickle, signal, sys
import torch
import torch.distributed as dist
child = os.fork()
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(child == 0), world_size=2)
dist.all_reduce(torch.ones(1))
if child == 0:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        dist.all_reduce(torch.ones(1))
except Exception as error:
    sys.stdout.buffer.write(pickle.dumps(error))
"""


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_loss_of_another_process_is_reported(tmp_path):
    command = [sys.executable, "-c", SURVIVOR, str(tmp_path / "store")]
    raised = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=True).stdout
    assert as_user_error(pickle.loads(raised), "run").code == "process-lost"


def test_batch_not_divisible_by_processes_is_refused(data_set, tmp_path, monkeypatch, capsys):
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml")
    assert run_command(monkeypatch, "train", plan, "--output", tmp_path / "run", "--devices", 3) == 2
    assert message_of("batch-not-divisible", batch=2, processes=3) in capsys.readouterr().err


def test_more_processes_than_processor_cores_are_refused(data_set, tmp_path, monkeypatch, capsys):
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    arguments = ("train", plan, "--output", tmp_path / "run", "--device", "cpu", "--devices", 2)
    assert run_command(monkeypatch, *arguments) == 2
    assert message_of("more-processes-than-cores", devices=2, cores=1) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_sample_processes_do_not_change_the_result(data_set, tmp_path, monkeypatch):
    weights, short = [], ("training.steps=4", "training.steps_between_checkpoints=4")
    for workers in (0, 2):
        plan = write_tiny_plan(data_set, tmp_path / f"{workers}.yaml", f"training.workers={workers}", *short)
        run = tmp_path / str(workers)
        assert run_command(monkeypatch, "train", plan, "--output", run, "--max-steps", 3) == 0
        assert run_command(monkeypatch, "resume", run) == 0
        weights.append(checkpoint(run)["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.usefixtures("empty_pictures")
def test_cross_validation_resumes_and_measures_every_case_once(data_set, tmp_path, monkeypatch, capsys):
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.folds=2", "training.steps=2")
    folder = tmp_path / "plan_crossval"
    monkeypatch.chdir(tmp_path)
    arguments = ("crossval", plan, "--set", "training.steps_between_checkpoints=2")
    assert run_command(monkeypatch, "train", plan, "--output", folder / "fold_1", "--fold", 1, *arguments[2:]) == 0
    finished = (folder / "fold_1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    assert run_command(monkeypatch, *arguments, "--jobs", 2) == 0
    captured = capsys.readouterr()
    assert "Fold 1 is already trained." in captured.out and "Fold 0 is trained." in captured.out
    last = captured.err.splitlines()[-1]
    assert "Trained 2 folds and measured 6 cases" in last
    assert last.endswith(f"See {Path(folder.name) / 'evaluation' / 'report.html'}.")
    assert (folder / "fold_1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == finished
    log = (folder / "fold_0.log").read_text(encoding="utf-8")
    assert "is finished, 2 of 2 steps." in log and "export" not in log
    evaluation = read_evaluation(folder / "evaluation")
    assert sorted(evaluation.cases) == [f"case_{number}" for number in range(6)]

    assert run_command(monkeypatch, *arguments, "--set", "training.seed=5") == 2
    assert (
        message_of("crossval-plan-differs", path=folder.name, plan=f"{folder.name}/crossval.yaml")
        in capsys.readouterr().err
    )
    assert run_command(monkeypatch, *arguments, "--folds", "one") == 2
    assert "is not a list of folds" in capsys.readouterr().err


def test_fold_of_a_killed_cross_validation_saves_a_checkpoint(data_set, tmp_path):
    steps = ("training.steps=100000", "training.steps_between_checkpoints=100000")
    plan, folder = write_tiny_plan(data_set, tmp_path / "plan.yaml", *steps), tmp_path / "folds"
    run = folder / "fold_0"
    command = [sys.executable, "-m", "conresnet_training", "crossval", str(plan), "--output", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: read_progress(run / PROGRESS_FILE).points or process.poll() is not None)
        process.kill()
        process.wait()
        wait_until(lambda: running_process(run) is None)
    finally:
        process.kill()
        with contextlib.suppress(UserError):
            ask_to_stop(run)
    progress = read_progress(run / PROGRESS_FILE)
    assert progress.state == "stopped" and checkpoint(run)["global_step"] == progress.step > 0


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_parallel_folds_get_one_gpu_each(data_set, tmp_path, monkeypatch, capsys):
    """The command sees two simulated GPUs, and a shell script that prints the arguments for a fold's process."""
    plan, folder = write_tiny_plan(data_set, tmp_path / "plan.yaml"), tmp_path / "folds"
    shell = tmp_path / "python"
    shell.write_text('#!/bin/sh\necho "$@"\nexit 2\n', encoding="utf-8")
    shell.chmod(0o755)
    with monkeypatch.context() as doubles:
        doubles.setattr(torch.cuda, "device_count", lambda: 2)
        doubles.setattr("conresnet_training.runs.cross_validation.sys", SimpleNamespace(executable=str(shell)))
        assert run_command(monkeypatch, "crossval", plan, "--output", folder, "--jobs", 2, "--folds", "0,1") == 2
    for fold in (0, 1):
        words = (folder / f"fold_{fold}.log").read_text(encoding="utf-8").split()
        assert words[:3] == ["-m", "conresnet_training", "resume"] and words[4:6] == ["--device", f"cuda:{fold}"]
    capsys.readouterr()
    # The process uses this device.
    assert run_command(monkeypatch, "resume", folder / "fold_1", "--device", "cuda:99") == 2
    expected = message_of("device-unavailable", device="cuda:99", torch=torch.__version__)
    assert expected in capsys.readouterr().err


def test_failed_fold_resumes_with_its_own_training_settings(data_set, tmp_path):
    """As its error message says: "lower the learning rate in .../fold_0/plan.yaml, and resume"."""
    plan = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml"))
    folder = tmp_path / "folds"
    open_folds(plan, folder, [0, 1])
    changed = folder / "fold_0" / "plan.yaml"
    write_plan(with_settings(plan, ["training.learning_rate=0.001", "augmentation.noise=0"]), changed)
    first, second = open_folds(plan, folder, [0, 1])
    assert (first.plan.training.learning_rate, second.plan.training.learning_rate) == (0.001, 0.002)
    for setting in ("model.preparation.spacing=[1, 1, 2]", "training.folds=2", "targets.Near box=[1, 3]"):
        write_plan(with_settings(plan, [setting]), changed)
        with refused("fold-plan-differs"):
            open_folds(plan, folder, [0, 1])
    write_plan(plan, changed)
    with refused("crossval-plan-differs", plan=str(folder / "crossval.yaml")):
        open_folds(with_settings(plan, ["training.learning_rate=0.001"]), folder, [0, 1])
    assert read_plan(folder / "crossval.yaml") == plan


def add_case(data_set: Path) -> None:
    """Add a case that comes first by name, so that a new split would hold out other cases."""
    description = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(data_set / kind / "case_0.nii.gz", data_set / kind / "a_case.nii.gz")
    description["training"].append({"image": "imagesTr/a_case.nii.gz", "label": "labelsTr/a_case.nii.gz"})
    (data_set / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def test_no_further_fold_is_started_if_cases_were_added_meanwhile(data_set, tmp_path, monkeypatch):
    """The command "true" stands in for the folds' processes."""
    plan, folder, said = small_plan(data_set), tmp_path / "folds", []
    monkeypatch.setattr(
        "conresnet_training.runs.cross_validation.sys", SimpleNamespace(executable=shutil.which("true"))
    )

    def say(message):
        said.append(message)
        if message == "Training fold 0.":
            finished_run(plan, folder / "fold_0", 0)
        elif message == "Fold 0 was stopped.":
            add_case(data_set)

    with refused("crossval-cases-differ", run=str(folder / "fold_0"), what="a_case"):
        cross_validate(plan, folder, [0, 1, 2], 1, None, lambda place: [], say)
    assert said == ["Training fold 0.", "Fold 0 was stopped."]


def test_starting_folds_after_adding_cases_is_refused(data_set, tmp_path, monkeypatch, capsys):
    """With a new split, two cases would be held out twice, and three never."""
    plan, folder = small_plan(data_set), tmp_path / "folds"
    finished_run(plan, folder / "fold_0", 0)
    write_plan(plan, tmp_path / "plan.yaml")
    add_case(data_set)
    assert run_command(monkeypatch, "crossval", tmp_path / "plan.yaml", "--output", folder) == 2
    expected = message_of("crossval-cases-differ", run=folder / "fold_0", data="Boxes", what="a_case")
    assert capsys.readouterr().err.strip() == expected
    assert sorted(path.name for path in folder.iterdir()) == ["fold_0"]
    # There is no new split once every fold has started.
    check_same_cases(plan, folder, [0], read_data_set(data_set))


def test_cross_validation_can_be_stopped_while_it_evaluates(data_set, tmp_path, monkeypatch):
    plan, folder = small_plan(data_set), tmp_path / "folds"
    plan.training.steps = 7
    for run in finished_folds(plan, folder):
        end_run(run, 7)
    write_plan(plan, tmp_path / "plan.yaml")
    arguments = ("crossval", tmp_path / "plan.yaml", "--output", folder)

    def stop(*_):
        # This process cannot see its own lock, but others can.
        assert (folder / RUNNING_FILE).exists()
        (folder / STOP_FILE).touch()

    with monkeypatch.context() as doubles:
        doubles.setattr("conresnet_training.evaluation.runs.compare_label_maps", stop)
        assert run_command(monkeypatch, *arguments) == 130
    assert [path.name for path in (folder / "evaluation" / "segmentations").iterdir()] == ["case_0.nii.gz"]
    assert not (folder / RUNNING_FILE).exists() and not (folder / STOP_FILE).exists()


@pytest.mark.parametrize(
    ("end", "step", "last", "done"),
    [
        ("finished", 12, 5, True),
        ("finished", 12, 12, True),
        ("stopped", 5, 5, True),
        ("stopped", 4, 5, False),
        # Only its last validation remains.
        ("stopped", 12, 12, False),
        ("failed", 5, 5, False),
        # A fold's own plan may have more steps than the others', even after the fold was finished.
        ("stopped", 10, None, False),
        ("finished", 10, None, False),
        ("finished", 20, None, True),
    ],
)
def test_fold_is_done_after_its_last_validation(data_set, tmp_path, end, step, last, done):
    run = start_run(read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml")), tmp_path / "run", 0)
    end_run(run, 12, end, step)
    assert Fold(run).is_done(last) is done


def test_stop_request_at_the_end_of_the_last_fold_prevents_the_evaluation(data_set, tmp_path):
    plan, folder = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml")), tmp_path / "folds"
    folder.mkdir()
    end_run(start_run(plan, folder / "fold_0", 0), 12)
    said = []

    def say(message):
        said.append(message)
        (folder / STOP_FILE).touch()

    _, status = cross_validate(plan, folder, [0], 1, None, lambda place: [], say)
    assert said == ["Fold 0 is already trained."] and status == 130


@pytest.mark.slow
def test_failed_fold_is_named_and_others_are_trained(data_set, tmp_path, monkeypatch, capsys):
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.steps=2")
    folder = tmp_path / "folds"
    arguments = ("crossval", plan, "--output", folder, "--folds", "0,2")
    assert run_command(monkeypatch, "train", plan, "--output", folder / "fold_0", "--max-steps", 1) == 0
    (folder / "fold_0" / "checkpoints" / "last.ckpt").write_bytes(b"")
    capsys.readouterr()
    assert run_command(monkeypatch, *arguments) == 2
    assert message_of("fold-failed", path=folder, folds="0") in capsys.readouterr().err
    assert checkpoint(folder / "fold_2")["global_step"] == 2
