"""Image files: reading the user's images, and writing results. The readers of single formats are used only
through this module.

The first bytes of a file decide what kind of image it is. NIfTI is read in this process, everything else with ITK and
pydicom in a separate process: these libraries trust headers and can crash, and a crash then affects only one image.

There is one reader process per program. It is started when first needed, stays warm for the next image, and ends with
the program in any case, because its stdin is then closed. It is an ordinary program, not a fork, so it can be started
from threads and on Windows. Voxels are read from a pipe directly into their array, so there is no temporary
file.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Grid, ImageFile, Volume, check_volume
from conresnet.images.checks import is_segmentation, kind_of
from conresnet.images.inputs import check_channel_count
from conresnet.package import DESCRIPTION_FILE


def read_volume(path: str | Path) -> Volume:
    """Read one 3D image: NIfTI, Analyze, NRRD, MetaImage, MINC or HDF5, or a folder with one DICOM series."""
    return read_channels([path], ["image"])[0]


def read_channels(paths: Sequence[str | Path], channel_names: Sequence[str]) -> list[Volume]:
    """Read a case: one file per channel in the model's order, or one 4D file with all of them.

    Args:
        paths: files, or folders with one DICOM series each.
        channel_names: the model's channel names, for messages.

    Raises:
        UserError: "wrong-channel-count", "wrong-component-count", "image-4d", "image-is-segmentation", or as
            `check_volume` and `read_image`.
    """
    _check_paths(paths)
    if len(paths) == 1 and len(channel_names) > 1:
        path = Path(paths[0])
        image = read_image(path)
        _check_components(path, len(image.components), channel_names)
        labels = [f"{path} ({name})" for name in channel_names]
        volumes = [Volume(array, image.grid, label) for array, label in zip(image.components, labels, strict=True)]
        volumes[0].warnings, volumes[0].modality = image.warnings, image.modality
    else:
        check_channel_count([str(path) for path in paths], channel_names)
        volumes = [read_single(Path(path)) for path in paths]
    for volume in volumes:
        check_volume(volume)
    return volumes


def check_files(paths: Sequence[str | Path], channel_names: Sequence[str]) -> None:
    """Refuse what `read_channels` would refuse, as far as names, first bytes and NIfTI headers show it.

    This is quick and needs neither ITK nor torch. Raises as `read_channels`.
    """
    _check_paths(paths)
    holds_all = len(paths) == 1
    if not holds_all:
        check_channel_count([str(path) for path in paths], channel_names)
    for path in map(Path, paths):
        if _kind(path) == "nifti":
            from conresnet.images.nifti import read_nifti_grid

            _check_components(path, read_nifti_grid(path)[1], channel_names if holds_all else channel_names[:1])


def _check_paths(paths: Sequence[str | Path]) -> None:
    if "" in paths:
        # As a path, it would be the working directory.
        raise UserError("image-not-found", path='""')
    for path in map(Path, paths):
        _check_path(path)
        if is_segmentation(path):
            raise UserError("image-is-segmentation", path=str(path))


def check_existence(paths: Sequence[Path]) -> None:
    """Raise UserError "image-not-found" for a path that does not exist. Other problems are reported by `read_image`."""
    for path in paths:
        try:
            path.stat()
        except FileNotFoundError as error:
            raise UserError("image-not-found", path=str(path)) from error
        except (OSError, ValueError):
            pass


def _check_components(path: Path, count: int, channel_names: Sequence[str]) -> None:
    """Refuse a file whose number of 3D images does not match its channels."""
    if count == len(channel_names):
        return
    if len(channel_names) == 1:
        raise UserError("image-4d", path=str(path), count=count)
    channels = ", ".join(channel_names)
    raise UserError("wrong-component-count", path=str(path), given=count, channels=channels, wanted=len(channel_names))


def read_single(path: Path) -> Volume:
    """Read a file that must contain one 3D image, of any values. Raises UserError "image-4d", or as `read_image`."""
    image = read_image(path)
    _check_components(path, len(image.components), ["image"])
    return Volume(image.components[0], image.grid, str(path), image.warnings, image.modality, image.patient)


def read_image(path: Path) -> ImageFile:
    """Read a file, or a folder with one DICOM series. Any values are accepted: a label map may well be constant.

    Raises:
        UserError: "image-not-found", "cannot-read", "image-name-not-text", "image-pipe", "image-out-of-memory", and
            those of `conresnet.images.checks.kind_of`, of the format's reader and of its process.
    """
    kind = _kind(path)
    try:
        if kind == "nifti":
            from conresnet.images.nifti import read_nifti

            return read_nifti(path)
        return read_in_process(path, kind if kind in ("folder", "dicom") else "file")
    except MemoryError as error:
        raise UserError("image-out-of-memory", path=str(path)) from error


def read_grid(path: Path) -> Grid:
    """The grid of an image, without its voxels where the format allows that. Raises as `read_image` does."""
    kind = _kind(path)
    if kind == "nifti":
        from conresnet.images.nifti import read_nifti_grid

        return read_nifti_grid(path)[0]
    return read_in_process(path, kind if kind in ("folder", "dicom") else "header").grid


def _kind(path: Path) -> str:
    """ "folder", or the kind of a file, after checking that it exists, can be opened, and has a name valid for ITK."""
    _check_path(path)
    try:
        if path.is_dir():
            for file in path.iterdir():
                _check_name(file)
                # Any of them may be a slice, and a missing slice must not go unnoticed.
                if not os.access(file, os.R_OK) and file.is_file():
                    raise UserError("cannot-read", path=str(file), reason=os.strerror(errno.EACCES))
            if (path / DESCRIPTION_FILE).is_file():
                raise UserError("image-is-model", path=str(path))
            return "folder"
        return kind_of(path)
    except FileNotFoundError as error:
        raise UserError("image-not-found", path=str(path)) from error
    except OSError as error:
        raise UserError("cannot-read", path=str(path), reason=error.strerror or str(error)) from error


def _check_path(path: Path) -> None:
    _check_name(path)
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(path.stat().st_mode):
            # A pipe could be read only once, but its first bytes determine the format.
            raise UserError("image-pipe", path=str(path))


def _check_name(path: Path) -> None:
    """Refuse a name that is not text: it would make ITK end the whole process, and no report could contain it."""
    try:
        is_text = b"\0" not in str(path).encode("utf-8")
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        shown = str(path).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
        raise UserError("image-name-not-text", path=shown)


def write_volume(array: np.ndarray, grid: Grid, path: str | Path) -> None:
    """Write one or several 3D images as .nii or .nii.gz, completely or not at all.

    Args:
        array: [k, j, i], or [c, k, j, i], which becomes a 4D file with the components last. Booleans are written as
            uint8 and half precision as float32, which NIfTI knows.
        grid: of each component. One that was read from a NIfTI file brings that file's qform, sform, codes and units.
        path: its folder must exist.

    Raises:
        UserError: "output-not-nifti", "disk-full" or "cannot-write".
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError("output-not-nifti", path=str(path))
    from conresnet.images.nifti import write_nifti

    write_nifti(array, grid, path)


_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from conresnet.images.files import serve; serve()"
_SECONDS_TO_END = 2.0
_KILLED = (-9, 137)


def read_in_process(path: Path, what: str) -> ImageFile:
    """Read an image in the reader process.

    ``what`` is "folder" (one DICOM series), "dicom" (one DICOM file), "file" (anything ITK reads), or "header" (the
    same without its voxels). Raises UserError as `conresnet.images.itk`, "image-reader-crashed" or
    "image-out-of-memory".
    """
    global _reader
    with _lock:
        # After a fork, the parent process uses the same pipes.
        if _reader is None or _reader.owner != os.getpid():
            _reader = _Reader()
        try:
            return _reader.read(path, what)
        except _Ended as ended:
            _reader = None
            code = "image-out-of-memory" if ended.status in _KILLED else "image-reader-crashed"
            raise UserError(code, path=str(path)) from ended
        except BaseException as error:
            # After any error except a UserError, the pipe may contain the rest of a response.
            if not isinstance(error, UserError):
                _reader.end()
                _reader = None
            raise


class _Ended(Exception):  # noqa: N818 - only used internally, by the function above
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
        grid, warnings = Grid.from_dict(answer["grid"]), tuple(answer["warnings"])
        return ImageFile(array, grid, warnings, answer["modality"], answer["patient"])

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


def _after_fork() -> None:
    # A thread of the parent process may have been reading.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def serve() -> None:
    """The main loop of the reader process: answer requests, one JSON line each, until stdin ends."""
    import signal

    # Ctrl-C reaches every process of a terminal; the main program decides how to handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    # Output that a library prints must not mix with the answers.
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
                "modality": image.modality,
                "patient": image.patient,
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
    from conresnet.images.itk import read_series, read_slice_file, read_with_itk

    if what == "folder":
        return read_series(path)
    return read_slice_file(path) if what == "dicom" else read_with_itk(path, header_only=what == "header")
