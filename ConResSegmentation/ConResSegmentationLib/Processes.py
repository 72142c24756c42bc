"""Child processes of both modules: how a program is started, read line by line, stopped and killed.

Every process that Slicer starts here goes through `ChildProcess`, except a training, which must outlive Slicer
(`ProcessLaunch.startDetached`). The workarounds for PythonQt's object ownership are in this file only.
"""

import codecs
import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import qt
import slicer
from slicer.i18n import tr as _

from .Widgets import singleShotTimer

SECONDS_TO_TERMINATE = 3
_MOST_CHARACTERS = 1_000_000
_later: deque[Callable[[], object]] = deque()
_laterTimer = None


def callLater(function: Callable[[], object]) -> None:
    """Call a function from Slicer's event loop, soon and in order.

    Not with ``qt.QTimer.singleShot``: Slicer replaces that by a timer that keeps its function until Slicer quits.
    """
    global _laterTimer
    if _laterTimer is None:
        _laterTimer = singleShotTimer(None, _callNext)
    _later.append(function)
    _laterTimer.start(0)


def _callNext() -> None:
    function = _later.popleft()
    if _later:
        _laterTimer.start(0)
    function()


def killTree(pid: int) -> None:
    """Kill a process and its children. A process that no longer exists is not an error.

    On Linux and macOS the children are found if the process leads a process group, even after it has ended.
    """
    with contextlib.suppress(OSError):
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], creationflags=subprocess.CREATE_NO_WINDOW)
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It is in the group of another process, such as a shell, which is not ours to kill.
            os.kill(pid, signal.SIGKILL)


def _childrenOf(pid: int) -> list[int]:
    """The child processes of a process, on Linux and macOS; none on Windows, where ``taskkill`` finds them."""
    if os.name == "nt":
        return []
    # Some Linux systems do not have the program ps.
    with contextlib.suppress(OSError, ValueError):
        # In a single -o, macOS would take the second column for the title of the first.
        listed = subprocess.run(["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True).stdout
        pairs = [map(int, line.split()) for line in listed.splitlines()]
        return [child for child, parent in pairs if parent == pid]
    return []


def pythonEnvironment(isSlicers: bool) -> dict[str, str]:
    """The environment variables for a Python process, as a copy.

    Args:
        isSlicers: whether it is Slicer's own Python, which finds its standard library only with Slicer's variables.
            Any other Python would load Slicer's libraries because of them, and crash.
    """
    return dict(os.environ) if isSlicers else slicer.util.startupEnvironment()


def packageVariables(folders: Iterable[str]) -> dict[str, str]:
    """The environment variables with which a Python finds the packages in these folders, and runs them safely."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "PYTHONUTF8": "1",
        # Otherwise a file in the working directory, such as random.py, would be imported as the module of that name.
        "PYTHONSAFEPATH": "1",
        "PYTHONFAULTHANDLER": "1",
    }


@dataclass(frozen=True)
class ProcessLaunch:
    """A program, its arguments and its complete environment, and the server it connects to, if any."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    server: str = ""

    def __str__(self) -> str:
        return f"{self.program} {' '.join(self.arguments)}"

    def startDetached(self, log) -> subprocess.Popen:
        """Start a process that keeps running when Slicer ends.

        Args:
            log: binary file that receives standard output and standard error.

        Raises:
            OSError: the program cannot be started.
        """
        options: dict = {"start_new_session": True}
        if os.name == "nt":
            # Without a window. With no console at all, each process it starts would open a window of its own.
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        return subprocess.Popen(
            [self.program, *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            **options,
        )


class ChildProcess:
    """A process that ends with Slicer at the latest.

    Args:
        onEnded: called once, from the event loop, with (exit code, standard output, standard error). The exit code is
            None if the process could not be started, was stopped, or crashed.
        onLine: called with each complete line of either stream.
        secondsToEnd: time limit after which it is killed. Defaults to none.
        onOutput: takes the bytes of standard output instead of `onLine` and `onEnded`; standard input stays open then,
            for `write`.

    Attributes:
        hasStarted: whether the program could be started.
        isStopped: whether it was asked to stop.
    """

    def __init__(
        self,
        launch: ProcessLaunch,
        onEnded: Callable[[int | None, str, str], None],
        onLine: Callable[[str], None] | None = None,
        secondsToEnd: int | None = None,
        onOutput: Callable[[bytes], None] | None = None,
    ):
        self.launch = launch
        self.hasStarted, self.isStopped = True, False
        self._secondsToEnd = secondsToEnd
        self._onEnded, self._onLine, self._onOutput = onEnded, onLine, onOutput
        self._isOver = False
        self._texts, self._rests = ["", ""], ["", ""]
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _stream in range(2)]
        self._process = qt.QProcess()
        self._signals = {
            "readyReadStandardOutput()": self._readOutput,
            "readyReadStandardError()": self._readErrors,
            "finished(int,QProcess::ExitStatus)": self._onFinished,
            "errorOccurred(QProcess::ProcessError)": self._onProcessError,
        }
        for processSignal, slot in self._signals.items():
            self._process.connect(processSignal, slot)
        self._killer = singleShotTimer(None, self.kill)

    def start(self) -> None:
        """Start the process and return at once."""
        if self._secondsToEnd is not None:
            self._killer.start(self._secondsToEnd * 1000)
        environment = qt.QProcessEnvironment()
        for name, value in self.launch.environment.items():
            environment.insert(name, value)
        self._process.setProcessEnvironment(environment)
        self._process.start(self.launch.program, list(self.launch.arguments))
        if self._onOutput is None:
            self._process.closeWriteChannel()

    @property
    def isRunning(self) -> bool:
        """Whether the process is starting or running."""
        return self._process.state() != qt.QProcess.NotRunning

    def write(self, data: bytes) -> None:
        self._process.write(data)

    @property
    def bytesToWrite(self) -> int:
        return self._process.bytesToWrite()

    def closeInput(self) -> None:
        self._process.closeWriteChannel()

    def stop(self, wait: bool = False) -> None:
        """Ask the process to end, and kill it if it has not ended after a few seconds.

        Args:
            wait: until it has ended, for when Slicer or the module is about to end; `onEnded` is not called then.
        """
        self.isStopped = True
        if wait:
            self._onEnded = lambda *_ended: None
        children = self._behindLauncher()
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM)
        if not children:
            # A launcher ends when its child does. If it ended earlier, a child that ignores the signal could no longer
            # be found. A console program on Windows does not receive this request.
            self._process.terminate()
        self._killer.start(SECONDS_TO_TERMINATE * 1000)
        if wait and not self.waitForEnd(SECONDS_TO_TERMINATE):
            self.kill()
            self.waitForEnd(SECONDS_TO_TERMINATE)

    def drop(self) -> None:
        """Kill the process without calling `onEnded`, when its answer is no longer needed."""
        self._onEnded = lambda *_ended: None
        self.kill()
        self.waitForEnd(1)

    def kill(self, pid: int | None = None) -> None:
        """Kill the process at once, along with the processes behind a launcher and the tree of ``pid``."""
        if pid is not None:
            killTree(pid)
        for child in self._behindLauncher():
            killTree(child)
        if os.name == "nt" and self._isLauncher and self._process.processId():
            killTree(self._process.processId())
        self._process.kill()

    @property
    def _isLauncher(self) -> bool:
        """Whether the program is the launcher of Slicer's Python, which leaves its child behind when it is ended."""
        return os.path.basename(self.launch.program).startswith("PythonSlicer")

    def _behindLauncher(self) -> list[int]:
        pid = self._process.processId()
        return _childrenOf(pid) if self._isLauncher and pid else []

    def waitForEnd(self, seconds: float) -> bool:
        """Wait without an event loop; returns whether the process has ended."""
        return not self.isRunning or self._process.waitForFinished(round(seconds * 1000))

    def _readOutput(self) -> None:
        data = bytes(self._process.readAllStandardOutput().data())
        if self._onOutput:
            self._onOutput(data)
        else:
            self._take(0, data)

    def _readErrors(self) -> None:
        self._take(1, bytes(self._process.readAllStandardError().data()))

    def _take(self, stream: int, data: bytes, isLast: bool = False) -> None:
        text = self._decoders[stream].decode(data, isLast).replace("\r\n", "\n")
        self._texts[stream] = (self._texts[stream] + text)[-_MOST_CHARACTERS:]
        # A progress bar returns to the start of its line again and again.
        *lines, self._rests[stream] = (self._rests[stream] + text + "\n" * isLast).replace("\r", "\n").split("\n")
        if self._onLine:
            for line in filter(str.strip, lines):
                self._onLine(line)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._readOutput()
        self._readErrors()
        self._end(None if self.isStopped or exitStatus != qt.QProcess.NormalExit else exitCode)

    def _onProcessError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:
            self.hasStarted = False
            self._texts[1] += f"{self.launch.program} could not be started."
            self._end(None)

    def _end(self, exitCode: int | None) -> None:
        self._killer.stop()
        if self._isOver:
            return
        self._isOver = True
        for stream in (0, 1):
            self._take(stream, b"", isLast=True)
        # The listener may drop this object and start the next process, but not while Qt is still emitting.
        callLater(lambda: self._tellEnd(exitCode))

    def _tellEnd(self, exitCode: int | None) -> None:
        # PythonQt keeps slots for as long as the sender lives, and Python's collector does not see that cycle.
        for processSignal in self._signals:
            self._process.disconnect(processSignal)
        self._signals.clear()
        self._killer.disconnect("timeout()")
        self._onEnded(exitCode, *self._texts)


class ProcessSteps:
    """Processes that run one after another until one fails.

    Args:
        onLine: called with each command, and with each line that it prints.
        onEnded: called once with a sentence that says what went wrong; empty if nothing did.
        canceled: the sentence if they were stopped.
        failed: the sentence if one failed; it names the last line that it printed as ``{reason}``.
    """

    def __init__(
        self,
        launches: Iterable[ProcessLaunch],
        onLine: Callable[[str], None],
        onEnded: Callable[[str], None],
        canceled: str,
        failed: str,
    ):
        self._launches, self._onLine, self._onEnded = deque(launches), onLine, onEnded
        self._canceled, self._failed = canceled, failed
        self._process: ChildProcess | None = None
        self.isStopped = False

    def start(self) -> None:
        """Start the first one, and return at once."""
        self._next()

    def _next(self) -> None:
        launch = self._launches.popleft()
        self._onLine(f"> {launch}")
        self._process = ChildProcess(launch, self._onStepEnded, self._onLine)
        self._process.start()

    def stop(self, wait: bool = False) -> None:
        """Stop the process that is running, and start no other; with ``wait`` as for `ChildProcess.stop`."""
        self.isStopped = True
        if self._process:
            self._process.stop(wait)

    def _onStepEnded(self, exitCode: int | None, output: str, errors: str) -> None:
        self._process = None
        if self.isStopped:
            self._onEnded(self._canceled)
        elif exitCode != 0:
            self._onEnded(self._failed.format(reason=lastLine(errors, output) or endingOf(exitCode)))
        elif self._launches:
            self._next()
        else:
            self._onEnded("")


def endingOf(exitCode: int | None) -> str:
    """How a process ended, in words; None if it crashed."""
    return _("it crashed") if exitCode is None else _("exit code {exitCode}").format(exitCode=exitCode)


def lastLine(*texts: str) -> str:
    """The last line that is not blank of the first text that has one, such as a command's closing sentence."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return ""
