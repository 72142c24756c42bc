"""Which process trains in a run's folder, and asking it to stop. Standard library only, because Slicer uses it too.

``running.json`` names the process: {"pid", "host", "started"}. Whether it still runs is shown by a lock on a file,
which the operating system releases however its owner ends; a process id would not do, because ids are reused.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import lock, replacing, write_error

PLAN_FILE, FOLD_FILE, CHECKPOINTS_FOLDER = "plan.yaml", "fold.txt", "checkpoints"
# The plan that a cross-validation was started with. Not a run's PLAN_FILE, because its folder is not a run's.
CROSSVAL_FILE = "crossval.yaml"
RUNNING_FILE = "running.json"
STOP_FILE = "stop"
_LOCK_FILE = "running.lock"
_SECONDS_TO_TRY = 1.0
# Some network file systems have no locks; a second process goes unnoticed there.
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """Make this process the only one that trains in ``folder``, and record it there. Earlier stop requests are dropped.

    Raises:
        UserError: ``run-in-use``, ``disk-full`` or ``cannot-write``.
    """
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_error(error, folder / _LOCK_FILE) from error
    try:
        if not _locked(descriptor, _SECONDS_TO_TRY):
            other = _read(folder) or {}
            raise UserError("run-in-use", path=str(folder), pid=other.get("pid", "unknown"))
        try:
            # The second is what a killed process was writing.
            for left in (folder / STOP_FILE, *folder.glob(".part-*")):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, left) from error
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with replacing(folder / RUNNING_FILE) as temporary:
            content = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            temporary.write_text(json.dumps(content), encoding="utf-8")
        try:
            yield
        finally:
            for name in (RUNNING_FILE, STOP_FILE):
                with contextlib.suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def running_process(folder: Path) -> dict | None:
    """Content of ``running.json`` while a process trains in ``folder``, else None.

    Whether a process on another computer was killed cannot be known from here.
    """
    content = _read(folder)
    if content is None or content.get("host") != socket.gethostname():
        return content
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _locked(descriptor, 0) else content
    finally:
        os.close(descriptor)


def can_begin_in(folder: Path) -> bool:
    """Whether a new run may use a folder: it does not exist, is empty, or holds a run that ended before it had a
    checkpoint, such as one that was refused, or killed before its plan was written.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return True
    is_run = (folder / FOLD_FILE).is_file()
    checkpoints = folder / CHECKPOINTS_FOLDER
    return is_run and not any(checkpoints.glob("*.ckpt")) and running_process(folder) is None


def ask_to_stop(folder: Path) -> None:
    """Ask the process that trains in ``folder`` to stop after the current step, with a checkpoint.

    Raises:
        UserError: ``run-not-running``, ``disk-full`` or ``cannot-write``.
    """
    if running_process(folder) is None:
        raise UserError("run-not-running", path=str(folder))
    try:
        (folder / STOP_FILE).touch()
    except OSError as error:
        raise write_error(error, folder / STOP_FILE) from error


def _read(folder: Path) -> dict | None:
    try:
        content = json.loads((folder / RUNNING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _locked(descriptor: int, seconds: float) -> bool:
    """Try to lock for this long: whoever only checks the lock holds it for a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            # Processes that make samples would otherwise inherit it, and keep it after their parent is killed.
            lock(descriptor, inherited=False)
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True
