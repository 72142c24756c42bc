"""The engine seen from Slicer: a process of its own that is started when needed, kept warm, and survived when it dies.

Nothing here waits: every call returns at once, and what happens then is told to an observer from Slicer's event loop.

    engine = EngineProcess(enginePython.launch)          # a function without arguments that returns a ProcessLaunch
    number = engine.segment(SegmentRequest(modelPath, (Volume(array, grid, name),), SegmentOptions(...)), observer)
    engine.listDevices(observer)                         # observer.onDevices([{"name": "cpu", "title": ...}, ...])
    engine.cancel(number)                                # the observer hears onCancelled, after two seconds at most
    engine.stop()                                        # when the user chooses another Python
    engine.stop(wait=True)                               # in the widget's cleanup
    engine.isSegmenting, engine.isRunning, engine.diagnostics()

An observer derives from EngineObserver and overrides what it wants to hear. Each request ends with exactly one of
onDone, onDevices, onError and onCancelled. Requests made while another runs wait their turn. The process is started by
the first request, and again by the first one after it has ended or died.

Arrays given to onArray and onDone are read-only maps of files that the engine has written: labels [k, j, i], maps
[c, k, j, i], on the grid of the first channel. They stay readable as long as they are held; copy what is to last, and
let go of them, so that their disk space is freed.
"""

import platform
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import qt
from slicer.i18n import tr as _

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.files import write_error
from conresnet.request import SegmentRequest

from .EngineConnection import EngineConnection, EngineError, EngineObserver, EngineResult
from .Processes import ProcessLaunch

SECONDS_TO_CANCEL = 2


@dataclass
class _Request:
    id: int
    kind: str
    observer: EngineObserver
    asked: SegmentRequest | None = None


class EngineProcess:
    """The engine, whatever process it lives in at the moment.

    Args:
        launch: says how to start the process; asked at each start, so that a changed setting counts from then on. It
            may raise UserError, which the observer then hears.
    """

    def __init__(self, launch: Callable[[], ProcessLaunch]):
        self._launch = launch
        self._connection: EngineConnection | None = None
        # Objects of processes that are leaving must outlive the signal that tells of their end.
        self._leaving: list[EngineConnection] = []
        self._waiting: deque[_Request] = deque()
        self._current: _Request | None = None
        self._lastId = 0
        self._lastError: EngineError | None = None
        self._lastLog = ""
        self._cancelTimer = qt.QTimer()
        self._cancelTimer.setSingleShot(True)
        self._cancelTimer.connect("timeout()", self._onCancelUnanswered)

    def segment(self, request: SegmentRequest, observer: EngineObserver) -> int:
        """Ask for a segmentation, and return the number of the request, for `cancel`.

        Args:
            request: its arrays are read when the engine is ready for them.
            observer: is told what becomes of it.
        """
        return self._add("segment", observer, request)

    def listDevices(self, observer: EngineObserver) -> None:
        """Ask for the devices that the engine can compute on."""
        self._add("devices", observer)

    def cancel(self, number: int) -> None:
        """Stop one request, and no other's. An engine that does not answer in two seconds is killed."""
        for request in [request for request in self._waiting if request.id == number]:
            self._waiting.remove(request)
            _later(request.observer.onCancelled)
        if self._current and self._current.id == number and not self._cancelTimer.isActive():
            self._connection.send({"request": "cancel", "id": number})
            self._cancelTimer.start(SECONDS_TO_CANCEL * 1000)

    def stop(self, wait: bool = False) -> None:
        """End the process; observers of unfinished requests hear onCancelled before this returns.

        Args:
            wait: until it has gone, a few seconds at most; for when Slicer is about to end.
        """
        connection, stopped = self._connection, self._takeAll()
        self._dropConnection()
        if connection:
            connection.close()
        if wait:
            for leaving in self._leaving:
                leaving.waitUntilClosed()
        for request in stopped:
            request.observer.onCancelled()

    @property
    def isSegmenting(self) -> bool:
        """Whether a segmentation is computed, or waits."""
        requests = [*([self._current] if self._current else []), *self._waiting]
        return any(request.kind == "segment" for request in requests)

    @property
    def isRunning(self) -> bool:
        """Whether the engine has a process and has said hello."""
        return self._connection is not None and self._connection.hello is not None

    def diagnostics(self) -> str:
        """Everything a report of a fault should hold: versions, the engine's Python, the last error, the log."""
        connection = self._connection
        hello = (connection and connection.hello) or {}
        lines = [
            f"ConResNet {__version__} on {platform.platform()}, Python {platform.python_version()}",
            f"Engine: {connection.launch.program if connection else 'not running'}",
            *(f"  {name}: {hello[name]}" for name in ("version", "python", "torch", "pid") if name in hello),
        ]
        if self._lastError:
            lines += ["", f"Last error ({self._lastError.code}): {self._lastError.message}", self._lastError.log]
        lines += ["", "Log of the engine:", connection.log if connection else self._lastLog]
        return "\n".join(lines).rstrip() + "\n"

    def _add(self, kind: str, observer: EngineObserver, asked: SegmentRequest | None = None) -> int:
        self._lastId += 1
        self._waiting.append(_Request(self._lastId, kind, observer, asked))
        _later(self._advance)
        return self._lastId

    def _advance(self) -> None:
        """Start the process if it must be, and the next request if it can be."""
        if self._current or not self._waiting:
            return
        if self._connection is None:
            self._open()
        elif self._connection.hello:
            request = self._current = self._waiting.popleft()
            try:
                self._write(request)
            except UserError as error:
                self._finish("onError", EngineError(error.code, error.message, error.values))

    def _open(self) -> None:
        try:
            launch = self._launch()
        except UserError as error:
            self._fail(EngineError(error.code, error.message, error.values))
            return
        self._connection = EngineConnection(launch, self._onMessage, self._onEnded)
        for request in self._waiting:
            request.observer.onStarting()
        if self._connection:
            self._connection.open()

    def _write(self, request: _Request) -> None:
        """Put the channels where the engine finds them, and ask."""
        asked, request.asked = request.asked, None
        paths = []
        session = Path(self._connection.hello["session"])
        for number, volume in enumerate(asked.channels if asked else ()):
            path = session / str(request.id) / f"channel{number}.npy"
            try:
                # Never the session folder itself: made anew it would belong to nobody, and stay.
                path.parent.mkdir(exist_ok=True)
                np.save(path, volume.array, allow_pickle=False)
            except FileNotFoundError as error:
                # The engine is ending, or the system has cleaned up.
                self._connection.close()
                self._dropConnection()
                raise UserError(
                    "engine-folder-gone", _("The engine's temporary folder is gone; segment again.")
                ) from error
            except OSError as error:
                raise write_error(error, path) from error
            paths.append(path)
        self._connection.send({"request": request.kind, "id": request.id, **(asked.to_dict(paths) if asked else {})})

    def _onMessage(self, message: dict) -> None:
        event, request = message.get("event"), self._current
        if event == "hello":
            self._advance()
        elif event == "error" and "id" not in message:
            self._connection.close()
            self._onEnded(EngineError.fromMessage(message))
        elif request is None or message.get("id") != request.id:
            return
        elif event == "progress":
            if not self._cancelTimer.isActive():
                request.observer.onProgress(message["phase"], message["fraction"], message["seconds_left"])
        elif event == "array":
            if not self._cancelTimer.isActive():
                request.observer.onArray(message["name"], _mapped(message["npy"]))
        elif self._cancelTimer.isActive():
            self._finish("onCancelled")
        elif event == "done":
            maps = {name: _mapped(path) for name, path in message["maps"].items()}
            regions = _mapped(message["regions"]) if message["regions"] else None
            self._finish("onDone", EngineResult(_mapped(message["labels"]), maps, message["report"], regions))
        elif event == "devices":
            self._finish("onDevices", message["devices"])
        elif event == "error":
            self._finish("onError", EngineError.fromMessage(message))

    def _finish(self, ending: str, *arguments: object) -> None:
        """End the current request. The observer may ask for the next thing at once."""
        request, self._current = self._current, None
        self._cancelTimer.stop()
        if ending == "onError":
            self._lastError = arguments[0]
        _later(self._advance)
        if self._connection:
            self._connection.send({"request": "release", "id": request.id})
        getattr(request.observer, ending)(*arguments)

    def _onEnded(self, error: EngineError) -> None:
        """The process has died, or is of no use."""
        cancelling = self._cancelTimer.isActive()
        neverWorked = self._connection is None or self._connection.hello is None
        self._dropConnection()
        if self._current and not neverWorked:
            self._finish("onCancelled") if cancelling else self._finish("onError", error)
        else:
            self._fail(error)

    def _onCancelUnanswered(self) -> None:
        connection = self._connection
        self._dropConnection()
        connection.kill()
        self._finish("onCancelled")

    def _fail(self, error: EngineError) -> None:
        """The engine does not start: tell everybody who waits for it."""
        self._lastError = error
        for request in self._takeAll():
            request.observer.onError(error)

    def _takeAll(self) -> list[_Request]:
        taken = [*([self._current] if self._current else []), *self._waiting]
        self._current = None
        self._waiting.clear()
        self._cancelTimer.stop()
        return taken

    def _dropConnection(self) -> None:
        if self._connection:
            self._lastLog = self._connection.log
            self._leaving = [connection for connection in self._leaving if connection.isRunning]
            self._leaving.append(self._connection)
            self._connection = None


def _later(function: Callable[[], object]) -> None:
    qt.QTimer.singleShot(0, function)


def _mapped(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
