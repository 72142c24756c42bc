"""The module's side of the engine, driven by Qt's event loop: a driver, and an observer that records events."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import psutil

from conresnet.images import Grid, Volume
from conresnet.request import SegmentOptions, SegmentRequest
from ConResSegmentationLib.EngineProcess import EngineError, EngineObserver, EngineProcess, EngineResult
from ConResSegmentationLib.Processes import ProcessLaunch
from worker.client import FAKE, engine_environment, is_alive


class Recorder(EngineObserver):
    """Records the events it receives, in order."""

    def __init__(self):
        self.number = 0
        self.events: list[str] = []
        self.result: EngineResult | None = None
        self.error: EngineError | None = None
        self.arrays: dict[str, np.ndarray] = {}
        self.fractions: list[float] = []

    @property
    def ending(self) -> str | None:
        """The event that ended the request, if any; fails if there are several."""
        endings = [name for name in self.events if name in ("done", "error", "cancelled")]
        assert len(endings) <= 1
        return endings[0] if endings else None

    def onStarting(self) -> None:
        self.events.append("starting")

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        self.events.append("progress")
        self.fractions.append(fraction)

    def onArray(self, name: str, array: np.ndarray) -> None:
        self.events.append("array")
        self.arrays[name] = array

    def onDone(self, result: EngineResult) -> None:
        self.events.append("done")
        self.result = result

    def onError(self, error: EngineError) -> None:
        self.events.append("error")
        self.error = error

    def onCancelled(self) -> None:
        self.events.append("cancelled")


class Driver:
    """An engine process and the event loop around it.

    Args:
        app: the application.
        folder: folder for temporary files.
    """

    def __init__(self, app, folder: Path):
        self.app, self.folder = app, folder
        self._earlier = {child.pid for child in psutil.Process().children(recursive=True)}
        self.program, self.arguments = sys.executable, FAKE
        self.engine = EngineProcess(self.launch)

    def launch(self) -> ProcessLaunch:
        environment = {**engine_environment(self.folder), "PYTHONFAULTHANDLER": "1"}
        return ProcessLaunch(self.program, tuple(self.arguments), environment)

    def start(self) -> list[dict]:
        """Start the process without a request; returns its devices."""
        found: list[list[dict]] = []
        self.engine.onReady = found.append
        self.engine.start()
        self.until(lambda: found)
        return found[0]

    def segment(self, model: str, array: np.ndarray, **options) -> Recorder:
        recorder = Recorder()
        volume = Volume(array, Grid(array.shape, np.eye(4)), "Bild ä")
        request = SegmentRequest(model, (volume,), SegmentOptions(**options))
        recorder.number = self.engine.segment(request, recorder)
        return recorder

    def cancel(self, recorder: Recorder) -> None:
        self.engine.cancel(recorder.number)

    def until(self, condition, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"the condition did not become true; {self.engine.diagnostics()}"
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
        """Running processes of the engine, without those of earlier tests, such as the reader of untrusted images."""
        children = psutil.Process().children(recursive=True)
        return [child for child in children if is_alive(child.pid) and child.pid not in self._earlier]
