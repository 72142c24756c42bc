"""The engine as the module sees it: real processes, driven from Qt's event loop."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import qt

from conresnet.errors import UserError
from conresnet.grid import Grid, Volume
from ConResSegmentationLib.EngineConnection import EngineLaunch
from ConResSegmentationLib.EngineError import EngineError
from ConResSegmentationLib.EngineObserver import EngineObserver, EngineResult
from ConResSegmentationLib.EngineProcess import EngineProcess
from worker.client import FAKE, engine_environment, is_alive


class Recorder(EngineObserver):
    """Keeps what it hears, in order."""

    def __init__(self):
        self.heard: list[str] = []
        self.result: EngineResult | None = None
        self.error: EngineError | None = None
        self.devices: list[dict] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.fractions: list[float] = []

    @property
    def ending(self) -> str | None:
        """How it ended; it must have ended once at most."""
        endings = [name for name in self.heard if name in ("done", "devices", "error", "cancelled")]
        assert len(endings) <= 1
        return endings[0] if endings else None

    def onStarting(self) -> None:
        self.heard.append("starting")

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        self.heard.append("progress")
        self.fractions.append(fraction)

    def onArray(self, name: str, array: np.ndarray) -> None:
        self.heard.append("array")
        self.arrays[name] = array

    def onDone(self, result: EngineResult) -> None:
        self.heard.append("done")
        self.result = result

    def onDevices(self, devices: list[dict]) -> None:
        self.heard.append("devices")
        self.devices = devices

    def onError(self, error: EngineError) -> None:
        self.heard.append("error")
        self.error = error

    def onCancelled(self) -> None:
        self.heard.append("cancelled")


class Driver:
    """An engine process and the event loop around it.

    Args:
        app: the application.
        folder: for temporary files.
    """

    def __init__(self, app, folder: Path):
        self.app, self.folder = app, folder
        self.program, self.arguments = sys.executable, FAKE
        self.engine = EngineProcess(self.launch)

    def launch(self) -> EngineLaunch:
        environment = {**engine_environment(self.folder), "PYTHONFAULTHANDLER": "1"}
        return EngineLaunch(self.program, tuple(self.arguments), environment)

    def segment(self, model: str, array: np.ndarray, **options) -> Recorder:
        recorder = Recorder()
        volume = Volume(array, Grid(array.shape, np.eye(4)), "Bild ä")
        self.engine.segment(model, [volume], recorder, **options)
        return recorder

    def until(self, condition, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen; {self.engine.diagnostics()}"
            self.app.processEvents()
            time.sleep(0.005)

    def run(self, model: str, array: np.ndarray, **options) -> Recorder:
        recorder = self.segment(model, array, **options)
        self.until(lambda: recorder.ending)
        return recorder

    @property
    def hello(self) -> dict:
        return self.engine._connection.hello

    def sessions(self) -> list[Path]:
        return sorted(self.folder.glob("conresnet-*"))

    def children(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children(recursive=True) if is_alive(child.pid)]


@pytest.fixture
def driver(slicer_app, tmp_path: Path):
    folder = tmp_path / "temporary ä"
    folder.mkdir()
    driver = Driver(slicer_app, folder)
    yield driver
    driver.engine.stop(wait=True)
    assert driver.children() == []
    assert driver.sessions() == []


def test_a_result_arrives(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.run("any", image, maps=["residual"])
    assert recorder.heard[0] == "starting" and recorder.ending == "done"
    np.testing.assert_array_equal(recorder.result.labels, image > image.mean())
    assert set(recorder.result.maps) == set(recorder.arrays) - {"labels"} == {"residual"}
    assert recorder.result.report["name"] == "Bild ä"
    assert not recorder.result.labels.flags.writeable
    assert recorder.fractions[-1] == 1.0


def test_nothing_happens_before_the_event_loop(driver: Driver, image: np.ndarray) -> None:
    begun = time.monotonic()
    recorder = driver.segment("any", image)
    assert time.monotonic() - begun < 0.05
    assert recorder.heard == [] and driver.engine.isBusy and not driver.engine.isRunning
    driver.until(lambda: recorder.ending)
    assert not driver.engine.isBusy and driver.engine.isRunning


def test_the_engine_stays_for_the_next_request(driver: Driver, image: np.ndarray) -> None:
    driver.run("any", image)
    pid = driver.hello["pid"]
    second = driver.run("any", image)
    assert driver.hello["pid"] == pid and second.result.report["requests"] == 2
    assert "starting" not in second.heard


def test_requests_wait_for_each_other(driver: Driver, image: np.ndarray) -> None:
    recorders = [driver.segment("any", image) for _ in range(2)]
    listing = Recorder()
    driver.engine.listDevices(listing)
    driver.until(lambda: listing.ending)
    assert [recorder.result.report["requests"] for recorder in recorders] == [1, 2]
    assert listing.devices == [{"name": "cpu", "title": "A processor"}]


def test_an_observer_may_ask_for_the_next_thing_at_once(driver: Driver, image: np.ndarray) -> None:
    following = []

    class Chain(Recorder):
        def onDone(self, result: EngineResult) -> None:
            super().onDone(result)
            following.append(driver.segment("any", image))

    volume = Volume(image, Grid(image.shape, np.eye(4)), "image")
    driver.engine.segment("any", [volume], Chain())
    driver.until(lambda: following and following[0].ending == "done")


def test_the_result_can_be_watched_while_it_grows(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("slow", image)
    driver.until(lambda: recorder.fractions)
    labels = recorder.arrays["labels"]
    assert labels[0].any() and not labels[-1].any()
    driver.until(lambda: recorder.ending)
    assert labels[-1].any()


def test_disk_space_is_freed_and_arrays_stay_readable(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.run("any", image)
    session = Path(driver.hello["session"])
    driver.until(lambda: [path.name for path in session.iterdir() if path.is_dir()] == [])
    np.testing.assert_array_equal(recorder.result.labels, image > image.mean())


def test_cancel_is_heard_within_a_second_and_the_engine_stays(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("patient", image)
    driver.until(lambda: recorder.fractions)
    pid, begun = driver.hello["pid"], time.monotonic()
    driver.engine.cancel()
    driver.engine.cancel()
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled" and time.monotonic() - begun < 1
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] == pid


def test_an_engine_that_does_not_listen_is_killed_after_two_seconds(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    pid, begun = driver.hello["pid"], time.monotonic()
    driver.engine.cancel()
    next_one = driver.segment("any", image)
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled" and 1.9 < time.monotonic() - begun < 2.5
    driver.until(lambda: next_one.ending)
    assert next_one.ending == "done" and driver.hello["pid"] != pid and not is_alive(pid)
    assert driver.sessions() == [Path(driver.hello["session"])]


def test_cancel_before_the_engine_runs(driver: Driver, image: np.ndarray) -> None:
    first, second = driver.segment("any", image), driver.segment("any", image)
    driver.until(lambda: "starting" in first.heard)
    driver.engine.cancel()
    driver.until(lambda: first.ending and second.ending, 0.5)
    assert (first.ending, second.ending) == ("cancelled", "cancelled")
    assert driver.run("any", image).ending == "done"


def test_a_result_that_comes_after_the_cancel_is_no_result(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("any", image[:1])
    driver.until(lambda: driver.engine._current)
    driver.engine.cancel()
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled" and recorder.arrays == {}


@pytest.mark.parametrize("how", ["segmentation fault", "killed"])
def test_a_crash_is_told_and_the_next_request_starts_anew(driver: Driver, image: np.ndarray, how: str) -> None:
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


def test_a_crash_while_nothing_is_asked_is_no_error_of_the_next_request(driver: Driver, image: np.ndarray) -> None:
    driver.run("any", image)
    os.kill(driver.hello["pid"], signal.SIGKILL)
    driver.until(lambda: not driver.engine.isRunning)
    assert driver.run("any", image).ending == "done"


def test_behind_a_launcher_the_interpreter_itself_is_killed(driver: Driver, image: np.ndarray) -> None:
    """Slicer's Python is started by a launcher that does not take its child along when it is killed."""
    driver.program = shutil.which("PythonSlicer")
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    pid = driver.hello["pid"]
    assert psutil.Process(pid).ppid() == driver.engine._connection._process.processId() != os.getpid()
    driver.engine.cancel()
    driver.until(lambda: recorder.ending)
    driver.until(lambda: not is_alive(pid), 1)
    driver.until(lambda: driver.sessions() == [])


def test_errors_of_the_engine_keep_code_values_and_log(driver: Driver, image: np.ndarray) -> None:
    refused, failed = driver.run("refusing", image), driver.run("faulty", image)
    assert (refused.error.code, refused.error.values["path"], refused.error.ours) == ("image-constant", "a.nii", False)
    assert failed.error.ours and "Traceback" in failed.error.log and "ä" in failed.error.message
    diagnostics = driver.engine.diagnostics()
    assert failed.error.log in diagnostics and "log of faulty ä" in diagnostics and sys.executable in diagnostics


def test_a_program_that_is_not_there(driver: Driver, image: np.ndarray) -> None:
    driver.program = "/no/such/python"
    recorders = [driver.segment("any", image) for _ in range(2)]
    driver.until(lambda: all(recorder.ending for recorder in recorders))
    assert {recorder.error.code for recorder in recorders} == {"engine-not-started"}
    driver.program = sys.executable
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-c", "import sys; sys.exit('no such module: ä')"), "engine-start-failed", "no such module: ä"),
        (("-c", "raise SystemExit(7)"), "engine-start-failed", "exit code 7"),
        ((*FAKE, "without-torch"), "engine-incomplete", "torch is missing"),
        ((*FAKE, "broken-torch"), "engine-broken", "DLL load failed"),
        (("-c", 'print(\'{"event":"hello","protocol":99,"version":"9"}\')'), "engine-version", "protocol 99 instead"),
    ],
)
def test_an_engine_that_cannot_start_says_why(
    driver: Driver, image: np.ndarray, arguments: tuple[str, ...], code: str, words: str
) -> None:
    driver.arguments = arguments
    recorder = driver.run("any", image)
    assert recorder.error.code == code and words in recorder.error.message and recorder.error.message.endswith(".")
    driver.arguments = FAKE
    assert driver.run("any", image).ending == "done"


def test_no_python_chosen_is_told_like_any_error(driver: Driver, image: np.ndarray) -> None:
    def launch() -> EngineLaunch:
        raise UserError("engine-python-not-found", "There is no Python.", program="x")

    engine, recorder = EngineProcess(launch), Recorder()
    engine.listDevices(recorder)
    driver.until(lambda: recorder.ending)
    assert recorder.error == EngineError("engine-python-not-found", "There is no Python.", {"program": "x"})


def test_what_prints_before_the_engine_does_no_harm(driver: Driver, image: np.ndarray) -> None:
    printing = "print('Willkommen ä'); print('[1]', flush=True)"
    code = f"import runpy; {printing}; runpy.run_path({FAKE[0]!r}, run_name='__main__')"
    driver.arguments = ("-c", code)
    assert driver.run("any", image).ending == "done"
    assert "Willkommen ä" in driver.engine.diagnostics()


def test_a_full_disk_for_the_channels(driver: Driver, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments, **options) -> None:
        raise OSError(28, "No space left on device")

    driver.run("any", image)
    monkeypatch.setattr(np, "save", full)
    assert driver.run("any", image).error.code == "disk-full"
    monkeypatch.undo()
    assert driver.run("any", image).ending == "done"


def test_a_temporary_folder_that_was_swept_away(driver: Driver, image: np.ndarray) -> None:
    """macOS and systemd clean temporary folders of what was not used for days."""
    driver.run("any", image)
    shutil.rmtree(driver.hello["session"])
    assert driver.run("any", image).error.code == "engine-folder-gone"
    assert driver.run("any", image).ending == "done"


def test_stop_ends_everything_at_once(driver: Driver, image: np.ndarray) -> None:
    running, waiting = driver.segment("patient", image), driver.segment("any", image)
    driver.until(lambda: running.fractions)
    pid = driver.hello["pid"]
    driver.engine.stop()
    assert (running.ending, waiting.ending) == ("cancelled", "cancelled") and not driver.engine.isBusy
    driver.until(lambda: not is_alive(pid), 3)
    assert driver.run("any", image).ending == "done"


def test_stop_and_wait_needs_no_event_loop(driver: Driver, image: np.ndarray) -> None:
    running = driver.segment("deaf", image)
    driver.until(lambda: running.fractions)
    driver.engine.stop(wait=True)
    assert driver.children() == [] and driver.sessions() == []


def test_stop_without_an_engine(driver: Driver) -> None:
    driver.engine.stop(wait=True)
    assert driver.engine.diagnostics()


def test_the_event_loop_is_never_held_up(driver: Driver, image: np.ndarray) -> None:
    """A timer of ten milliseconds goes on while the engine starts, computes, is cancelled and killed."""
    gaps, last = [], [time.monotonic()]

    def tick() -> None:
        now = time.monotonic()
        gaps.append(now - last[0])
        last[0] = now

    timer = qt.QTimer()
    timer.connect("timeout()", tick)
    timer.start(10)
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    driver.engine.cancel()
    driver.until(lambda: recorder.ending)
    timer.stop()
    assert max(gaps) < 0.3
