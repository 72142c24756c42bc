"""The engine's process, and the pipe to its client, here or on another computer, with the arrays of results.

``python -m conresnet.worker`` starts the process without a command line library; ``python -m conresnet worker`` is the
same. It keeps the last model ready, answers requests on standard input, and ends with its client. This file, which the
client uses too, needs NumPy only.

One message per line: a JSON object in UTF-8 that ends with "\n". The client writes requests to the engine's standard
input and reads events from its standard output; the engine's standard error is its log. The engine ends when its
standard input closes.

Events without an id concern the engine:

    {"event": "hello", "protocol": 5, "version": "0.1.0", "pid": 4711, "python": "3.12.10", "torch": "2.13.0" or null,
     "session": path or null, "models": null or {"hippocampus": its description's digest}}
                                           first, immediately; pid is that of the interpreter itself, not of a launcher
    {"event": "ready", "devices": [{"name": "cuda:0", "title": "..."}, ...]}
                                           torch is loaded, and these are what it can use; earlier requests wait
    {"event": "error", ...}                as below; the engine cannot work, or a line was not a request. If
                                           no session folder can be made, this is sent instead of hello

Requests carry an id, a whole number that the client chooses and that all events in reply carry. A segment request is
`conresnet.request.SegmentRequest.to_dict`; any of its options may be left out:

    {"request": "segment", "id": 1, "model": "name or path", "channels": [{"npy": path, "grid": Grid.to_dict(),
     "name": "what messages call it"}], "options": {"roi": BoxROI.to_dict(), "maps": ["residual"], "device": "auto",
     "precision": "auto", "tiling": "fitted", "threads": 4}, "digest": "of the model that is meant; any by default"}
    {"request": "release", "id": 1}        the client has read the arrays of request 1; no reply
    {"request": "cancel"}                  all requests, or with an id that one; no reply of its own
    {"request": "shutdown"}                no reply; the same as closing standard input

Arrays are .npy files: those of request 1 are in the folder "1" of the session folder, where the client also puts the
channels before it asks. Each request ends with exactly one of done, cancelled and error:

    {"event": "progress", "id": 1, "phase": "...", "fraction": 0.4, "seconds_left": 12.3 or null}
    {"event": "array", "id": 1, "name": "labels", "npy": path, "shape": [...], "dtype": "uint8"}   readable as it grows
    {"event": "done", "id": 1, "labels": path, "regions": path or null, "maps": {"residual": path}, "report": {...}}
    {"event": "cancelled", "id": 1}
    {"event": "error", "id": 1, "code": "...", "message": "...", "values": {}, "ours": false, "log": null}

Paths may be relative to the session folder. If the session of the hello is null, the client is on another computer:
each side has its own session folder, and files are sent through the pipe in compressed blocks before a message names
them. The client sends the channels, and a model (or a model's locator) that the worker does not have in the same
version, as "models/name/file"; names of images and files are not sent. The phase "receiving" means that the results are
being transferred. A block's file is relative to the receiver's session folder, its data are zlib in base64 of up to
BLOCK_BYTES bytes, and an optional "new": true replaces an older file of that name:

    {"request": "block", "id": 1, "file": "1/channel0.npy", "offset": 0, "data": "..."}   no reply unless it fails
    {"event": "block", "id": 1, "file": "1/labels.npy", "offset": 0, "data": "..."}       again where it has changed

Labels are uint8 [k, j, i], maps float16 [c, k, j, i]; where segments overlap, regions are uint8 [b, k, j, i] for
`conresnet.inference.labels.region_mask`. A progress event's phase is "loading" while the model is read, then one that
`conresnet.request.Progress` lists. An error's code and values are for translation; "ours" means that it is a
bug in the engine, and "log" holds the traceback.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders, write_error

if TYPE_CHECKING:
    import numpy as np

PROTOCOL = 5
"""Incremented when a message changes in a way that the other side would misread."""
MODELS_FOLDER = "models"
"""Subfolder of the worker's session folder for models sent by a client on another computer."""
BLOCK_BYTES = 1 << 20
# Short, since paths in it must stay below the 260 characters of Windows.
SESSION_PREFIX = "conresnet-"


class ProtocolError(Exception):
    """A line that is not a message."""


def encode(message: dict) -> bytes:
    """The line for a message. Characters outside ASCII are escaped, so that undecodable file names survive."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict:
    """The message in a line. Raises ProtocolError for one that is not a JSON object in UTF-8."""
    try:
        message = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ProtocolError(f"not JSON in UTF-8: {line[:200]!r}") from error
    except RecursionError:
        raise ProtocolError(f"nested too deeply: {line[:200]!r}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"not a JSON object: {line[:200]!r}")
    return message


class LineSplitter:
    """Splits a byte stream that arrives in chunks into lines."""

    def __init__(self):
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add a chunk; yield the lines that are now complete, without line ends, skipping empty ones."""
        *complete, rest = data.split(b"\n")
        for end in complete:
            line = b"".join([*self._pieces, end]).rstrip(b"\r")
            self._pieces.clear()
            if line.strip():
                yield line
        if rest:
            self._pieces.append(rest)


def take_standard_streams() -> tuple[int, int]:
    """Reserve standard input and output for the protocol.

    From now on, what any library prints goes to standard error, and standard input is empty for everyone else. The
    latter matters on Windows, where a library that looks at standard input while it is loaded, as numpy does, would
    hang behind our reader, which waits for a request (https://github.com/numpy/numpy/issues/24290).

    Returns the file descriptors of the input and the output, not inherited by other processes.
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
    """Writes events to a descriptor, from any thread.

    Args:
        on_lost: called when nobody reads the events anymore, once or more, from any thread.
    """

    def __init__(self, descriptor: int, on_lost: Callable[[], None]):
        self._descriptor = descriptor
        self._on_lost = on_lost
        self._lock = threading.Lock()

    def send(self, event: str, **values: object) -> None:
        line = memoryview(encode({"event": event, **values}))
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._descriptor, line) :]
        except OSError:
            self._on_lost()

    def send_error(self, error: UserError, ours: bool = False, log: str | None = None, **ids: object) -> None:
        """Write an error event; with ``id`` if it answers a request. For ``ours`` and ``log`` see above."""
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
    """A value of an error, converted to JSON types."""
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# Label maps compress well at any level, and image voxels hardly gain from a higher one.
_LEVEL = 1
_FILE = re.compile(r"\w[\w-]*(\.[\w-]+)*(/\w[\w-]*(\.[\w-]+)*)*", re.ASCII)


def block(file: str, offset: int, data: bytes | memoryview) -> dict:
    """The fields of a message that contains part of a file."""
    return {"file": file, "offset": offset, "data": base64.b64encode(zlib.compress(data, _LEVEL)).decode("ascii")}


def write_block(folder: Path, message: dict) -> None:
    """Write a block of a file below a folder.

    Raises UserError "bad-request" if it is not a block or its path leaves the folder, "engine-folder-gone" if the
    folder was removed, or after removing the file "disk-full" or "cannot-write".
    """
    file, offset = message.get("file"), message.get("offset")
    if not isinstance(file, str) or not _FILE.fullmatch(file) or type(offset) is not int or offset < 0:
        raise UserError("bad-request", reason=f"not a block: {file!r} at {offset!r}")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(message["data"], validate=True), BLOCK_BYTES)
        if not unpacker.eof:
            raise ValueError("it is larger than a block, or cut off")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise UserError("bad-request", reason=f"not a block: {file} at {offset}: {error}") from error
    path = folder / file
    try:
        # Never create the folder itself: nothing would ever remove it.
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
        if message.get("new"):
            path.unlink(missing_ok=True)
        with open(path, "r+b" if path.exists() else "xb") as target:
            target.seek(offset)
            target.write(data)
    except FileNotFoundError as error:
        raise UserError("engine-folder-gone") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise write_error(error, path) from error


class BlockWriter:
    """Writes a file of the other side's session folder, from start to end; ``send`` sends the fields of a block."""

    def __init__(self, send: Callable[[dict], object], file: str):
        self._send, self._file, self._offset = send, file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Send bytes, in as many blocks as needed, but at least one, which makes an empty file."""
        for start in range(0, len(data) or 1, BLOCK_BYTES):
            piece = data[start : start + BLOCK_BYTES]
            self._send({**block(self._file, self._offset, piece), "new": self._offset == 0})
            self._offset += len(piece)
        return len(data)


class GrowingFile:
    """Finds the changes of a file, whose size stays the same; ``file`` is its name on the other side."""

    def __init__(self, path: Path, file: str):
        self._path, self._file = path, file
        self._sums: dict[int, int] = {}

    def changes(self) -> Iterator[dict]:
        """The blocks that have changed since the last call."""
        with open(self._path, "rb") as source:
            offset = 0
            while data := source.read(BLOCK_BYTES):
                if self._sums.get(offset) != (value := zlib.crc32(data)):
                    yield block(self._file, offset, data)
                    self._sums[offset] = value
                offset += len(data)


# Previews sent through the pipe take at most this share of the time, even over a slow connection.
_PREVIEW_SHARE, _PREVIEW_SECONDS = 0.1, 0.5


class ResultArrays:
    """The arrays of one request, in files of ``folder`` that the client can map; ``send`` sends it an event."""

    def __init__(self, folder: Path, send: Callable[..., None]):
        self._folder, self._send = folder, send
        self._paths: dict[str, Path] = {}

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A new array of zeros in its own file. UserError: "disk-full", "cannot-write" or "engine-folder-gone"."""
        # Imported here, because what else Slicer runs through this package may be in a Python without it.
        import numpy as np

        path, dtype = self._folder / f"{name}.npy", np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        try:
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                _fill(file, math.prod(shape) * dtype.itemsize)
            array = np.load(path, mmap_mode="r+", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError("engine-folder-gone") from error
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
    for start in range(0, size, BLOCK_BYTES):
        file.write(bytes(min(BLOCK_BYTES, size - start)))


class SessionFolder:
    """A new folder of the process that makes it, with a subfolder for the arrays of each request.

    It is in ``parent``, by default the user's temporary folder. Raises OSError when it cannot be made.
    """

    def __init__(self, parent: str | Path | None = None):
        self._owned = OwnedFolder.make(SESSION_PREFIX, parent)
        self.path = self._owned.path
        self._released: set[int] = set()
        self._is_removed = False

    def request_folder(self, request: int) -> Path:
        """The folder for the arrays of one request, made if necessary."""
        folder = self.path / str(request)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def release(self, request: int) -> None:
        """Remove the folder of a request. Files that are still mapped on Windows are tried again the next time."""
        self._released.add(request)
        for number in sorted(self._released):
            shutil.rmtree(self.path / str(number), ignore_errors=True)
            if not (self.path / str(number)).exists():
                self._released.discard(number)

    def remove(self) -> None:
        """Remove the folder with everything in it, except files that are still mapped on Windows."""
        if not self._is_removed:
            self._is_removed = True
            self._owned.remove()


def remove_session(path: str | Path) -> bool:
    """Remove a session folder whose owner has ended; anything else is left alone. Returns whether it is gone.

    Without its lock file, which may have been removed first, it is recognized by its folders of requests, with nothing
    but arrays in them.
    """
    path = Path(path)
    if path.name.startswith(SESSION_PREFIX) and not path.is_symlink():
        if owned := OwnedFolder.take(path):
            owned.remove()
        with contextlib.suppress(OSError):
            folders = list(path.iterdir())
            files = [file for folder in folders for file in folder.iterdir()]
            if all(folder.name.isdecimal() for folder in folders) and all(file.suffix == ".npy" for file in files):
                shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def remove_abandoned_sessions(parent: str | Path | None = None) -> None:
    """Remove the session folders in ``parent``, by default the user's temporary folder, whose owners are gone."""
    for owned in abandoned_folders(parent or tempfile.gettempdir(), SESSION_PREFIX):
        owned.remove()
