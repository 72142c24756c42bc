"""Requests to stop a training: Ctrl-C, a signal of the system or of a queue, or the file ``stop`` in the run's folder.

A run also stops if the process that started it is gone, see ``PARENT_VARIABLE``. Lightning is not imported here,
because that takes seconds, and neither the processes that make samples nor a cross-validation need it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from conresnet_training.runs import STOP_FILE

# Exit status of a run that was stopped early with a checkpoint: this plus the number of the signal, or of SIGINT where
# the file ``stop`` asked for it.
STOPPED = 128
# Exit status if another process of the same training was asked to stop.
STOPPED_ELSEWHERE = STOPPED + signal.SIGTERM
# Environment variable of a training: the id of a process that it must not outlive, such as a cross-validation.
PARENT_VARIABLE = "CONRESNET_PARENT"
# Environment variable of a training: how many trainings run at the same time on this computer, including itself.
JOBS_VARIABLE = "CONRESNET_JOBS"
# Ctrl-C; the end that a system or queue announces, and Ctrl-\; a closed terminal; what queues send before a time limit;
# the limit on processor time; and what Windows can send to a process in a group of its own.
_NAMES = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# These may come again by themselves: a shell and the system both signal a closed terminal, and the limit on processor
# time is signaled every second.
_REPEATED = {getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")}


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """A terminal or a queue signals every process; those that make samples must live until the run has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _has_ended(pid: int) -> bool:
    """Whether no process with this id runs; False if that cannot be known."""
    try:
        # One that has ended keeps its id until its parent has asked for its exit status.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Deliver signals after the block. A process started in it gets them when it enters its `StopWatch`.

    Otherwise Ctrl-C would end that process while it still imports packages, which looks like a failure.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopWatch:
    """Notices requests to stop. The first signal only sets ``reason``; a second Ctrl-C or SIGTERM ends the process.

    A context manager that restores the signal handlers. Signals that are ignored, as under nohup, stay ignored. Outside
    the main thread, which alone may set handlers, signals are not noticed.

    Args:
        folder: the run's, in which the file ``stop`` may appear.

    Attributes:
        reason: why to stop, for people; None while nobody has asked.
        status: exit status of a process that was stopped; 0 while nobody has asked.
    """

    def __init__(self, folder: Path):
        self.reason: str | None = None
        self.status = 0
        self._is_insisted_on = False
        self._file = folder / STOP_FILE
        self._parent = int(os.environ.get(PARENT_VARIABLE) or 0)
        self._handlers: dict = {}

    def __enter__(self) -> "StopWatch":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heard}
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        if self.reason is None and self._file.exists():
            self.reason, self.status = "requested with the stop command or in Slicer", STOPPED + signal.SIGINT
            self._is_insisted_on = True
        if self.reason is None and self._parent and _has_ended(self._parent):
            self.reason, self.status = "the process that started it has ended", STOPPED_ELSEWHERE
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number not in _REPEATED:
            if self._is_insisted_on:
                raise KeyboardInterrupt
            self._is_insisted_on = True
        if self.reason is None:
            self.reason, self.status = f"signal {signal.Signals(number).name}", STOPPED + number
