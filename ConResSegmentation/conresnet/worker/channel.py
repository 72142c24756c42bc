"""The two ends of the line to the client: events out, requests in."""

import os
import threading
from collections.abc import Callable

from conresnet.protocol import LineSplitter, ProtocolError, decode, encode


class EventWriter:
    """Writes events, from any thread.

    Args:
        descriptor: where to.
        on_lost: called, once or more, when nobody reads any longer.
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

    def send_error(
        self,
        code: str,
        message: str,
        values: dict | None = None,
        ours: bool = False,
        log: str | None = None,
        **ids: object,
    ) -> None:
        """Write an error event; with ``id`` when it answers a request."""
        plain = {name: _plain(value) for name, value in (values or {}).items()}
        self.send("error", **ids, code=code, message=message, values=plain, ours=ours, log=log)


def read_requests(descriptor: int, on_request: Callable[[dict], None], on_garbage: Callable[[str], None]) -> None:
    """Call ``on_request`` with each message, ``on_garbage`` with a reason for each line that is none, until the end."""
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
    """A value of an error as JSON has it."""
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
