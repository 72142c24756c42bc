"""Reads files with ITK and pydicom in a process of its own, so that a damaged one never ends the process that asks.

ITK and the libraries in it trust headers and can crash; a crash then costs one image and one sentence. There is one
reader process per program. It is started when first needed, stays warm for the next image, and ends with the program,
however that ends, since its stdin is then closed. It is an ordinary program and no fork, so that it can be started from
threads and on Windows. Voxels come through a pipe right into the array that holds them, so there is no temporary file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images.grid import Grid, ImageFile

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from conresnet.images.reader_process import serve; serve()"
)
_SECONDS_TO_END = 2.0
_KILLED = (-9, 137)


def read_in_process(path: Path, what: str) -> ImageFile:
    """Read an image in the reader process.

    Args:
        what: "folder" (one DICOM series), "dicom" (one DICOM file), "file" (anything ITK reads), or "header" (the same
            without its voxels).

    Raises:
        UserError: as the functions of `conresnet.images.itk` and `conresnet.images.dicom`; "image-reader-crashed" or
            "image-out-of-memory".
    """
    global _reader
    with _lock:
        # After a fork, the other process has the pipes too.
        if _reader is None or _reader.owner != os.getpid():
            _reader = _Reader()
        try:
            return _reader.read(path, what)
        except _Ended as ended:
            _reader = None
            code = "image-out-of-memory" if ended.status in _KILLED else "image-reader-crashed"
            raise UserError(code, path=str(path)) from ended
        except BaseException as error:
            # Only a refusal leaves the pipe at the beginning of the next answer.
            if not isinstance(error, UserError):
                _reader.end()
                _reader = None
            raise


class _Ended(Exception):  # noqa: N818 - what has happened, told to the caller above alone
    def __init__(self, status: int):
        super().__init__(f"the reader process ended with status {status}")
        self.status = status


class _Reader:
    def __init__(self):
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([os.path.abspath(entry) for entry in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        atexit.register(self.end)

    def read(self, path: Path, what: str) -> ImageFile:
        request = {"path": str(path), "what": what, "folder": os.getcwd()}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise _Ended(self._process.wait()) from None
        line = self._process.stdout.readline()
        if not line:
            raise _Ended(self._process.wait())
        answer = json.loads(line)
        if "fault" in answer:
            raise RuntimeError(f"the reader of images failed: {answer['fault']}")
        if "code" in answer:
            raise UserError(answer["code"], **answer["values"])
        array = np.empty(answer["shape"], answer["type"])
        memory, place = memoryview(array.reshape(-1).view(np.uint8)), 0
        while place < len(memory):
            got = self._process.stdout.readinto(memory[place:])
            if not got:
                raise _Ended(self._process.wait())
            place += got
        return ImageFile(array, Grid.from_dict(answer["grid"]), tuple(answer["warnings"]))

    def end(self) -> None:
        atexit.unregister(self.end)
        if self.owner != os.getpid():
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


_lock = threading.Lock()
_reader: _Reader | None = None


def serve() -> None:
    """Answer requests, one JSON line each, until stdin ends: the reader process itself."""
    import signal

    # Ctrl-C reaches every process of a terminal; the program that asks decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            os.chdir(request["folder"])
            image = _read(Path(request["path"]), request["what"])
            answer = {
                "shape": image.components.shape,
                "type": image.components.dtype.str,
                "grid": image.grid.to_dict(),
                "warnings": image.warnings,
            }
        except UserError as error:
            image, answer = None, {"code": error.code, "values": error.values}
        except MemoryError:
            image, answer = None, {"code": "image-out-of-memory", "values": {"path": request["path"]}}
        except Exception as error:
            image, answer = None, {"fault": f"{type(error).__name__}: {error}"}
        output.write(json.dumps(answer).encode() + b"\n")
        if image is not None:
            output.write(memoryview(np.ascontiguousarray(image.components).reshape(-1).view(np.uint8)))
        output.flush()
        image = None


def _read(path: Path, what: str) -> ImageFile:
    if what in ("folder", "dicom"):
        from conresnet.images.dicom import read_series, read_slice_file

        return read_series(path) if what == "folder" else read_slice_file(path)
    from conresnet.images.itk import read_with_itk

    return read_with_itk(path, header_only=what == "header")
