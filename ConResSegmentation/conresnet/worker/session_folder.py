"""The folder in which the engine's process and its client exchange arrays. Imports the standard library alone.

Its owner holds a lock on a file in it. The operating system lets go of the lock when the owner ends, however it ends,
so a folder whose lock is free belongs to nobody and is removed at the next start. Process ids would not do: they are
used again, and are not unique where containers share a temporary folder.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from conresnet.files import lock

# Short, since paths in it must stay below the 260 characters of Windows.
PREFIX = "conresnet-"
LOCK_FILE = "session.lock"
_TRIES = 5


class SessionFolder:
    """A new folder of the process that makes it.

    Args:
        parent: where to make it. Defaults to the user's temporary folder.

    Raises:
        OSError: when it cannot be made.
    """

    def __init__(self, parent: str | Path | None = None):
        for _ in range(_TRIES):
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            # Another process that cleans up may have been quicker; then there is no folder any more.
            self._descriptor = _own(self.path, os.O_CREAT)
            if self._descriptor is not None:
                break
        else:
            raise OSError(errno.ENOLCK, "no file can be locked", str(self.path.parent))
        self._released: set[int] = set()

    def request_folder(self, request: int) -> Path:
        """The folder for the arrays of one request, made if need be."""
        folder = self.path / str(request)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def release(self, request: int) -> None:
        """Remove the folder of a request. What is still mapped and so cannot go yet is tried again the next time."""
        self._released.add(request)
        for number in sorted(self._released):
            shutil.rmtree(self.path / str(number), ignore_errors=True)
            if not (self.path / str(number)).exists():
                self._released.discard(number)

    def remove(self) -> None:
        """Remove the folder with everything in it, as far as nothing of it is mapped."""
        if self._descriptor is not None:
            _remove_owned(self.path, self._descriptor)
            self._descriptor = None


def remove(path: str | Path) -> bool:
    """Remove a session folder whose owner is gone. Anything else is left alone.

    Returns:
        whether it is gone.
    """
    path = Path(path)
    if path.name.startswith(PREFIX) and path.is_dir() and not path.is_symlink():
        descriptor = _own(path, 0)
        if descriptor is not None:
            _remove_owned(path, descriptor)
    return not path.exists()


def remove_abandoned(parent: str | Path | None = None) -> None:
    """Remove the session folders in ``parent``, by default the user's temporary folder, whose owners are gone."""
    for path in Path(parent or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        remove(path)


def _own(folder: Path, flags: int) -> int | None:
    """Lock the folder; None when another process has it, or when it is no session folder."""
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:
        return None
    try:
        # A second look at the folder from the same process must not take it from the first.
        lock(descriptor, inherited=True)
        # Whoever removed the folder in between has locked a file that is no longer there.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove_owned(folder: Path, descriptor: int) -> None:
    """Remove everything, the lock last: what cannot go now is then still known as abandoned at the next start."""
    _empty(folder)
    os.close(descriptor)
    with contextlib.suppress(OSError):
        if set(os.listdir(folder)) <= {LOCK_FILE}:
            shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    """Remove all but the lock, as far as it goes. A link goes, and not what it leads to."""
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK_FILE:
            with contextlib.suppress(OSError):
                entry.unlink()
