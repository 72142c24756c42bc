"""Work that the first of several processes does while the others wait, and requests to stop.

A run is asked to stop by Ctrl-C, by a signal of the system or of a queue, or by the file ``stop``.
"""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from conresnet_training.runs.state import STOP_FILE

_DONE, _HEARD = "done", "heard"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_HEAR = 0.5, 20.0
# Exit status of a run that was stopped early with a checkpoint: this plus the number of the signal, or of SIGINT where
# the file ``stop`` asked for it.
STOPPED = 128
# Exit status if another process of the same training was asked to stop.
STOPPED_ELSEWHERE = STOPPED + signal.SIGTERM


def first_does(work: Callable[[], bool]) -> bool:
    """Do ``work`` in the first process and return its result in all; False in the others if it raises there.

    May be called once per process, after the processes of a training have met. They watch the store through which they
    met, because a collective call would fail only after the half hour that steps may take, and a hanging process must
    be noticed earlier. If the first process dies, so does the store, and watching it raises.
    """
    if not torch.distributed.is_initialized():
        return work()
    store = torch.distributed.PrefixStore("conresnet-first-process", _get_default_store())
    if torch.distributed.get_rank() > 0:
        while not store.check([_DONE]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        is_done = store.get(_DONE) == b"yes"
        store.add(_HEARD, 1)
        return is_done
    is_done = False
    try:
        is_done = work()
    finally:
        store.set(_DONE, "yes" if is_done else "no")
        # The store goes away with this process, which may end now.
        end = time.monotonic() + _SECONDS_TO_HEAR
        while store.add(_HEARD, 0) + 1 < torch.distributed.get_world_size() and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS / 10)
    return is_done


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


class StopWatch:
    """Notices requests to stop. The first signal only sets ``reason``; a second Ctrl-C or SIGTERM ends the process.

    A context manager that restores the signal handlers. Signals that are ignored, as under nohup, stay ignored. Outside
    the main thread, which alone may set handlers, only the file ``stop`` is noticed.

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
        self._handlers: dict = {}

    def __enter__(self) -> "StopWatch":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        if self.reason is None and self._file.exists():
            self.reason, self.status = "requested with the stop command or in Slicer", STOPPED + signal.SIGINT
            self._is_insisted_on = True
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number not in _REPEATED:
            if self._is_insisted_on:
                raise KeyboardInterrupt
            self._is_insisted_on = True
        if self.reason is None:
            self.reason, self.status = f"signal {signal.Signals(number).name}", STOPPED + number
