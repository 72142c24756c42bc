"""One engine process from start to end: its messages, its log and its temporary folder."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import qt
from slicer.i18n import tr as _

from conresnet.messages import sentence
from conresnet.worker import session_folder
from conresnet.worker.protocol import PROTOCOL, LineSplitter, ProtocolError, decode, encode

from .Processes import ChildProcess, ProcessLaunch

# A slow disk and a virus scanner may examine thousands of files before Python has started.
SECONDS_TO_START = 120
# Time for the engine to end by itself after its standard input was closed.
SECONDS_TO_LEAVE = 5
_LOG_LINES = 300
_REMOVALS, _MILLISECONDS_BETWEEN_REMOVALS = 20, 250


@dataclass(frozen=True)
class EngineError:
    """Why a request failed.

    Args:
        code: stable name of the error, used to look up the translated sentence.
        message: the sentence in English: what is wrong and what to do.
        values: the values that the sentence names.
        ours: whether it is a bug worth reporting rather than something the user can fix.
        log: traceback or end of the engine's log, for the diagnostics.
    """

    code: str
    message: str
    values: dict = field(default_factory=dict)
    ours: bool = False
    log: str = ""

    @classmethod
    def fromMessage(cls, message: dict) -> "EngineError":
        """From an error event of the engine process."""
        return cls(message["code"], message["message"], message["values"], message["ours"], message["log"] or "")

    @classmethod
    def ofCode(cls, code: str, log: str = "", **values: object) -> "EngineError":
        """An error that Slicer's process noticed."""
        return cls(code, sentence(code, values), values, log=log)


@dataclass(frozen=True)
class EngineResult:
    """A finished segmentation.

    Args:
        labels: uint8 [k, j, i], the model's label values.
        maps: float16 [c, k, j, i] by name.
        report: seconds by phase, device, precision, volumes in mL, warnings.
        regions: uint8 [b, k, j, i] if the model's segments overlap, for `conresnet.inference.results.region_mask`.
    """

    labels: np.ndarray
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None


class EngineObserver:
    """Receives what becomes of a request. Every method does nothing unless overridden."""

    def onStarting(self) -> None:
        """The engine process is starting, which may take a few seconds."""

    def onSent(self, checksums: tuple[str, ...]) -> None:
        """The inputs were sent; ``ResultOrigin.checksum`` of each, as it was read."""

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        """``fraction`` of the work is done, 0 to 1 over all phases; ``secondsLeft`` is None if unknown."""

    def onArray(self, name: str, array: np.ndarray) -> None:
        """The result ``name`` ("labels", "regions", a map) exists and is being filled; zero where it is not yet."""

    def onDone(self, result: EngineResult) -> None:
        """The segmentation is finished."""

    def onDevices(self, devices: list[dict]) -> None:
        """The available devices, each a dict with ``name`` and ``title``."""

    def onError(self, error: EngineError) -> None:
        """The request failed."""

    def onCancelled(self) -> None:
        """The request was canceled."""


class EngineConnection:
    """A running engine.

    Args:
        launch: how to start it.
        onMessage: called with each event, including hello.
        onEnded: called once with an EngineError if the process ended other than by `close` or `kill`, could not be
            started, or uses another protocol.
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
        self._process = ChildProcess(launch, self._onProcessEnded, self._log.append, onOutput=self._onOutput)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._onTimeout)

    def open(self) -> None:
        """Start the process; its first message is hello."""
        self._timer.start(SECONDS_TO_START * 1000)
        self._process.start()

    def send(self, message: dict) -> None:
        """Write a request. If the process has ended, `onEnded` is called."""
        self._process.write(encode(message))

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
            session_folder.remove(self.hello["session"])

    def kill(self) -> None:
        """Kill the process and its children. Files it left behind are removed once it has ended."""
        self._isLeaving = True
        if self.isRunning:
            # Qt may know only a launcher, and the interpreter would outlive it.
            self._process.kill(self.hello["pid"] if self.hello else None)

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
            if not self._isLeaving:
                self._receive(message)

    def _receive(self, message: dict) -> None:
        if self.hello is None:
            if message.get("event") != "hello":
                return
            self._timer.stop()
            if message.get("protocol") != PROTOCOL:
                version, protocol = message.get("version"), message.get("protocol")
                values = {"version": version, "protocol": protocol, "ours": PROTOCOL}
                self._end(EngineError.ofCode("engine-version", program=self.launch.program, **values))
                return
            self.hello = message
        self._onMessage(message)

    def _onProcessEnded(self, exitCode: int | None, _output: str, _errors: str) -> None:
        self._timer.stop()
        if self.hello:
            self._removeSession()
        else:
            self._letGo()
        if not self._isLeaving:
            self._end(self._whyEnded(exitCode))

    def _whyEnded(self, exitCode: int | None) -> EngineError:
        program, log = self.launch.program, self.log
        if not self._process.hasStarted:
            return EngineError.ofCode("engine-not-started", program=program)
        if exitCode is None:
            exitCode = _("none, it crashed")
        if self.hello:
            return EngineError.ofCode("engine-died", log, exitCode=exitCode)
        reason = log.splitlines()[-1] if log else _("exit code {exitCode}").format(exitCode=exitCode)
        return EngineError.ofCode("engine-start-failed", log, program=program, reason=reason)

    def _onTimeout(self) -> None:
        if not self.isRunning:
            # It may have ended before its hello, a moment before Qt says so.
            if self.hello:
                self._removeSession()
        elif self._isLeaving:
            self.kill()
        else:
            values = {"program": self.launch.program, "seconds": SECONDS_TO_START}
            self._end(EngineError.ofCode("engine-silent", self.log, **values))

    def _removeSession(self) -> None:
        """Remove the session folder, again a little later if needed.

        The interpreter behind a killed launcher holds its folder a moment longer than the launcher lives.
        """
        self._removals -= 1
        if session_folder.remove(self.hello["session"]) or self._removals <= 0:
            self._letGo()
        else:
            self._timer.start(_MILLISECONDS_BETWEEN_REMOVALS)

    def _letGo(self) -> None:
        self._timer.disconnect("timeout()")

    def _end(self, error: EngineError) -> None:
        self.kill()
        self._onEnded(error)
