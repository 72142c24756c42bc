"""Processes behind the launcher of Slicer's Python: if only the launcher is ended, its child continues to run."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from ConResSegmentationLib.Processes import ChildProcess, ProcessLaunch


def wait_until(app: object, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        app.processEvents()
        time.sleep(0.01)
        assert time.monotonic() < end


@pytest.mark.parametrize("how", ["stop", "stop with SIGTERM ignored", "drop"])
def test_child_of_launcher_is_ended(slicer_app: object, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[ChildProcess.__module__], "SECONDS_TO_TERMINATE", 1)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if "ignored" in how else ""
    program = f"import os, signal, time; {ignore}print(os.getpid(), flush=True); time.sleep(60)"
    lines, endings = [], []
    launch = ProcessLaunch(shutil.which("PythonSlicer"), ("-c", program), dict(os.environ))
    process = ChildProcess(launch, lambda *ending: endings.append(ending), lines.append)
    process.start()
    wait_until(slicer_app, lambda: lines)
    pid = int(lines[0])
    assert psutil.Process(pid).ppid() != os.getpid()
    getattr(process, how.split()[0])()
    wait_until(slicer_app, lambda: not psutil.pid_exists(pid) and not process.isRunning)
    slicer_app.processEvents()
    assert [code for code, *_texts in endings] == ([] if how == "drop" else [None])
