"""Ending a process at once together with those that it has started.

How a program is started beside Slicer: its words, and the environment variables that suit it.

A command that runs beside Slicer and ends with it: its output line by line, its end, and stopping it.
"""

import codecs
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import qt
import slicer


def killTree(pid: int) -> None:
    """Kill a process and what it has started; one that has gone already is no error.

    On Linux and macOS what it has started is found where it leads a process group, also when it is gone itself.
    """
    with contextlib.suppress(OSError):
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], creationflags=subprocess.CREATE_NO_WINDOW)
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It shares the group of another, such as a shell, which is not ours to kill.
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class ProcessLaunch:
    """A program, its arguments, and its whole environment."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def start(self, process: qt.QProcess) -> None:
        """Start it as ``process``."""
        environment = qt.QProcessEnvironment()
        for name, value in self.environment.items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        process.start(self.program, list(self.arguments))


def variablesOfPython(isSlicers: bool) -> dict[str, str]:
    """The environment variables that a Python starts with; a copy, to be added to.

    Args:
        isSlicers: whether it is Slicer's own, which finds its standard library by Slicer's variables alone. Another one
            would load Slicer's libraries instead of its own by them, and crash.
    """
    return dict(os.environ) if isSlicers else slicer.util.startupEnvironment()


SECONDS_TO_TERMINATE = 3


class ChildProcess:
    """One run of a program.

    Args:
        launch: what to start.
        onEnded: called once from the event loop with (exit code, all that was written to the standard output, all that
            was written to the standard error); the exit code is None where it could not be started, or did not end by
            itself.
        onLine: called with every finished line of either stream.
        secondsToEnd: it is killed when it takes longer. Defaults to no limit.
    """

    def __init__(
        self,
        launch: ProcessLaunch,
        onEnded: Callable[[int | None, str, str], None],
        onLine: Callable[[str], None] | None = None,
        secondsToEnd: int | None = None,
    ):
        self.launch = launch
        self._secondsToEnd = secondsToEnd
        self._onEnded, self._onLine = onEnded, onLine
        self._isStopped = self._isOver = False
        self._texts, self._rests = ["", ""], ["", ""]
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _stream in range(2)]
        self._process = qt.QProcess()
        self._signals = {
            "readyReadStandardOutput()": self._onOutput,
            "readyReadStandardError()": self._onError,
            "finished(int,QProcess::ExitStatus)": self._onFinished,
            "errorOccurred(QProcess::ProcessError)": self._onProcessError,
        }
        for processSignal, slot in self._signals.items():
            self._process.connect(processSignal, slot)
        self._killer = qt.QTimer()
        self._killer.setSingleShot(True)
        self._killer.connect("timeout()", self._process.kill)

    def start(self) -> None:
        """Start it; what becomes of it is heard later."""
        if self._secondsToEnd is not None:
            self._killer.start(self._secondsToEnd * 1000)
        self.launch.start(self._process)
        self._process.closeWriteChannel()

    @property
    def isStopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._isStopped

    def stop(self, wait: bool = False) -> None:
        """Have it end; killed when it does not in a few seconds.

        Args:
            wait: until it has gone; for when Slicer or the module is about to end. Nothing is told then.
        """
        self._isStopped = True
        if wait:
            self._onEnded = lambda *_ended: None
        # A console program of Windows hears no request to end.
        self._process.terminate()
        self._killer.start(SECONDS_TO_TERMINATE * 1000)
        if wait and not self._process.waitForFinished(SECONDS_TO_TERMINATE * 1000):
            self._process.kill()
            self._process.waitForFinished(SECONDS_TO_TERMINATE * 1000)

    def drop(self) -> None:
        """Kill it at once, and tell nothing: for a question whose answer nobody wants any more."""
        self._onEnded = lambda *_ended: None
        self._process.kill()
        self._process.waitForFinished(1000)

    def _onOutput(self) -> None:
        self._take(0, bytes(self._process.readAllStandardOutput().data()))

    def _onError(self) -> None:
        self._take(1, bytes(self._process.readAllStandardError().data()))

    def _take(self, stream: int, data: bytes) -> None:
        text = self._decoders[stream].decode(data).replace("\r\n", "\n")
        self._texts[stream] += text
        # A progress bar goes back to the start of its line again and again.
        *lines, self._rests[stream] = (self._rests[stream] + text).replace("\r", "\n").split("\n")
        if self._onLine:
            for line in filter(str.strip, lines):
                self._onLine(line)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._onOutput()
        self._onError()
        self._end(None if self._isStopped or exitStatus != qt.QProcess.NormalExit else exitCode)

    def _onProcessError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:
            self._texts[1] += f"{self.launch.program} could not be started."
            self._end(None)

    def _end(self, exitCode: int | None) -> None:
        self._killer.stop()
        if self._isOver:
            return
        self._isOver = True
        # Who hears it may start the next process and drop this one: not while its process is still telling.
        qt.QTimer.singleShot(0, lambda: self._tellEnd(exitCode))

    def _tellEnd(self, exitCode: int | None) -> None:
        # What a signal calls PythonQt keeps as long as the sender lives, and Python's collector does not see that ring.
        for processSignal in self._signals:
            self._process.disconnect(processSignal)
        self._signals.clear()
        self._onEnded(exitCode, *self._texts)


def lastLine(*texts: str) -> str:
    """The last line that says something, of the first text that has one: what a command closes with."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return ""
