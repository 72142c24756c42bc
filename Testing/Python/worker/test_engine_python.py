"""The Python that runs the engine: how it is started, and which packages it is missing."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import weakref
from pathlib import Path

import pytest

from conresnet.errors import UserError
from conresnet.needs import ENGINE_PACKAGES
from ConResSegmentationLib.EngineConnection import EngineConnection
from ConResSegmentationLib.EngineProcess import EngineProcess
from ConResSegmentationLib.EnginePython import EngineCheck, EnginePython
from ConResSegmentationLib.Processes import ChildProcess, ProcessLaunch
from worker.client import ENGINE


def checked(app, python: EnginePython) -> EngineCheck:
    """Run a check and return its result."""
    results: list[EngineCheck] = []
    python.check(results.append)
    assert results == [], "it does not wait"
    deadline = time.monotonic() + 60
    while not results:
        assert time.monotonic() < deadline
        app.processEvents()
    return results[0]


def pretend(folder: Path, *lines: str) -> str:
    """Write a program that acts as a Python with the given output."""
    program = folder / "my python ä"
    program.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


def test_slicers_python_gets_slicers_environment(slicer_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "of slicer")
    launch = EnginePython().launch()
    assert Path(launch.program).name == "PythonSlicer"
    assert launch.arguments == ("-m", "conresnet.worker")
    assert launch.environment["PYTHONPATH"] == f"{ENGINE}{os.pathsep}of slicer"
    assert launch.environment["PATH"] == os.environ["PATH"]


def test_other_python_gets_environment_without_slicers_changes(slicer_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "of slicer")
    monkeypatch.setenv("PYTHONHOME", "of slicer")
    launch = EnginePython(sys.executable).launch()
    before = slicer_app.startupEnvironment()
    assert launch.program == sys.executable
    assert launch.environment["PYTHONPATH"].split(os.pathsep)[0] == str(ENGINE)
    assert "of slicer" not in launch.environment["PYTHONPATH"] and "PYTHONHOME" not in launch.environment
    assert launch.environment["PATH"] == before.value("PATH")


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("/no/such/python", "engine-python-not-found"),
        ("no-such-python", "engine-python-not-found"),
        ("/bin/sh", "engine-python-name"),
    ],
)
def test_program_that_is_not_python_is_reported_and_not_run(slicer_app, program: str, code: str) -> None:
    python = EnginePython(program)
    for ask in (python.launch, lambda: python.check(print)):
        with pytest.raises(UserError) as caught:
            ask()
        assert caught.value.code == code and caught.value.values == {"program": program}


def test_slicer_without_python_is_reported(slicer_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="PythonSlicer"):
        EnginePython().launch()


def test_complete_python_passes(slicer_app) -> None:
    assert checked(slicer_app, EnginePython()) == EngineCheck()
    assert checked(slicer_app, EnginePython(sys.executable)) == EngineCheck()


@pytest.mark.parametrize("program", ["", sys.executable])
def test_files_in_working_directory_are_not_imported(
    slicer_app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')\n", encoding="utf-8")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert checked(slicer_app, EnginePython(program)) == EngineCheck()


def test_packages_missing_from_other_python_are_listed_with_install_command(slicer_app, tmp_path: Path) -> None:
    program = pretend(tmp_path, f'exec "{sys.executable}" -S "$@"')
    check = checked(slicer_app, EnginePython(program))
    assert check.missing == tuple(ENGINE_PACKAGES)
    assert f"{program} -m pip install" in check.problem and f'"torch>={ENGINE_PACKAGES["torch"]}"' in check.problem


@pytest.mark.parametrize("line", ["exit 1", "echo hello", "echo 5", "kill -9 $$", "true"])
def test_program_that_is_not_python_is_reported(slicer_app, tmp_path: Path, line: str) -> None:
    check = checked(slicer_app, EnginePython(pretend(tmp_path, line)))
    assert "does not run as a Python" in check.problem and check.missing == ()


def test_program_that_never_responds_is_not_python(slicer_app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ConResSegmentationLib.EnginePython.SECONDS_TO_CHECK", 1)
    check = checked(slicer_app, EnginePython(pretend(tmp_path, "exec sleep 70")))
    assert "does not run as a Python" in check.problem


def test_old_python_is_reported(slicer_app, tmp_path: Path) -> None:
    answer = '{"python": "3.9.10", "python_is_enough": false, "packages": {}, "problems": {}}'
    check = checked(slicer_app, EnginePython(pretend(tmp_path, f"echo '{answer}'")))
    assert "3.9.10" in check.problem and "3.11" in check.problem


def test_outdated_packages_in_slicer_are_reported(slicer_app, tmp_path: Path, monkeypatch) -> None:
    answer = '{"python": "3.12.1", "python_is_enough": true, "packages": {}, "problems": {"torch": "", "numpy": ""}}'
    program = pretend(tmp_path, f"echo '{answer}'")
    os.rename(program, tmp_path / "PythonSlicer")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    check = checked(slicer_app, EnginePython())
    assert "newer Slicer" in check.problem and not check.canInstall


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_no_installation_is_offered_on_intel_mac(slicer_app, tmp_path: Path, monkeypatch, machine: str) -> None:
    answer = {"python": "3.12.10", "python_is_enough": True, "platform": "darwin", "machine": machine}
    answer |= {"packages": {}, "problems": {"torch": "not installed", "safetensors": "0.1 is too old"}}
    os.rename(pretend(tmp_path, f"echo '{json.dumps(answer)}'"), tmp_path / "PythonSlicer")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    check = checked(slicer_app, EnginePython())
    assert check.canInstall == (machine == "arm64")
    assert ("Apple silicon" in check.problem) == (machine == "x86_64")
    assert machine == "arm64" or all(name in check.problem for name in ENGINE_PACKAGES)


def test_newer_check_replaces_running_check(slicer_app, tmp_path: Path) -> None:
    results: list[EngineCheck] = []
    python = EnginePython(pretend(tmp_path, "exec sleep 60"))
    python.check(results.append)
    python.program = sys.executable
    assert checked(slicer_app, python) == EngineCheck()
    assert results == []


def test_finished_process_is_freed(slicer_app) -> None:
    ended: list[int] = []
    process = ChildProcess(EnginePython().launch(), lambda code, _output, _errors: ended.append(code))
    kept = weakref.ref(process)
    process.start()
    del process
    deadline = time.monotonic() + 60
    while not ended:
        assert time.monotonic() < deadline
        slicer_app.processEvents()
    slicer_app.processEvents()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("program", ["", "/bin/nothing"])
def test_stopped_engine_is_freed(slicer_app, program: str) -> None:
    launch = EnginePython().launch()
    launch = ProcessLaunch(program or launch.program, launch.arguments, launch.environment)
    connection = EngineConnection(launch, lambda _message: None, lambda _error: None)
    kept = weakref.ref(connection)
    connection.open()
    connection.close()
    connection.waitUntilClosed()
    del connection
    deadline = time.monotonic() + 20
    while kept() is not None and time.monotonic() < deadline:
        slicer_app.processEvents()
        gc.collect()
    assert kept() is None


@pytest.mark.parametrize("program", ["", sys.executable])
def test_real_engine_responds_with_either_python(slicer_app, program: str) -> None:
    """With and without the launcher, with paths derived from the location of the sources."""

    def launch() -> ProcessLaunch:
        made = EnginePython(program).launch()
        made.environment["OMP_NUM_THREADS"] = "1"
        return made

    engine, devices = EngineProcess(launch), []
    engine.onReady = devices.extend
    engine.start()
    deadline = time.monotonic() + 60
    while not devices:
        assert time.monotonic() < deadline
        slicer_app.processEvents()
    assert devices[0]["name"] == "cpu"
    engine.stop(wait=True)
