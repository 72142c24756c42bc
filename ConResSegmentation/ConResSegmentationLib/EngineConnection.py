"""One engine process from start to end: its messages, its log and its temporary folder.

An engine on another computer has a temporary folder there. The connection has one on this computer, which receives
copies of the engine's arrays.
"""

import logging
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.files import write_error
from conresnet.worker import (
    BLOCK_BYTES,
    PROTOCOL,
    BlockWriter,
    LineSplitter,
    ProtocolError,
    SessionFolder,
    decode,
    encode,
    remove_abandoned_sessions,
    remove_session,
)

from .EnginePython import EngineServer
from .Processes import ChildProcess, ProcessLaunch, endingOf
from .ResultOrigin import BYTES_AT_ONCE
from .Widgets import singleShotTimer

# A slow disk and a virus scanner may examine thousands of files before Python has started.
SECONDS_TO_START = 120
# Time for the engine to end by itself after its standard input was closed.
SECONDS_TO_LEAVE = 5
_LOG_LINES = 300
# Data waiting to be sent occupies Slicer's memory.
_MOST_BYTES_TO_WRITE = 4 * BLOCK_BYTES
_REMOVALS, _MILLISECONDS_BETWEEN_REMOVALS = 20, 250


@dataclass(frozen=True)
class EngineError:
    """Why a request failed.

    Args:
        code: stable name of the error, used to look up the translated sentence.
        message: the sentence in English: what is wrong and what to do.
        values: the values that the sentence names.
        log: traceback or end of the engine's log, for the diagnostics.
        server: the server that the error is about; empty for this computer.
    """

    code: str
    message: str
    values: dict = field(default_factory=dict)
    log: str = ""
    server: str = ""

    @classmethod
    def fromMessage(cls, message: dict, server: str = "") -> "EngineError":
        """From an error event of the engine process."""
        return cls(message["code"], message["message"], message["values"], message["log"] or "", server)

    @classmethod
    def fromUserError(cls, error: UserError, log: str = "") -> "EngineError":
        """From an error in Slicer's process."""
        return cls(error.code, error.message, error.values, log)


@dataclass(frozen=True)
class EngineResult:
    """A finished segmentation.

    Args:
        labels: uint8 [k, j, i], the model's label values.
        maps: float16 [c, k, j, i] by name.
        report: seconds by phase, device, precision, volumes in mL, warnings.
        regions: uint8 [b, k, j, i] if the model's segments overlap, for `conresnet.inference.labels.region_mask`.
    """

    labels: np.ndarray
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None


class EngineObserver:
    """Receives the events of a request. Every method does nothing unless overridden."""

    def onStarting(self) -> None:
        """The engine process is starting, which may take a few seconds."""

    def onSent(self, checksums: tuple[str, ...]) -> None:
        """The inputs were sent; ``ResultOrigin.checksumInPieces`` of each, as it was read."""

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        """``fraction`` of the work is done, 0 to 1 over all phases; ``secondsLeft`` is None if unknown."""

    def onArray(self, name: str, array: np.ndarray) -> None:
        """The result ``name`` ("labels", "regions", a map) exists and is being filled; the rest is zero."""

    def onDone(self, result: EngineResult) -> None:
        """The segmentation is finished."""

    def onError(self, error: EngineError) -> None:
        """The request failed."""

    def onCancelled(self) -> None:
        """The request was canceled."""


class EngineConnection:
    """A running engine.

    Args:
        onMessage: called with each event, including hello.
        onEnded: called once with an EngineError if the process ended other than by `close` or `kill`, could not be
            started or did not answer, uses another protocol, or sent something unexpected.
    """

    def __init__(
        self, launch: ProcessLaunch, onMessage: Callable[[dict], None], onEnded: Callable[[EngineError], None]
    ):
        self.launch = launch
        self.hello: dict | None = None
        self._onMessage, self._onEnded = onMessage, onEnded
        self._splitter = LineSplitter()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._isLeaving, self._removals = False, _REMOVALS
        self._ownFolder: SessionFolder | None = None
        self._process = ChildProcess(launch, self._onProcessEnded, self._log.append, onOutput=self._onOutput)
        self._timer = singleShotTimer(None, self._onTimeout)

    def open(self) -> None:
        """Start the process; its first message is hello."""
        self._timer.start(SECONDS_TO_START * 1000)
        self._process.start()

    def send(self, message: dict) -> None:
        """Write a request. If the process has ended, `onEnded` is called."""
        self._process.write(encode(message))

    @property
    def isRemote(self) -> bool:
        return bool(self.launch.server)

    @property
    def session(self) -> Path:
        """The folder of the arrays, available after the hello message: the engine's own, or this computer's copy."""
        return self._ownFolder.path if self._ownFolder else Path(self.hello["session"])

    @property
    def bytesAtOnce(self) -> int:
        """How much to read and write between two events of Slicer; compression takes longer."""
        return BLOCK_BYTES if self.isRemote else BYTES_AT_ONCE

    @property
    def isBehind(self) -> bool:
        """Whether so much data is waiting to be sent that the next piece should wait."""
        return self._process.bytesToWrite > _MOST_BYTES_TO_WRITE

    @contextmanager
    def writing(self, file: str, request: int) -> Iterator[object]:
        """Open a new file in the engine's session folder for a request; it has a method ``write``. Raises OSError."""
        if self.isRemote:
            yield BlockWriter(lambda fields: self.sendBlock(fields, request), file)
            return
        path = self.session / file
        # Never create the session folder itself: nothing would ever remove it.
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as target:
            yield target

    def sendBlock(self, fields: dict, request: int) -> None:
        self.send({"request": "block", "id": request, **fields})

    def mapped(self, file: str) -> np.ndarray:
        """Map an array of the session folder, which may still be incomplete; UserError("engine-folder-gone")."""
        try:
            return np.load(self.session / file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError("engine-folder-gone") from error

    def release(self, request: int) -> None:
        """Tell the engine that the arrays of a request were read, or are not needed."""
        self.send({"request": "release", "id": request})
        if self._ownFolder:
            self._ownFolder.release(request)

    def close(self) -> None:
        """Let the engine stop its work, remove its files and end; it is killed if it does not."""
        self._isLeaving = True
        if self.isRunning:
            self._process.closeInput()
            self._timer.start(SECONDS_TO_LEAVE * 1000)

    def waitUntilClosed(self) -> None:
        """Wait for the end after `close`, a few seconds at most, when no event loop follows: Slicer is quitting."""
        if not self._process.waitForEnd(SECONDS_TO_LEAVE):
            self.kill()
            self._process.waitForEnd(SECONDS_TO_LEAVE)
        if self.hello:
            self._isSessionRemoved()

    def kill(self) -> None:
        """Kill the process and its children. Files it left behind are removed once it has ended."""
        self._isLeaving = True
        if self.isRunning:
            # Qt may know only a launcher, and the interpreter would outlive it. An engine on a server ends by itself.
            self._process.kill(self.hello["pid"] if self.hello and not self.isRemote else None)

    @property
    def isRunning(self) -> bool:
        """Whether the process is starting or running."""
        return self._process.isRunning

    @property
    def log(self) -> str:
        """The last lines of the engine's standard error."""
        return "\n".join(self._log).strip()

    def _onOutput(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            try:
                message = decode(line)
            except ProtocolError:
                # Printed by something that ran before the engine took over the stream.
                self._log.append(line.decode("utf-8", errors="replace"))
                continue
            if self._isLeaving:
                continue
            try:
                self._receive(message)
            except UserError as error:
                self._end(error)
            except Exception:
                # Otherwise whoever waits for the engine would wait forever.
                logging.exception("A message of the engine could not be handled")
                self._log.append(traceback.format_exc())
                self._end(UserError("engine-message"))

    def _receive(self, message: dict) -> None:
        if self.hello is None:
            if message.get("event") == "error":
                self._timer.stop()
                self.kill()
                self._onEnded(EngineError.fromMessage(message, self.launch.server))
            if message.get("event") != "hello":
                return
            self._timer.stop()
            self._welcome(message)
            self.hello = message
        self._onMessage(message)

    def _welcome(self, hello: dict) -> None:
        if self.isRemote:
            EngineServer(self.launch.server).checkVersion(hello)
            # Remove folders left by a Slicer that was killed; engines on this computer do the same.
            remove_abandoned_sessions()
            try:
                self._ownFolder = SessionFolder()
            except OSError as error:
                raise write_error(error, tempfile.gettempdir()) from error
        elif hello.get("protocol") != PROTOCOL:
            values = {"version": hello.get("version"), "protocol": hello.get("protocol"), "ours": PROTOCOL}
            raise UserError("engine-version", program=self.launch.program, **values)

    def _onProcessEnded(self, exitCode: int | None, _output: str, _errors: str) -> None:
        self._timer.stop()
        if self.hello:
            self._removeSession()
        else:
            self._timer.disconnect("timeout()")
        if not self._isLeaving:
            self._end(self._whyEnded(exitCode))

    def _whyEnded(self, exitCode: int | None) -> UserError:
        program, log = self.launch.program, self.log
        if not self._process.hasStarted:
            return UserError("engine-not-started", program=program)
        if self.isRemote:
            error = EngineServer(self.launch.server).whyEnded(exitCode, log, wasReady=self.hello is not None)
            if error:
                return error
        end = endingOf(exitCode)
        if self.hello:
            return UserError("engine-died", reason=end)
        reason = log.splitlines()[-1] if log else end
        return UserError("engine-start-failed", program=program, reason=reason)

    def _onTimeout(self) -> None:
        if not self.isRunning:
            # It may have ended before its hello, a moment before Qt says so.
            if self.hello:
                self._removeSession()
        elif self._isLeaving:
            self.kill()
        elif self.isRemote:
            self._end(UserError("engine-server-silent", server=self.launch.server, seconds=SECONDS_TO_START))
        else:
            self._end(UserError("engine-silent", program=self.launch.program, seconds=SECONDS_TO_START))

    def _removeSession(self) -> None:
        """Remove the session folder, again a little later if needed.

        The interpreter behind a killed launcher holds its folder a moment longer than the launcher lives.
        """
        self._removals -= 1
        if self._isSessionRemoved() or self._removals <= 0:
            self._timer.disconnect("timeout()")
        else:
            self._timer.start(_MILLISECONDS_BETWEEN_REMOVALS)

    def _isSessionRemoved(self) -> bool:
        """Remove the session folder of an engine that has ended; returns whether it is gone."""
        if self._ownFolder:
            self._ownFolder.remove()
            return True
        return remove_session(self.hello["session"])

    def _end(self, error: UserError) -> None:
        self.kill()
        self._onEnded(EngineError.fromUserError(error, self.log))
