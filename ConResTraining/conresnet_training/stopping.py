"""The wish to end a run early: by Ctrl-C, by a signal of the system or a queue, or by the file ``stop``."""

import signal
import threading
from pathlib import Path
from types import FrameType

from conresnet_training.running import STOP_FILE

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
