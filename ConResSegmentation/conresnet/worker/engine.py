"""What computes, as the worker sees it, and what it sees of its client: a job with progress and result arrays.

The arrays are files that the client maps too, so that it sees them grow. The real engine is in
`conresnet.worker.torch_engine`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from conresnet.errors import Cancelled
from conresnet.files import write_error
from conresnet.inference.progress import Progress
from conresnet.request import SegmentRequest
from conresnet.worker.channel import EventWriter
from conresnet.worker.session_folder import SessionFolder

_BLOCK = bytes(1 << 20)


class ResultArrays:
    """The arrays of one request.

    Args:
        folder: for their files.
        announce: called with name, path, shape and dtype of each as soon as it can be mapped.
    """

    def __init__(self, folder: Path, announce: Callable[[str, Path, tuple[int, ...], str], None]):
        self._folder = folder
        self._announce = announce
        self._paths: dict[str, Path] = {}

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A new array of zeros in a file of its own.

        Raises:
            UserError: "disk-full" or "cannot-write".
        """
        path, dtype = self._folder / f"{name}.npy", np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        try:
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                _fill(file, math.prod(shape) * dtype.itemsize)
            array = np.load(path, mmap_mode="r+", allow_pickle=False)
        except OSError as error:
            raise write_error(error, path) from error
        self._paths[name] = path
        self._announce(name, path, array.shape, array.dtype.name)
        return array

    def path(self, name: str) -> str:
        """The file of an array."""
        return str(self._paths[name])


def _fill(file: BinaryIO, size: int) -> None:
    """Write zeros that take up disk space, because writing to a map when the disk is full would kill the process."""
    if hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for start in range(0, size, len(_BLOCK)):
        file.write(_BLOCK[: size - start])


class Job(Progress):
    """A request that has not been answered yet: what the engine sees of its client.

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
        """Ask it to stop. May be called from any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether the client asked to stop."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise Cancelled if the client asked to stop."""
        if self.cancelled():
            raise Cancelled

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        """Send how far the work is: ``fraction`` 0 to 1 over all phases."""
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


@dataclass(frozen=True)
class Segmented:
    """A finished segmentation.

    Args:
        maps: the names of the maps made; they and "labels" were allocated by the job.
        report: as `conresnet.inference.segmentation.segment` returns it.
        overlapping: whether the segments overlap, so that "regions" was allocated too.
    """

    maps: tuple[str, ...]
    report: dict
    overlapping: bool = False


class Engine(Protocol):
    """Anything that segments. Tests substitute their own."""

    def segment(self, request: SegmentRequest, job: Job) -> Segmented:
        """Segment into arrays that the job allocates: "labels", uint8 [k, j, i], "regions" where segments overlap, and
        one per map.

        Raises:
            UserError, Cancelled, MemoryError: anything else is a bug.
        """

    def devices(self) -> list[dict]:
        """The available devices: each a dict with ``name`` and ``title``."""

    def forget(self) -> None:
        """Free memory that is kept for the next request."""
