"""One life of the engine's process: its start, the messages to and from it, its log, and its end."""

import codecs
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import qt
from slicer.i18n import tr as _

from conresnet.worker import session_folder
from conresnet.worker.protocol import PROTOCOL, LineSplitter, ProtocolError, decode, encode

from .Processes import ProcessLaunch, killTree


@dataclass(frozen=True)
class EngineError:
    """An error as an observer hears it.

    Args:
        code: stable name of the fault, by which the sentence is translated.
        message: one sentence: what is wrong and what to do; in English where it comes from the engine's process.
        values: what the sentence speaks of.
        ours: whether it is a fault of the engine, worth a report, rather than something the user can put right.
        log: a traceback or the end of the engine's log, for the diagnostics; empty when it adds nothing.
    """

    code: str
    message: str
    values: dict = field(default_factory=dict)
    ours: bool = False
    log: str = ""

    @classmethod
    def fromMessage(cls, message: dict) -> "EngineError":
        """As the engine's process has told it."""
        return cls(message["code"], message["message"], message["values"], message["ours"], message["log"] or "")


@dataclass(frozen=True)
class EngineResult:
    """A finished segmentation.

    Args:
        labels: uint8 [k, j, i], the model's label values.
        maps: by name, float16 [c, k, j, i].
        report: seconds by phase, device, precision, volumes, warnings.
        regions: uint8 [b, k, j, i] where the model's segments overlap, for `conresnet.inference.results.region_mask`;
            else None.
    """

    labels: np.ndarray
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None


class EngineObserver:
    """Hears of a request; every method does nothing until it is overridden."""

    def onStarting(self) -> None:
        """The engine's process is being started, which may take a few seconds."""

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        """The work has come to ``fraction``, 0 to 1 over all phases; ``secondsLeft`` is None while nobody knows."""

    def onArray(self, name: str, array: np.ndarray) -> None:
        """The result ``name`` ("labels", "regions", a map) is there and fills from now on; zero where it is not yet."""

    def onDone(self, result: EngineResult) -> None:
        """The segmentation is finished."""

    def onDevices(self, devices: list[dict]) -> None:
        """The devices the engine can compute on: each a dict with ``name`` and ``title``."""

    def onError(self, error: EngineError) -> None:
        """The request has failed."""

    def onCancelled(self) -> None:
        """The request was cancelled."""


# A slow disk and a virus scanner may look at thousands of files before Python has started.
SECONDS_TO_START = 120
# After its standard input has closed, the engine has this long to leave by itself.
SECONDS_TO_LEAVE = 5
_LOG_LINES = 300
_REMOVALS, _MILLISECONDS_BETWEEN_REMOVALS = 20, 250


class EngineConnection:
    """A running engine.

    Args:
        launch: how to start it.
        onMessage: called with each event, hello among them.
        onEnded: called once with an EngineError, when the process ended other than by `close` or `kill`, could not be
            started, or speaks another protocol.
    """

    def __init__(
        self, launch: ProcessLaunch, onMessage: Callable[[dict], None], onEnded: Callable[[EngineError], None]
    ):
        self.launch = launch
        self.hello: dict | None = None
        self._onMessage, self._onEnded = onMessage, onEnded
        self._splitter = LineSplitter()
        self._logDecoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._log: deque[str] = deque([""], maxlen=_LOG_LINES)
        self._leaving = False
        self._process = qt.QProcess()
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._signals = [
            (self._process, "readyReadStandardOutput()", self._onOutput),
            (self._process, "readyReadStandardError()", self._onLog),
            (self._process, "finished(int,QProcess::ExitStatus)", self._onFinished),
            (self._process, "errorOccurred(QProcess::ProcessError)", self._onProcessError),
            (self._timer, "timeout()", self._onTimeout),
        ]
        for sender, signal, slot in self._signals:
            sender.connect(signal, slot)

    def open(self) -> None:
        """Start the process; hello comes as the first message."""
        self._timer.start(SECONDS_TO_START * 1000)
        self.launch.start(self._process)

    def send(self, message: dict) -> None:
        """Write a request; a process that is gone has told so by its end."""
        self._process.write(encode(message))

    def close(self) -> None:
        """Let the engine leave: it stops what it does and removes its files. Killed when it does not."""
        self._leaving = True
        if self.isRunning:
            self._process.closeWriteChannel()
            self._timer.start(SECONDS_TO_LEAVE * 1000)

    def waitUntilClosed(self) -> None:
        """Wait for the end after `close`, a few seconds at most. For the end of Slicer, when no event loop follows."""
        if self.isRunning and not self._process.waitForFinished(SECONDS_TO_LEAVE * 1000):
            self.kill()
            self._process.waitForFinished(SECONDS_TO_LEAVE * 1000)

    def kill(self) -> None:
        """End the process and what it started at once. What it left lying is removed when it is gone."""
        self._leaving = True
        if self.isRunning:
            if self.hello:
                # The process that Qt knows may be a launcher, and the interpreter would outlive it.
                killTree(self.hello["pid"])
            self._process.kill()

    @property
    def isRunning(self) -> bool:
        """Whether the process is starting or there."""
        return self._process.state() != qt.QProcess.NotRunning

    @property
    def log(self) -> str:
        """The last lines of the engine's standard error."""
        return "\n".join(self._log).strip()

    def _onOutput(self) -> None:
        for line in self._splitter.feed(bytes(self._process.readAllStandardOutput().data())):
            try:
                message = decode(line)
            except ProtocolError:
                # Something that ran before the engine could take the stream over has printed.
                self._appendLog(line.decode("utf-8", errors="replace") + "\n")
                continue
            if not self._leaving:
                self._receive(message)

    def _receive(self, message: dict) -> None:
        if self.hello is None:
            if message.get("event") != "hello":
                return
            self._timer.stop()
            if message.get("protocol") != PROTOCOL:
                self._end(_otherProtocol(message, self.launch.program))
                return
            self.hello = message
        self._onMessage(message)

    def _onLog(self) -> None:
        self._appendLog(self._logDecoder.decode(bytes(self._process.readAllStandardError().data())))

    def _appendLog(self, text: str) -> None:
        first, *others = text.replace("\r\n", "\n").split("\n")
        self._log[-1] += first
        self._log.extend(others)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._onOutput()
        self._onLog()
        self._timer.stop()
        qt.QTimer.singleShot(0, self._letGo)
        if self.hello:
            _removeSession(self.hello["session"], _REMOVALS)
        if not self._leaving:
            program, log = self.launch.program, self.log
            self._end(_ended(exitCode, log) if self.hello else _neverSpoke(program, exitCode, log))

    def _letGo(self) -> None:
        # As in ChildProcess; nothing more is heard of a process that has gone.
        for sender, signal, _slot in self._signals:
            sender.disconnect(signal)
        self._signals.clear()

    def _onProcessError(self, error: int) -> None:
        if error != qt.QProcess.FailedToStart:
            return
        qt.QTimer.singleShot(0, self._letGo)
        if not self._leaving:
            self._timer.stop()
            self._end(_notStarted(self.launch.program))

    def _onTimeout(self) -> None:
        if self._leaving:
            self.kill()
        else:
            self._end(_silent(self.launch.program, self.log))

    def _end(self, error: EngineError) -> None:
        self.kill()
        self._onEnded(error)


def _removeSession(path: str, tries: int) -> None:
    """Remove what a process has left; again a little later where it ended as the child of a launcher.

    Of a launcher that was killed one hears at once, while the interpreter itself holds its folder a moment longer.
    """
    if not session_folder.remove(path) and tries > 1:
        qt.QTimer.singleShot(_MILLISECONDS_BETWEEN_REMOVALS, lambda: _removeSession(path, tries - 1))


def _failure(code: str, sentence: str, log: str = "", **values: object) -> EngineError:
    return EngineError(code, sentence.format(**values), values, log=log)


def _notStarted(program: str) -> EngineError:
    sentence = _("The engine could not be started with {program}; choose another Python under Advanced.")
    return _failure("engine-not-started", sentence, program=program)


def _neverSpoke(program: str, exitCode: int, log: str) -> EngineError:
    sentence = _(
        "The engine ended before it was ready ({reason}); check that the Python {program} has what the engine needs, "
        "and see the log."
    )
    reason = log.splitlines()[-1] if log else _("exit code {exitCode}").format(exitCode=exitCode)
    return _failure("engine-start-failed", sentence, log, program=program, reason=reason)


def _silent(program: str, log: str) -> EngineError:
    sentence = _(
        "The engine gave no sign for {seconds} seconds after it was started with {program}; check that this is a "
        "working Python, and segment again."
    )
    return _failure("engine-silent", sentence, log, program=program, seconds=SECONDS_TO_START)


def _otherProtocol(hello: dict, program: str) -> EngineError:
    sentence = _(
        "The engine that {program} runs is of another version ({version}, protocol {protocol} instead of {ours}); "
        "restart Slicer, and install the extension again if that does not help."
    )
    version, protocol = hello.get("version"), hello.get("protocol")
    return _failure("engine-version", sentence, program=program, version=version, protocol=protocol, ours=PROTOCOL)


def _ended(exitCode: int, log: str) -> EngineError:
    sentence = _(
        "The engine ended unexpectedly (exit code {exitCode}), often because memory ran out; close other programs, "
        "draw a smaller region or choose another device, and segment again."
    )
    return _failure("engine-died", sentence, log, exitCode=exitCode)
