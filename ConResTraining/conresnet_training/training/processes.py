"""What the first of several processes does alone while the others wait, however long it takes.

The wish to end a run early: by Ctrl-C, by a signal of the system or a queue, or by the file ``stop``.
"""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from conresnet_training.runs.running import STOP_FILE

_DONE, _HEARD = "done", "heard"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_HEAR = 0.5, 20.0


def first_does(work: Callable[[], bool]) -> bool:
    """What ``work`` returns in the first process, told to all; False to the others where it raises there.

    May be called once in a process, after those that share a training have met. They look into the store by which they
    met: a collective call would fail after the half hour that is granted to steps, in which a process that hangs is to
    be noticed. Where the first process dies, so does the store, and the look raises.
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
        # The store goes with this process, which may end now.
        end = time.monotonic() + _SECONDS_TO_HEAR
        while store.add(_HEARD, 0) + 1 < torch.distributed.get_world_size() and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS / 10)
    return is_done


# SIGBREAK is what Windows can send to a process in a group of its own; SIGHUP comes from a terminal that
# is closed.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """A terminal or a queue signals every process; those that make samples must live until the run has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopWatch:
    """Notices the wish to stop. The first signal only sets ``reason``; the second ends the process at once.

    A context manager, since it puts the handlers of signals back. A signal that is ignored, as nohup has it, stays so.
    Outside the main thread, which alone may set handlers, the file ``stop`` is what it goes by.

    Args:
        folder: the run's, in which somebody may put the file ``stop``.
    """

    def __init__(self, folder: Path):
        self.reason: str | None = None
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
            self.reason = "asked by the file stop"
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            # A closed terminal may signal twice: the shell its jobs, and the system the shell's.
            if number == getattr(signal, "SIGHUP", None):
                return
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"
