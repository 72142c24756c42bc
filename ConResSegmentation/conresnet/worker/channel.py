"""The worker's end of the pipe: standard input and output are reserved for the protocol, requests in, events out."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from conresnet.errors import UserError
from conresnet.worker.protocol import LineSplitter, ProtocolError, decode, encode


def take_standard_streams() -> tuple[int, int]:
    """Reserve standard input and output for the protocol.

    From now on, what any library prints goes to standard error, and standard input is empty for everyone else. The
    latter matters on Windows, where a library that looks at standard input while it is loaded, as numpy does, would
    hang behind our reader, which waits for a request (https://github.com/numpy/numpy/issues/24290).

    Returns:
        file descriptors of the input and the output, not inherited by other processes.
    """
    requests, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return requests, events


def lead_process_group() -> None:
    """Become the leader of a process group where there are any, so that the client can end the whole group."""
    if hasattr(os, "setsid") and not os.isatty(0) and os.getpgrp() != os.getpid():
        os.setsid()


class EventWriter:
    """Writes events, from any thread.

    Args:
        descriptor: to write to.
        on_lost: called, once or more, when nobody reads the output anymore.
    """

    def __init__(self, descriptor: int, on_lost: Callable[[], None]):
        self._descriptor = descriptor
        self._on_lost = on_lost
        self._lock = threading.Lock()

    def send(self, event: str, **values: object) -> None:
        """Write an event."""
        line = memoryview(encode({"event": event, **values}))
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._descriptor, line) :]
        except OSError:
            self._on_lost()

    def send_error(self, error: UserError, ours: bool = False, log: str | None = None, **ids: object) -> None:
        """Write an error event; with ``id`` if it answers a request.

        Args:
            ours: whether it is a bug in the engine.
            log: a traceback.
        """
        values = {name: _plain(value) for name, value in error.values.items()}
        self.send("error", **ids, code=error.code, message=error.message, values=values, ours=ours, log=log)


def read_requests(descriptor: int, on_request: Callable[[dict], None], on_garbage: Callable[[str], None]) -> None:
    """Call ``on_request`` with each message, ``on_garbage`` with a reason for any other line, until the input ends."""
    splitter = LineSplitter()
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except OSError:
            return
        if not data:
            return
        for line in splitter.feed(data):
            try:
                on_request(decode(line))
            except ProtocolError as error:
                on_garbage(str(error))


def _plain(value: object) -> object:
    """A value of an error, as JSON can hold it."""
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
