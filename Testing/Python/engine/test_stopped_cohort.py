"""Many cases, stopped by Ctrl-C in a terminal, which also reaches the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conresnet.cli import _terminable, cohort, main
from conresnet.cli.workers import Workers, in_one_piece
from engine.cohort_runs import run_cohort, table

# If Dask's own cleanup is interrupted, it waits for 10 s.
_SOON = 8.0


@pytest.fixture
def start(hippocampus_image: Path, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start a command for three cases, with its processes in their own process group, as in a terminal."""
    cases = tmp_path / "list.csv"
    cases.write_text("\n".join(["name,T1", *(f"case {n},{hippocampus_image}" for n in range(3))]), encoding="utf-8")

    def begin(*options: object) -> subprocess.Popen:
        arguments = ["segment", "--model", "hippocampus", "--cases", cases, "--output", tmp_path / "out", *options]
        return subprocess.Popen(
            [sys.executable, "-m", "conresnet", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            # Processes that a shell starts in the background, such as these tests, and their children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return begin


def interrupted(job: subprocess.Popen) -> tuple[list[str], float]:
    """Press Ctrl-C, and return the lines that the command still prints and the seconds until it ends."""
    began = time.monotonic()
    os.killpg(job.pid, signal.SIGINT)
    output = job.communicate(timeout=100)[0]
    assert job.returncode == 130 and "Traceback" not in output, output
    return [line for line in output.splitlines() if line], time.monotonic() - began


def test_stop_at_the_end_reports_that_all_cases_are_done(start, tmp_path: Path) -> None:
    with start("--jobs", 2) as job:
        while "3 of 3 cases" not in (line := job.stdout.readline()):
            assert line, "it ended before"
        lines, seconds = interrupted(job)
    assert lines[-2:] == ["All 3 cases are segmented.", "Stopped."] and seconds < _SOON
    assert (tmp_path / "out" / "cohort.html").is_file()


def test_workers_print_nothing_if_stopped_at_the_start(start, tmp_path: Path) -> None:
    with start("--jobs", 2) as job:
        # The first one is Python's resource tracker.
        while len(psutil.Process(job.pid).children()) < 2:
            assert job.poll() is None
            time.sleep(0.01)
        lines, _seconds = interrupted(job)
    assert lines == ["Segmented 0 of 3 cases. To continue, repeat the command.", "Stopped."]
    assert not (tmp_path / "out").exists()


def test_stop_without_jobs_explains_how_to_continue(start, data_folder: Path, tmp_path: Path, capsys) -> None:
    cases = tmp_path / "list.csv"
    first, whole_head = cases.read_text(encoding="utf-8").splitlines()[:2], data_folder / "IXI_T1_2mm/IXI034.nii.gz"
    cases.write_text("\n".join([*first, f"case 1,{whole_head}"]), encoding="utf-8")
    with start("--overwrite") as job:
        assert "case 0" in job.stdout.readline() and "1 of 2 cases, about" in job.stdout.readline()
        lines, _seconds = interrupted(job)
    how = "Segmented 1 of 2 cases. To continue, repeat the command without --overwrite."
    out = tmp_path / "out"
    assert lines == [f"Wrote {out / 'cohort.csv'} and {out / 'cohort.html'}.", how, "Stopped."]
    report = out / "case 0" / "report.json"
    before = report.read_bytes()
    cases.write_text("\n".join(first), encoding="utf-8")
    again = ["segment", "--model", "hippocampus", "--cases", cases, "--output", out]
    assert main([*map(str, again)]) == 0
    assert "Kept" in capsys.readouterr().out and report.read_bytes() == before


@pytest.mark.parametrize("presses", [1, 2])
def test_work_is_finished_if_interrupted_while_its_thread_starts(presses: int, monkeypatch) -> None:
    start, may_go_on, finished = threading.Thread.start, threading.Event(), []

    def start_interrupted(thread: threading.Thread) -> None:
        start(thread)
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        may_go_on.set()

    def work() -> None:
        may_go_on.wait(60)
        time.sleep(0.2)
        finished.append(True)

    monkeypatch.setattr(threading.Thread, "start", start_interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_one_piece(work)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        may_go_on.set()
        signal.signal(signal.SIGINT, before)
    assert finished == ([True] if presses == 1 else [])


class Interrupting:
    """Presses Ctrl-C in its destructor, in which Python ignores exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("is_waiting", [True, False])
def test_interruption_in_a_destructor_is_not_lost(tmp_path: Path, monkeypatch, is_waiting: bool) -> None:
    def segmented(workers: Workers, waiting: object) -> Iterator[cohort.Outcome]:
        yield cohort.Outcome("a", cohort.DONE, volumes_ml={"Body": 1.0}, seconds=1.0)
        Interrupting()
        if is_waiting:
            workers.wait_for_any()
            pytest.fail("it waited for another case")

    monkeypatch.setattr(cohort, "connected", lambda jobs, scheduler: contextlib.nullcontext())
    monkeypatch.setattr(cohort, "_segmented", segmented)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_cohort(["a"], tmp_path, jobs=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert table(tmp_path)["a"]["state"] == "segmented"


def signaled(number: int) -> list[bool]:
    """Send a signal during work in one piece, and return what it has finished when the signal has taken effect."""
    finished = []

    def work() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        finished.append(True)

    with contextlib.suppress(KeyboardInterrupt):
        in_one_piece(work)
        finished.append(False)
    return finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_is_finished_before_any_signal_ends_the_command(number: int) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _terminable() as heard:
            assert signaled(number) == [True]
            # The next one must not interrupt the cleanup.
            signal.raise_signal(signal.SIGINT)
        assert heard == [number, signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stays_ignored_during_work_in_one_piece() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert signaled(signal.SIGINT) == [True, False]
    finally:
        signal.signal(signal.SIGINT, before)
