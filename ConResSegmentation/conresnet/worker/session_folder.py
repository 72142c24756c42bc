"""The folder in which the engine's process and its client exchange arrays. Standard library only."""

import shutil
import tempfile
from pathlib import Path

from conresnet.files import LOCK_FILE, OwnedFolder, abandoned_folders

# Short, since paths in it must stay below the 260 characters of Windows.
PREFIX = "conresnet-"

__all__ = ["LOCK_FILE", "PREFIX", "SessionFolder", "remove", "remove_abandoned"]


class SessionFolder:
    """A new folder of the process that makes it, with a subfolder for the arrays of each request.

    Args:
        parent: where to make it. Defaults to the user's temporary folder.

    Raises:
        OSError: when it cannot be made.
    """

    def __init__(self, parent: str | Path | None = None):
        self._owned = OwnedFolder.make(PREFIX, parent)
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


def remove(path: str | Path) -> bool:
    """Remove a session folder whose owner is gone; anything else is left alone. Returns whether it is gone."""
    path = Path(path)
    if path.name.startswith(PREFIX) and (owned := OwnedFolder.take(path)):
        owned.remove()
    return not path.exists()


def remove_abandoned(parent: str | Path | None = None) -> None:
    """Remove the session folders in ``parent``, by default the user's temporary folder, whose owners are gone."""
    for owned in abandoned_folders(parent or tempfile.gettempdir(), PREFIX):
        owned.remove()
