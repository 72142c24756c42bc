"""The interface between the worker and an engine: the engine segments, and a job has its progress and result arrays.

The arrays are files that the client maps too, so that it sees them fill up. A client on another computer is sent the
changes. Importing this module does not import torch, which takes seconds: the worker says hello first.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conresnet.files import write_error
from conresnet.inference.progress import Progress
from conresnet.package.store import read_model
from conresnet.request import SegmentRequest
from conresnet.worker.protocol import EventWriter, GrowingFile, SessionFolder

_BLOCK = bytes(1 << 20)
# Previews sent through the pipe take at most this share of the time, even over a slow connection.
_PREVIEW_SHARE, _PREVIEW_SECONDS = 0.1, 0.5


class ResultArrays:
    """The arrays of one request, in files of ``folder`` that the client can map; ``send`` sends it an event."""

    def __init__(self, folder: Path, send: Callable[..., None]):
        self._folder, self._send = folder, send
        self._paths: dict[str, Path] = {}

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A new array of zeros in a file of its own. Raises UserError "disk-full" or "cannot-write"."""
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
        self.announce(name, array)
        return array

    def announce(self, name: str, array: np.ndarray) -> None:
        """Tell the client that an array exists, once it can be mapped."""
        self._send("array", name=name, npy=self.path(name), shape=list(array.shape), dtype=array.dtype.name)

    def path(self, name: str) -> str:
        """The path of an array's file, as sent to the client."""
        return str(self._paths[name])

    def paths(self) -> dict[str, str]:
        """The paths of all arrays, in the order in which they were allocated."""
        return {name: self.path(name) for name in self._paths}

    def show(self) -> None:
        """Show the client what has been computed so far."""

    def complete(self, check: Callable[[], None]) -> None:
        """Make all results available to the client; ``check`` raises Cancelled if the request was canceled."""


class SentArrays(ResultArrays):
    """The arrays of one request, sent through the pipe to a client on another computer."""

    def __init__(self, folder: Path, send: Callable[..., None]):
        super().__init__(folder, send)
        self._files: dict[str, GrowingFile] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._next_preview = 0.0

    def announce(self, name: str, array: np.ndarray) -> None:
        self._files[name] = GrowingFile(self._paths[name], self.path(name))
        self._arrays[name] = array

    def path(self, name: str) -> str:
        path = self._paths[name]
        return f"{path.parent.name}/{path.name}"

    def show(self) -> None:
        if "labels" in self._files and time.monotonic() >= self._next_preview:
            begun = time.monotonic()
            self._send_changes("labels", lambda: None)
            now = time.monotonic()
            self._next_preview = now + max(_PREVIEW_SECONDS, (now - begun) / _PREVIEW_SHARE)

    def complete(self, check: Callable[[], None]) -> None:
        self._send("progress", phase="receiving", fraction=1.0, seconds_left=None)
        for name in self._files:
            self._send_changes(name, check)

    def _send_changes(self, name: str, check: Callable[[], None]) -> None:
        for fields in self._files[name].changes():
            check()
            self._send("block", **fields)
        if (array := self._arrays.pop(name, None)) is not None:
            super().announce(name, array)


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

    ``writer`` is for its events, ``session`` for its arrays, and ``arrays`` how these reach the client.
    """

    def __init__(
        self, message: dict, writer: EventWriter, session: SessionFolder, arrays: type[ResultArrays] = ResultArrays
    ):
        self.id: int = message["id"]
        self.message = message
        self._writer = writer
        self._session = session
        self._kind, self._arrays = arrays, None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask it to stop. May be called from any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        self.send("progress", phase=phase, fraction=float(fraction), seconds_left=seconds_left)
        if self._arrays:
            self._arrays.show()

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A result array of zeros that the client can watch; errors as `ResultArrays.allocate`."""
        if self._arrays is None:
            self._arrays = self._kind(self._session.request_folder(self.id), self.send)
        return self._arrays.allocate(name, shape, dtype)

    def complete(self) -> dict[str, str]:
        """Hand over the results, and return their files by name; raises Cancelled if the client asked to stop."""
        self._arrays.complete(self.check)
        return self._arrays.paths()

    def send(self, event: str, **values: object) -> None:
        """Send an event in answer to the request."""
        self._writer.send(event, id=self.id, **values)


class Engine:
    """Segments with torch, and keeps the last model ready for the next request."""

    def __init__(self):
        from conresnet.inference.segmentation import WarmModel

        self._warm = WarmModel()

    def segment(self, request: SegmentRequest, job: Job) -> dict:
        """Segment into arrays that the job allocates: "labels", uint8 [k, j, i], "regions" where segments overlap, and
        one per map. Returns the report. An exception other than UserError, Cancelled and MemoryError is a bug.
        """
        from conresnet.inference.segmentation import segment

        package = read_model(request.model, verify=False)
        model = self._warm.get(package, job)
        job.check()
        return segment(model, request.channels, request.options, job, job.allocate).report

    def devices(self) -> list[dict]:
        """The available devices: each a dict with ``name`` and ``title``."""
        from conresnet.inference.devices import available_devices

        return available_devices()

    def forget(self) -> None:
        """Free memory that is kept for the next request."""
        import torch

        self._warm.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
