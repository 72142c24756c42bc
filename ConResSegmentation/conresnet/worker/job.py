"""One request on its way: whether it was cancelled, the progress it reports, the arrays it fills."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conresnet.errors import Cancelled
from conresnet.inference.progress import Progress
from conresnet.session_folder import SessionFolder
from conresnet.worker.arrays import ResultArrays
from conresnet.worker.channel import EventWriter


class Job(Progress):
    """A request that was read and is not answered yet; what the engine sees of its client.

    Args:
        message: the request.
        writer: for its events.
        session: for its arrays.
    """

    def __init__(self, message: dict, writer: EventWriter, session: SessionFolder):
        self.id: int = message["id"]
        self.message = message
        self._writer = writer
        self._session = session
        self._arrays: ResultArrays | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask it to stop; from any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise Cancelled once it was asked to stop."""
        if self.cancelled():
            raise Cancelled

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        """Tell the client how far the work is: ``fraction`` 0 to 1 over all phases."""
        self.send("progress", phase=phase, fraction=float(fraction), seconds_left=seconds_left)

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A result array of zeros that the client can watch; errors as `ResultArrays.allocate`."""
        if self._arrays is None:
            self._arrays = ResultArrays(self._session.request_folder(self.id), self._announce)
        return self._arrays.allocate(name, shape, dtype)

    def path(self, name: str) -> str:
        """The file of a result array."""
        return self._arrays.path(name)

    def send(self, event: str, **values: object) -> None:
        """Send an event in answer to the request."""
        self._writer.send(event, id=self.id, **values)

    def _announce(self, name: str, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.send("array", name=name, npy=str(path), shape=list(shape), dtype=dtype)
