"""What the module reports when the engine fails; an engine that ends leaves no files or processes behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from conresnet.errors import UserError
from conresnet.worker import remove_session
from ConResSegmentationLib.EngineProcess import EngineError, EngineProcess
from ConResSegmentationLib.Processes import ProcessLaunch
from worker.client import FAKE, NO_FILES, engine_environment, is_alive, wait_until
from worker.engine_driver import Driver


@pytest.mark.parametrize("how", ["segmentation fault", "killed"])
def test_crash_is_reported_and_next_request_restarts_engine(driver: Driver, image: np.ndarray, how: str) -> None:
    recorder = driver.segment("crashing" if how == "segmentation fault" else "patient", image)
    driver.until(lambda: driver.engine.isRunning)
    pid = driver.hello["pid"]
    if how == "killed":
        driver.until(lambda: recorder.fractions)
        os.kill(pid, signal.SIGKILL)
    driver.until(lambda: recorder.ending)
    assert recorder.error.code == "engine-died" and "memory" in recorder.error.message
    if how == "segmentation fault":
        assert "Segmentation fault" in recorder.error.log and "_crashing" in recorder.error.log
    assert not driver.engine.isRunning and driver.sessions() == []
    assert recorder.error.message in driver.engine.diagnostics()
    assert driver.run("any", image).ending == "done"


def test_crash_while_idle_does_not_fail_next_request(driver: Driver, image: np.ndarray) -> None:
    driver.run("any", image)
    os.kill(driver.hello["pid"], signal.SIGKILL)
    driver.until(lambda: not driver.engine.isRunning)
    assert driver.run("any", image).ending == "done"


def test_interpreter_started_by_launcher_is_killed(driver: Driver, image: np.ndarray) -> None:
    """Slicer's Python is started by a launcher that does not kill its child process when it is killed."""
    driver.program = shutil.which("PythonSlicer")
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    pid = driver.hello["pid"]
    assert psutil.Process(pid).ppid() == driver.engine._connection._process._process.processId() != os.getpid()
    driver.cancel(recorder)
    driver.until(lambda: recorder.ending)
    driver.until(lambda: not is_alive(pid))
    driver.until(lambda: driver.sessions() == [])


def test_locked_session_folder_is_removed_later(
    driver: Driver, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run("any", image)
    held, name = [False, False], "ConResSegmentationLib.EngineConnection.remove_session"
    monkeypatch.setattr(name, lambda path: held.pop() if held else remove_session(path))
    os.kill(driver.hello["pid"], signal.SIGKILL)
    driver.until(lambda: not driver.engine.isRunning)
    driver.until(lambda: driver.sessions() == [])


def test_engine_errors_keep_code_values_and_log(driver: Driver, image: np.ndarray) -> None:
    refused, failed = driver.run("refusing", image), driver.run("faulty", image)
    assert (refused.error.code, refused.error.values["path"]) == ("image-constant", "a.nii")
    assert "Traceback" in failed.error.log and "ä" in failed.error.message
    diagnostics = driver.engine.diagnostics()
    assert failed.error.log in diagnostics and "log of faulty ä" in diagnostics and sys.executable in diagnostics


def test_missing_program_is_reported(driver: Driver, image: np.ndarray) -> None:
    driver.program = "/no/such/python"
    recorders = [driver.segment("any", image) for _ in range(2)]
    driver.until(lambda: all(recorder.ending for recorder in recorders))
    assert {recorder.error.code for recorder in recorders} == {"engine-not-started"}
    driver.program = sys.executable
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-c", "import sys; sys.exit('no such module: ä')"), "engine-start-failed", "no such module: ä"),
        (("-c", "raise SystemExit(7)"), "engine-start-failed", "exit code 7"),
        ((*FAKE, "without-torch"), "engine-incomplete", "is missing torch"),
        ((*FAKE, "broken-torch"), "engine-broken", "DLL load failed"),
        (("-c", NO_FILES, *FAKE), "no-temporary-folder", "free some disk space"),
        (("-c", 'print(\'{"event":"hello","protocol":99,"version":"9"}\')'), "engine-version", "protocol 99 instead"),
    ],
)
def test_engine_that_cannot_start_reports_reason(
    driver: Driver, image: np.ndarray, arguments: tuple[str, ...], code: str, message: str
) -> None:
    driver.arguments = arguments
    recorder = driver.run("any", image)
    assert recorder.error.code == code and message in recorder.error.message and recorder.error.message.endswith(".")
    driver.arguments = FAKE
    assert driver.run("any", image).ending == "done"


def test_missing_choice_of_python_is_reported(driver: Driver, image: np.ndarray) -> None:
    def launch() -> ProcessLaunch:
        raise UserError("engine-python-not-found", "There is no Python.", program="x")

    driver.engine, lost = EngineProcess(launch), []
    driver.engine.onLost = lost.append
    expected = EngineError("engine-python-not-found", "There is no Python.", {"program": "x"})
    assert driver.run("any", image).error == expected
    driver.engine.start()
    driver.until(lambda: len(lost) == 2)
    assert lost == [expected, expected]


def test_output_before_engine_starts_is_ignored(driver: Driver, image: np.ndarray) -> None:
    printing = "print('Willkommen ä'); print('[1]', flush=True)"
    code = f"import runpy; {printing}; runpy.run_path({FAKE[0]!r}, run_name='__main__')"
    driver.arguments = ("-c", code)
    assert driver.run("any", image).ending == "done"
    assert "Willkommen ä" in driver.engine.diagnostics()


def test_full_disk_while_writing_channels_is_reported(
    driver: Driver, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments, **options) -> None:
        raise OSError(28, "No space left on device")

    driver.run("any", image)
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    assert driver.run("any", image).error.code == "disk-full"
    monkeypatch.undo()
    assert driver.run("any", image).ending == "done"


def test_removed_temporary_folder_is_reported(driver: Driver, image: np.ndarray) -> None:
    """macOS and systemd remove files from temporary folders that were not used for days."""
    driver.run("any", image)
    shutil.rmtree(driver.hello["session"])
    assert driver.run("any", image).error.code == "engine-folder-gone"
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("vague", "engine-message"),
        ("misleading", "engine-folder-gone"),
        ("swept", "engine-folder-gone"),
        ("unlocked", "engine-folder-gone"),
    ],
)
def test_invalid_message_from_engine_ends_request(driver: Driver, image: np.ndarray, model: str, code: str) -> None:
    recorder = driver.run(model, image)
    assert recorder.error.code == code
    assert driver.run("any", image).ending == "done"
    driver.engine.stop(wait=True)
    assert driver.sessions() == []


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("event", ["onStarting", "onSent", "onProgress", "onArray", "onDone"])
def test_exception_in_observer_ends_request_but_not_engine(driver: Driver, image: np.ndarray, event: str) -> None:
    recorder, following = driver.segment("any", image), driver.segment("any", image)
    setattr(recorder, event, lambda *_arguments: 1 / 0)
    driver.until(lambda: recorder.ending and following.ending)
    assert recorder.error.code == "engine-answer-unused" and "ZeroDivisionError" in recorder.error.log
    assert following.ending == "done"
    pid = driver.hello["pid"]
    refusing = driver.segment("any", image)
    refusing.onDone = lambda _result: _raise(UserError("volume-empty", name="CT"))
    driver.until(lambda: refusing.ending)
    assert refusing.error.code == "volume-empty"
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] == pid


def test_exception_in_final_callback_does_not_affect_other_requests(driver: Driver, image: np.ndarray) -> None:
    driver.run("any", image)
    pid = driver.hello["pid"]
    driver.segment("refusing", image).onError = lambda _error: 1 / 0
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] == pid


def test_stop_ends_all_requests_immediately(driver: Driver, image: np.ndarray) -> None:
    running, waiting = driver.segment("patient", image), driver.segment("any", image)
    driver.until(lambda: running.fractions)
    pid = driver.hello["pid"]
    driver.engine.stop()
    assert (running.ending, waiting.ending) == ("cancelled", "cancelled") and not driver.engine.isSegmenting
    driver.until(lambda: not is_alive(pid))
    assert driver.run("any", image).ending == "done"


def test_stop_and_wait_works_without_event_loop(driver: Driver, image: np.ndarray) -> None:
    running = driver.segment("deaf", image)
    driver.until(lambda: running.fractions)
    driver.engine.stop(wait=True)
    assert driver.children() == [] and driver.sessions() == []


def test_stop_without_an_engine(driver: Driver) -> None:
    driver.engine.stop(wait=True)
    assert driver.engine.diagnostics()


@pytest.mark.parametrize("model", ["patient", "deaf"])
def test_no_processes_or_files_remain_after_slicer_is_killed(tmp_path: Path, image: np.ndarray, model: str) -> None:
    """The whole chain in separate processes: an application, the launcher of its Python, and the engine."""
    code = """
import sys
from pathlib import Path
from slicer_host import start_application
app = start_application()
import shutil
import numpy as np
from worker.engine_driver import Driver
driver = Driver(app, Path(sys.argv[1]))
driver.program = shutil.which("PythonSlicer")
recorder = driver.segment(sys.argv[2], np.ones((12, 9, 7)))
driver.until(lambda: recorder.fractions)
print(driver.hello["pid"], flush=True)
driver.until(lambda: False, 60)
"""
    environment = engine_environment(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    application = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), model], stdout=subprocess.PIPE, env=environment
    )
    with application:
        engine = int(application.stdout.readline())
        launcher = psutil.Process(engine).ppid()
        assert psutil.Process(launcher).ppid() == application.pid
        application.kill()
    wait_until(lambda: not is_alive(engine) and not is_alive(launcher))
    assert list(tmp_path.glob("conresnet-*")) == []
