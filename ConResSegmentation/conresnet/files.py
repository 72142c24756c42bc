"""Writing a file so that it is either there whole or not at all.

Locks on open files, which the operating system lets go of however their owner ends. The standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from conresnet.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A virus scanner looks at a new file for about so long.
_SECONDS_TO_TRY = 3.0 if os.name == "nt" else 0.0


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, with its suffixes, that takes its place when the block ends well.

    Raises:
        UserError: "disk-full" or "cannot-write" for any OSError inside; nothing new is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        move(temporary, path)
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def move(made: str | Path, path: str | Path) -> None:
    """Give a file or folder the name ``path``, in the place of a file of that name.

    Windows refuses that while anybody has one of the two open, as a virus scanner or whoever reads the older file has
    for a moment, so it is tried for some seconds there.

    Raises:
        OSError: as of ``os.replace``.
    """
    end = time.monotonic() + _SECONDS_TO_TRY
    while True:
        try:
            return os.replace(made, path)
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)


def write_error(error: OSError, path: str | Path) -> UserError:
    """The sentence for an OSError met while writing ``path``."""
    if error.errno in _FULL:
        return UserError(
            "disk-full", f"There is no room left to write {path}; free some space and try again.", path=str(path)
        )
    reason = error.strerror or str(error)
    return UserError(
        "cannot-write",
        f"{path} cannot be written ({reason}); choose a folder you may write to.",
        path=str(path),
        reason=reason,
    )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, so that a place that cannot be written to is reported before any work.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error


if os.name == "nt":
    import msvcrt
else:
    import fcntl


def lock(descriptor: int, *, inherited: bool) -> None:
    """Lock an open file against everybody else, without waiting.

    Args:
        descriptor: of the file, open for writing.
        inherited: whether processes that this one forks hold the lock too, for as long as they live. Without, this
            process lets go of it as soon as it closes the file once, however often it has opened it. Windows has but
            one kind, of the open file, which no process inherits.

    Raises:
        OSError: somebody has it, or the file system knows no locks.
    """
    if os.name == "nt":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    elif inherited:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
