"""Files that are either written whole or not at all, and folders that belong to one process for as long as it lives.

Standard library only: Slicer's process uses these too.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from conresnet.errors import UserError

LOCK_FILE = "owner.lock"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A virus scanner keeps a new file open for about this long.
_SECONDS_TO_TRY = 3.0 if os.name == "nt" else 0.0
_TRIES = 5
_SECONDS_OF_A_DAY = 86_400


def check_content(path: str | Path, beginning: bytes | None = None) -> None:
    """Refuse a file that is empty, or is a Git LFS pointer or a web page that was saved in its place.

    ``beginning`` are its first bytes, if they were read already. Raises UserError "file-empty", "file-lfs-pointer" or
    "file-web-page", or OSError if it cannot be read.
    """
    if beginning is None:
        with open(path, "rb") as file:
            beginning = file.read(512)
    if not beginning:
        raise UserError("file-empty", path=str(path))
    text = beginning[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs."):
        raise UserError("file-lfs-pointer", path=str(path))
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or (text.startswith(b"<?xml") and b"<html" in text):
        raise UserError("file-web-page", path=str(path))


def names_in_zip(path: str | Path) -> set[str]:
    """Names of the files in a .zip file, without folders; empty if the file is not a complete .zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.replace("\\", "/").split("/")[-1] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return set()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name next to ``path``, with the same suffixes; that file replaces ``path`` when the block succeeds.

    Raises:
        UserError: "disk-full" or "cannot-write" for any OSError in the block; nothing new is left behind then.
    """
    path = Path(path)
    if not path.name:
        raise UserError("cannot-write", path=str(path), reason="it is a folder")
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        # Writing a file never takes a day, so an older part is from a process that was killed.
        for left in path.parent.glob(f".part-*-{glob.escape(path.name)}"):
            if time.time() - left.stat().st_mtime > _SECONDS_OF_A_DAY:
                left.unlink()
    except OSError:
        pass
    try:
        yield temporary
        move(temporary, path)
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 as ``replacing`` does; what UTF-8 cannot store is escaped, as in some file names."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def move(made: str | Path, path: str | Path) -> None:
    """Rename a file or folder to ``path``, replacing a file of that name, as ``os.replace`` does.

    Windows refuses while another process, such as a virus scanner or a reader of the old file, has either of them open,
    so there it is tried again for a few seconds.
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
    """The sentence for an OSError raised while writing ``path``."""
    if error.errno in _FULL:
        return UserError("disk-full", path=str(path))
    return UserError("cannot-write", path=str(path), reason=error.strerror or str(error))


def csv_cell(name: str) -> str:
    """A name that a spreadsheet does not interpret as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, or raise UserError "disk-full" or "cannot-write", before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error


if os.name == "nt":
    import msvcrt
else:
    import fcntl


def lock(descriptor: int, *, inherited: bool) -> None:
    """Lock an open file against all other processes, without waiting. It is released when its owner ends in any way.

    Args:
        descriptor: of the file, open for writing.
        inherited: whether processes forked from this one hold the lock too, for as long as they live. If not, closing
            any of this process's descriptors of the file releases it. Windows has only one kind of lock, which belongs
            to the open file and is not inherited.

    Raises:
        OSError: another process holds it, or the file system has no locks.
    """
    if os.name == "nt":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    elif inherited:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OwnedFolder:
    """A temporary folder with a locked file in it, which shows whether the process that made it still runs.

    A folder whose lock is free was left by a process that was killed, and anyone may take it over and remove it.
    Process ids would not do: they are reused, and are not unique where containers share a file system.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, descriptor: int | None):
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def make(cls, prefix: str, parent: str | Path | None = None, *, needs_lock: bool = True) -> OwnedFolder:
        """A new folder in ``parent``, by default the user's temporary folder. Raises OSError if it cannot be made.

        Args:
            needs_lock: whether to refuse a file system that has no locks; without a lock, a folder that is left behind
                is never taken for abandoned.
        """
        for _ in range(_TRIES):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            descriptor = _locked(path, os.O_CREAT)
            # Another process that was cleaning up may have removed the folder before it was locked.
            if descriptor is not None or (not needs_lock and path.is_dir()):
                return cls(path, descriptor)
        raise OSError(errno.ENOLCK, "no file can be locked", str(path.parent))

    @classmethod
    def take(cls, path: Path) -> OwnedFolder | None:
        """An abandoned folder, which is this process's from now on; None if it is in use or is not such a folder."""
        if not path.is_dir() or path.is_symlink():
            return None
        descriptor = _locked(path, 0)
        return None if descriptor is None else cls(path, descriptor)

    def release(self) -> None:
        """Leave the folder with everything in it as an abandoned one, which another process may take over."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove the folder with everything in it, except files that are mapped on Windows.

        The lock goes last: what could not be removed is then still recognized as abandoned later.
        """
        for entry in list(self.path.iterdir()) if self.path.is_dir() else []:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_FILE:
                with contextlib.suppress(OSError):
                    entry.unlink()
        self.release()
        with contextlib.suppress(OSError):
            if set(os.listdir(self.path)) <= {LOCK_FILE}:
                shutil.rmtree(self.path)


def abandoned_folders(parent: str | Path, prefix: str) -> Iterator[OwnedFolder]:
    """The folders in ``parent`` that processes which no longer run have left."""
    with contextlib.suppress(OSError):
        for path in sorted(Path(parent).glob(f"{prefix}*")):
            if owned := OwnedFolder.take(path):
                yield owned
            else:
                # One that was left before it was locked; of a process that runs, it would not be empty.
                with contextlib.suppress(OSError):
                    path.rmdir()


def _locked(folder: Path, flags: int) -> int | None:
    """Lock the folder's lock file; None if another process holds it, or there is none."""
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:
        return None
    try:
        # Inherited, because looking at the folder again from the same process must not release it.
        lock(descriptor, inherited=True)
        # If another process removed the folder in the meantime, this is the lock of a file that no longer exists.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
