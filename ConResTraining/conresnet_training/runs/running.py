"""Which process trains in a run's folder, and asking it to stop. Imports the standard library alone, for Slicer.

``running.json`` tells who: {"pid", "host", "started"}. That somebody still does is told by a lock on a file, which the
operating system lets go of however its owner ends; process ids would not do, since they are used again.
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

RUNNING_FILE = "running.json"
STOP_FILE = "stop"
_LOCK_FILE = "running.lock"
_SECONDS_TO_TRY = 1.0
# Some file systems of networks have no locks; there, whoever starts a second process is not noticed.
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """While it lasts, this process alone trains in ``folder``, and says so there. A stop asked for before is forgotten.

    Raises:
        UserError: ``run-in-use``.
    """
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_error(error, folder / _LOCK_FILE) from error
    try:
        if not _locked(descriptor, _SECONDS_TO_TRY):
            other = _read(folder) or {}
            sentence = f"Process {other.get('pid', 'unknown')} is training in {folder}; stop it first, or wait for it."
            raise UserError("run-in-use", sentence, path=str(folder), pid=other.get("pid"))
        (folder / STOP_FILE).unlink(missing_ok=True)
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
    """``running.json``'s content while a process trains in ``folder``, else None.

    Of a process on another computer only the file is known; it may have been killed.
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


def ask_to_stop(folder: Path) -> None:
    """Ask the process that trains in ``folder`` to end after its step with a checkpoint.

    Raises:
        UserError: ``run-not-running``, or where the file that asks cannot be written.
    """
    if running_process(folder) is None:
        raise UserError("run-not-running", f"Nothing is training in {folder}.", path=str(folder))
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
    """Try to lock for so long: somebody who only looks whether it is locked has it for a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            # Processes that load samples would otherwise inherit it, and hold on to it when their parent is killed.
            lock(descriptor, inherited=False)
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True
