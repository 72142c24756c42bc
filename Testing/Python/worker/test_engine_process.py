"""The engine as seen by the module: real processes, driven by Qt's event loop."""

from __future__ import annotations

import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import qt

from conresnet.images import Grid, Volume
from conresnet.request import SegmentRequest
from ConResSegmentationLib.EngineProcess import EngineResult
from ConResSegmentationLib.ResultOrigin import BYTES_AT_ONCE
from worker.client import is_alive
from worker.engine_driver import Driver, Recorder


def test_result_is_received(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.run("any", image, maps=["residual"])
    assert recorder.events[0] == "starting" and recorder.ending == "done"
    np.testing.assert_array_equal(recorder.result.labels, image > image.mean())
    assert set(recorder.result.maps) == set(recorder.arrays) - {"labels"} == {"residual"}
    assert recorder.result.report["name"] == "Bild ä"
    assert not recorder.result.labels.flags.writeable
    assert recorder.fractions[-1] == 1.0


def test_nothing_happens_before_event_loop_runs(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("any", image)
    assert recorder.events == [] and driver.engine.isSegmenting and not driver.engine.isRunning
    driver.until(lambda: recorder.ending)
    assert not driver.engine.isSegmenting and driver.engine.isRunning


def test_engine_is_reused_for_next_request(driver: Driver, image: np.ndarray) -> None:
    driver.run("any", image)
    pid = driver.hello["pid"]
    second = driver.run("any", image)
    assert driver.hello["pid"] == pid and second.result.report["requests"] == 2
    assert "starting" not in second.events


def test_requests_are_processed_one_at_a_time(driver: Driver, image: np.ndarray) -> None:
    recorders = [driver.segment("any", image) for _ in range(2)]
    driver.until(lambda: recorders[1].ending)
    assert [recorder.result.report["requests"] for recorder in recorders] == [1, 2]


def test_engine_that_is_started_before_a_request_lists_its_devices(driver: Driver, image: np.ndarray) -> None:
    assert driver.start() == [{"name": "cpu", "title": "A processor"}]
    assert driver.engine.isUnused and not driver.engine.isSegmenting
    pid = driver.hello["pid"]
    driver.engine.start()
    driver.run("any", image)
    assert driver.hello["pid"] == pid and not driver.engine.isUnused


def test_start_is_dropped_by_stop(driver: Driver) -> None:
    driver.engine.start()
    driver.engine.stop()
    driver.app.processEvents()
    assert not driver.engine.hasProcess


def test_observer_may_send_next_request_immediately(driver: Driver, image: np.ndarray) -> None:
    following = []

    class Chain(Recorder):
        def onDone(self, result: EngineResult) -> None:
            super().onDone(result)
            following.append(driver.segment("any", image))

    volume = Volume(image, Grid(image.shape, np.eye(4)), "image")
    driver.engine.segment(SegmentRequest("any", (volume,)), Chain())
    driver.until(lambda: following and following[0].ending == "done")


def test_result_is_visible_while_it_grows(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("slow", image)
    driver.until(lambda: recorder.fractions)
    labels = recorder.arrays["labels"]
    assert labels[0].any() and not labels[-1].any()
    driver.until(lambda: recorder.ending)
    assert labels[-1].any()


def test_disk_space_is_freed_and_arrays_remain_readable(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.run("any", image)
    session = Path(driver.hello["session"])
    driver.until(lambda: [path.name for path in session.iterdir() if path.is_dir()] == [])
    np.testing.assert_array_equal(recorder.result.labels, image > image.mean())


def test_cancel_keeps_engine_running(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("patient", image)
    driver.until(lambda: recorder.fractions)
    pid = driver.hello["pid"]
    driver.cancel(recorder)
    driver.cancel(recorder)
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled"
    # Otherwise, the engine would have been killed and replaced by a new process.
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] == pid


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_input_memory_is_released_once_written(driver: Driver, how: str) -> None:
    """An input can be gigabytes in size, and on Windows an open file cannot be removed."""
    array = np.zeros((5, 1, BYTES_AT_ONCE // 4), np.float32)
    recorder, held = driver.segment("any", array), weakref.ref(array)
    del array
    driver.until(lambda: driver.engine._current)
    driver.cancel(recorder) if how == "cancel" else driver.engine.stop()
    driver.until(lambda: recorder.ending)
    driver.until(lambda: held() is None, 10)
    assert recorder.ending == "cancelled"


def test_unresponsive_engine_is_killed_after_two_seconds(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    pid, begun = driver.hello["pid"], time.monotonic()
    driver.cancel(recorder)
    next_one = driver.segment("any", image)
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled" and time.monotonic() - begun > 1.9
    driver.until(lambda: next_one.ending)
    assert next_one.ending == "done" and driver.hello["pid"] != pid and not is_alive(pid)
    assert driver.sessions() == [Path(driver.hello["session"])]


def test_cancel_before_engine_runs(driver: Driver, image: np.ndarray) -> None:
    first, second = driver.segment("any", image), driver.segment("any", image)
    driver.until(lambda: "starting" in first.events)
    driver.cancel(first)
    driver.cancel(second)
    driver.until(lambda: first.ending and second.ending)
    assert (first.ending, second.ending) == ("cancelled", "cancelled")
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize("cancelled", [0, 1])
@pytest.mark.parametrize("model", ["patient", "deaf"])
def test_cancelling_one_request_keeps_others(driver: Driver, image: np.ndarray, model: str, cancelled: int) -> None:
    recorders = [driver.segment(model if place == cancelled else "any", image) for place in (0, 1)]
    driver.until(lambda: recorders[cancelled].fractions)
    driver.cancel(recorders[cancelled])
    driver.until(lambda: all(recorder.ending for recorder in recorders))
    assert [recorder.ending for recorder in recorders] == ["cancelled", "done"][:: 1 - 2 * cancelled]


def test_result_after_cancel_is_discarded(driver: Driver, image: np.ndarray) -> None:
    recorder = driver.segment("any", image[:1])
    driver.until(lambda: driver.engine._current)
    driver.cancel(recorder)
    driver.until(lambda: recorder.ending)
    assert recorder.ending == "cancelled" and recorder.arrays == {}


def test_event_loop_is_never_blocked(driver: Driver, image: np.ndarray) -> None:
    """A 10 ms timer keeps firing while the engine starts, and in the two seconds before it is killed."""
    ticks = []
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(None))
    timer.start(10)
    recorder = driver.segment("deaf", image)
    driver.until(lambda: recorder.fractions)
    while_starting = len(ticks)
    driver.cancel(recorder)
    driver.until(lambda: recorder.ending)
    timer.stop()
    # With a blocked event loop, it would have fired once or twice.
    assert while_starting > 5 and len(ticks) - while_starting > 20
