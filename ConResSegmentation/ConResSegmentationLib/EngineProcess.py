"""The engine as Slicer sees it: a separate process, started when needed, kept warm, and replaced if it dies.

Nothing here waits: every call returns at once, and an observer is told from Slicer's event loop what happens:

    engine = EngineProcess(enginePython.launch)
    number = engine.segment(SegmentRequest(modelPath, (Volume(array, grid, name),), SegmentOptions(...)), observer)
    engine.cancel(number)

An observer derives from EngineObserver and overrides the methods it needs. Each request ends with exactly one of
onDone, onError and onCancelled. Requests made while another one runs are queued. The first request starts the process,
unless `start` has, and so does the first one after it has ended or died.

Arrays given to onArray and onDone are read-only memory maps of files that the engine writes, or that are copied from it
if it is on another computer: labels [k, j, i], maps [c, k, j, i], on the grid of the first channel. They stay readable
while they are referenced; copy what must last, and drop the references so that the disk space is freed.
"""

import contextlib
import logging
import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.files import write_error
from conresnet.package import DESCRIPTION_FILE, ModelDescription
from conresnet.package.reader import ModelPackage, read_package
from conresnet.package.store import read_model
from conresnet.request import SegmentRequest
from conresnet.worker import MODELS_FOLDER, BlockWriter, write_block

from .EngineConnection import EngineConnection, EngineError, EngineObserver, EngineResult
from .Processes import ProcessLaunch, callLater
from .ResultOrigin import checksumInPieces
from .Widgets import singleShotTimer

SECONDS_TO_CANCEL = 2
_MILLISECONDS_TO_CATCH_UP = 20


@dataclass
class _Request:
    id: int
    observer: EngineObserver
    # None once it was sent.
    asked: SegmentRequest | None
    # Models that the server had before this request, by name.
    models: dict[str, str] | None = None


class EngineProcess:
    """The engine, across any number of processes.

    Args:
        launch: returns how to start the process. It is called at each start, so that a changed setting takes effect
            then. A UserError that it raises goes to the observers and to `onLost`.

    Attributes:
        isUnused: whether nobody has requested a segmentation since the process was started.
        onReady: called when a process is ready, with its devices, each a dict with ``name`` and ``title``.
        onLost: called with the error when the process ends by itself or cannot be started, even if there is no request.
    """

    def __init__(self, launch: Callable[[], ProcessLaunch]):
        self._launch = launch
        self._connection: EngineConnection | None = None
        # These must outlive the signal that their process has ended.
        self._leaving: list[EngineConnection] = []
        self._waiting: deque[_Request] = deque()
        self._isWanted = False
        self._current: _Request | None = None
        self._lastId = 0
        self.isUnused = True
        self.onReady: Callable[[list[dict]], None] = lambda devices: None
        self.onLost: Callable[[EngineError], None] = lambda error: None
        self._lastError: EngineError | None = None
        self._lastLog = ""
        self._cancelTimer = singleShotTimer(None, self._onCancelUnanswered)
        self._pieces: Iterator[None] = iter(())
        self._pieceTimer = singleShotTimer(None, lambda: self._continue(self._pieces))

    def segment(self, request: SegmentRequest, observer: EngineObserver) -> int:
        """Request a segmentation, whose arrays are read when the engine is ready; returns its number, for `cancel`."""
        self.isUnused = False
        self._lastId += 1
        self._waiting.append(_Request(self._lastId, observer, request))
        callLater(self._advance)
        return self._lastId

    def start(self) -> None:
        """Start the process, if there is none, before there is a request."""
        if not self.hasProcess:
            self._isWanted = True
            callLater(self._advance)

    def cancel(self, number: int) -> None:
        """Cancel one request. An engine that does not answer within two seconds is killed."""
        for request in [request for request in self._waiting if request.id == number]:
            self._waiting.remove(request)
            callLater(lambda request=request: self._tell(request, "onCancelled"))
        if self._current and self._current.id == number and self._current.asked:
            # Its inputs are still being written, and the engine has not been asked yet.
            request = self._takeCurrent()
            self._connection.release(number)
            callLater(lambda: self._tell(request, "onCancelled"))
            callLater(self._advance)
        elif self._current and self._current.id == number and not self._cancelTimer.isActive():
            self._connection.send({"request": "cancel", "id": number})
            self._cancelTimer.start(SECONDS_TO_CANCEL * 1000)

    def stop(self, wait: bool = False) -> None:
        """End the process; the observers of unfinished requests get onCancelled before this returns.

        Args:
            wait: until the process has ended, a few seconds at most; for when Slicer is about to end.
        """
        connection, stopped = self._connection, self._takeAll()
        self._dropConnection()
        if connection:
            connection.close()
        if wait:
            for leaving in self._leaving:
                leaving.waitUntilClosed()
        for request in stopped:
            self._tell(request, "onCancelled")

    @property
    def isSegmenting(self) -> bool:
        """Whether a segmentation is running or queued."""
        return self._current is not None or bool(self._waiting)

    @property
    def isRunning(self) -> bool:
        """Whether the engine has a process that is ready."""
        return self._connection is not None and self._connection.hello is not None

    @property
    def hasProcess(self) -> bool:
        """Whether the engine has a process, or is about to, that may still be starting."""
        return self._connection is not None or bool(self._waiting) or self._isWanted

    def diagnostics(self) -> str:
        """What a bug report needs: versions, the engine's Python, the last error and the log."""
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

    def _advance(self) -> None:
        """Start the process or the next request if that is possible now."""
        if self._current or not (self._waiting or self._isWanted):
            return
        if self._connection is None:
            self._open()
        elif self._connection.hello:
            self._current = self._waiting.popleft()
            self._pieces = self._write(self._current)
            self._continue(self._pieces)

    def _continue(self, pieces: Iterator[None]) -> None:
        """Write the next piece of the current request's inputs, unless it was canceled meanwhile."""
        if pieces is not self._pieces or self._current is None or self._connection is None:
            return
        if self._connection.isBehind:
            self._pieceTimer.start(_MILLISECONDS_TO_CATCH_UP)
            return
        try:
            next(pieces)
        except StopIteration:
            return
        except UserError as error:
            self._finish("onError", EngineError.fromUserError(error))
            return
        callLater(lambda: self._continue(pieces))

    def _open(self) -> None:
        self._isWanted = False
        try:
            launch = self._launch()
        except UserError as error:
            self._onEnded(EngineError.fromUserError(error))
            return
        self._connection = EngineConnection(launch, self._onMessage, self._onEnded)
        self.isUnused = not self.isSegmenting
        for request in [*self._waiting]:
            self._tell(request, "onStarting")
        if self._connection:
            self._connection.open()

    def _write(self, request: _Request) -> Iterator[None]:
        """Write the channels where the engine reads them, piece by piece, and send the request."""
        connection, asked, files, checksums = self._connection, request.asked, [], []
        if connection.isRemote:
            package = read_package(asked.model, verify=False)
            asked = _withoutNames(asked, package.description)
            self._tell(request, "onProgress", "sending", 0.0, None)
            request.models = dict(connection.hello["models"])
            yield from sendModels(
                package, connection.hello["models"], lambda fields: connection.sendBlock(fields, request.id)
            )
        wanted, sent, began = sum(volume.array.nbytes for volume in asked.channels), 0, time.monotonic()
        for number, volume in enumerate(asked.channels):
            files.append(f"{request.id}/channel{number}.npy")
            try:
                array = np.ascontiguousarray(volume.array)
                with connection.writing(files[-1], request.id) as target:
                    header = np.lib.format.header_data_from_array_1_0(array)
                    np.lib.format.write_array_header_1_0(target, header)
                    checksums.append("")
                    # The last of them is that of the whole array.
                    for checksums[-1] in checksumInPieces(array, target.write, connection.bytesAtOnce):
                        if connection.isRemote:
                            sent += min(connection.bytesAtOnce, wanted - sent)
                            left = (time.monotonic() - began) * (wanted - sent) / sent
                            self._tell(request, "onProgress", "sending", 0.0, left)
                        yield
            except FileNotFoundError as error:
                # The engine is ending, or the system cleaned its temporary folder.
                self._leave()
                raise UserError("engine-folder-gone") from error
            except OSError as error:
                raise write_error(error, connection.session / files[-1]) from error
        self._tell(request, "onSent", tuple(checksums))
        if request is not self._current:
            return
        request.asked = None
        connection.send({"request": "segment", "id": request.id, **asked.to_dict(files)})

    def _onMessage(self, message: dict) -> None:
        event, request, server = message.get("event"), self._current, self._connection.launch.server
        if event == "hello":
            self._advance()
        elif event == "ready":
            self.onReady(message["devices"])
        elif event == "error" and "id" not in message:
            self._connection.close()
            self._onEnded(EngineError.fromMessage(message, server))
        elif request is None or message.get("id") != request.id:
            return
        elif event == "progress":
            if not self._cancelTimer.isActive():
                progress = message["phase"], message["fraction"], message["seconds_left"]
                self._tell(request, "onProgress", *progress)
        elif event == "block":
            if not self._cancelTimer.isActive():
                self._store(message)
        elif event == "array":
            if not self._cancelTimer.isActive():
                self._tell(request, "onArray", message["name"], self._connection.mapped(message["npy"]))
        elif self._cancelTimer.isActive():
            self._finish("onCancelled")
        elif event == "done":
            mapped = self._connection.mapped
            maps = {name: mapped(file) for name, file in message["maps"].items()}
            regions = mapped(message["regions"]) if message["regions"] else None
            self._finish("onDone", EngineResult(mapped(message["labels"]), maps, message["report"], regions))
        elif event == "error":
            if message["code"] == "engine-folder-gone":
                self._leave()
            self._finish("onError", EngineError.fromMessage(message, server))

    def _store(self, message: dict) -> None:
        """Store part of a result. If that fails, the request fails."""
        try:
            write_block(self._connection.session, message)
        except UserError as error:
            self._connection.send({"request": "cancel", "id": message["id"]})
            if error.code == "engine-folder-gone":
                self._leave()
            self._finish("onError", EngineError.fromUserError(error))

    def _tell(self, request: _Request, event: str, *arguments: object) -> None:
        """Call a method of a request's observer. If that fails, only this request fails; the engine is healthy."""
        try:
            getattr(request.observer, event)(*arguments)
        except Exception as fault:
            logging.exception("The observer of a request failed in %s", event)
            if event in ("onError", "onCancelled"):
                return
            cause = fault if isinstance(fault, UserError) else UserError("engine-answer-unused")
            error = EngineError.fromUserError(cause, traceback.format_exc())
            if request is self._current:
                if request.asked is None:
                    self._connection.send({"request": "cancel", "id": request.id})
                self._finish("onError", error)
                return
            if request in self._waiting:
                self._waiting.remove(request)
            self._lastError = error
            self._tell(request, "onError", error)

    def _finish(self, ending: str, *arguments: object) -> None:
        """End the current request. The observer may make the next request at once."""
        request = self._takeCurrent()
        self._cancelTimer.stop()
        if ending == "onError":
            self._lastError = arguments[0]
        callLater(self._advance)
        if self._connection:
            self._connection.release(request.id)
            if ending == "onError" and request.models is not None:
                # The server may have failed to store a model.
                self._connection.hello["models"] = request.models
        self._tell(request, ending, *arguments)

    def _onEnded(self, error: EngineError) -> None:
        """The process died or cannot be used."""
        cancelling = self._cancelTimer.isActive()
        neverWorked = self._connection is None or self._connection.hello is None
        self._dropConnection()
        self.onLost(error)
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
        """The engine does not start: tell every observer that waits for it."""
        self._lastError = error
        for request in self._takeAll():
            self._tell(request, "onError", error)

    def _takeCurrent(self) -> _Request | None:
        """Remove and return the current request; inputs that are not written yet are released."""
        request, self._current, self._pieces = self._current, None, iter(())
        return request

    def _takeAll(self) -> list[_Request]:
        current = self._takeCurrent()
        taken = [*([current] if current else []), *self._waiting]
        self._waiting.clear()
        self._isWanted = False
        self._cancelTimer.stop()
        return taken

    def _leave(self) -> None:
        """Let this engine end; the next request starts another one."""
        connection = self._connection
        self._dropConnection()
        connection.close()

    def _dropConnection(self) -> None:
        if self._connection:
            self._lastLog = self._connection.log
            self._leaving = [connection for connection in self._leaving if connection.isRunning]
            self._leaving.append(self._connection)
            self._connection = None


def _withoutNames(request: SegmentRequest, description: ModelDescription) -> SegmentRequest:
    """The request as it is sent to a server: images have the names of the model's channels."""
    channels = [
        replace(volume, name=wanted.name) for volume, wanted in zip(request.channels, description.inputs, strict=True)
    ]
    options = replace(request.options, report_name=None)
    return replace(request, model=description.name, channels=tuple(channels), options=options)


def sendModels(package: ModelPackage, known: dict[str, str], send: Callable[[dict], None]) -> Iterator[None]:
    """Send a model and its locator block by block, unless the server has the same version.

    ``known`` has the digest of each model that the server has, by name, and is updated.
    """
    packages, locator = [package], package.description.locator
    with contextlib.suppress(UserError):
        # As on this computer, a missing locator is an error only if it is needed.
        packages += [read_model(locator.model, verify=False)] if locator else []
    for each in packages:
        name, digest = each.description.name, each.description.digest
        if known.get(name) == digest:
            continue
        for file in each.description.files:
            writer = BlockWriter(send, f"{MODELS_FOLDER}/{name}/{file}")
            for block in each.blocks(file):
                writer.write(block)
                yield
        # model.json is sent last, because a folder with this file counts as a model.
        description = each.description.to_json().encode("utf-8")
        BlockWriter(send, f"{MODELS_FOLDER}/{name}/{DESCRIPTION_FILE}").write(description)
        known[name] = digest
