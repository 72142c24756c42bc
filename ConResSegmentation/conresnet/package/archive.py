"""The two containers of a model package, a folder and a zip archive, behind one face; nothing is ever unpacked to disk.

A container hands out the bytes of plain files that lie directly in it, and refuses what could lead elsewhere or exhaust
memory: links, names with folders or drives in them, encrypted members, archives that swell out of proportion.
"""

import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from conresnet.errors import UserError
from conresnet.files import check_content
from conresnet.package.description import DESCRIPTION_FILE

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it, in which zipfile refuses such members
    LZMAError = zlib.error

MOST_MEMBERS = 1000
MOST_UNPACKED_BYTES = 8 * 2**30
# Weights hardly compress; text compresses tenfold. A hundredfold swelling of more than a few megabytes is no model.
MOST_SWELLING = 100
SWELLING_IGNORED_BYTES = 4 * 2**20


class Container(ABC):
    """A place that holds a package's files.

    Attributes:
        path: the folder or the archive.
    """

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size in bytes of the file `name`, None where there is no such file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The file `name`, which `size` has found, for reading, in a ``with`` statement.

        Raises:
            UserError: ``package-damaged`` when it cannot be read.
        """

    def damaged(self, reason: str) -> UserError:
        """The error for a container that cannot be read."""
        return UserError("package-damaged", file=str(self.path), reason=reason)

    def unsafe(self, reason: str) -> UserError:
        """The error for a container that holds what no model package has any need of."""
        return UserError("package-unsafe", file=str(self.path), reason=reason)


class Folder(Container):
    """A package that is a folder."""

    def size(self, name: str) -> int | None:
        try:
            found = (self.path / name).lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.damaged(f"{name}: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise self.unsafe(f"{name} in it is not a plain file but a link or the like")
        return found.st_size

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            with (self.path / name).open("rb") as file:
                yield file
        except OSError as error:
            raise self.damaged(f"{name}: {error.strerror}") from None


class Archive(Container):
    """A package that is a zip file, its files at the top or all in one folder, as file managers make them."""

    def __init__(self, path: Path):
        super().__init__(path)
        with self._opened() as archive:
            self._members = self._checked(archive.infolist())
        folders = [name.rpartition("/")[0] for name in self._members if name.split("/")[-1] == DESCRIPTION_FILE]
        folders = [folder for folder in folders if "/" not in folder]
        if len(folders) > 1:
            raise self.damaged(f"it holds {len(folders)} files named {DESCRIPTION_FILE}")
        if not folders and any(name.split("/")[-1] == "data.pkl" for name in self._members):
            raise UserError("model-is-checkpoint", name=path.name)
        self._top = f"{folders[0]}/" if folders and folders[0] else ""

    def size(self, name: str) -> int | None:
        item = self._members.get(self._top + name)
        return None if item is None else item.file_size

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with self._opened() as archive, archive.open(self._members[self._top + name]) as file:
            yield file

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, LZMAError, EOFError) as error:
            raise self.damaged(f"it is not a complete zip file: {error}") from None
        # What zipfile raises for a compression it does not know and for nonsense in a member's header.
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise self.damaged(str(error)) from None
        except OSError as error:
            raise self.damaged(error.strerror or str(error)) from None

    def _checked(self, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """The files by their names with ``/`` between folders, however the program that made the archive wrote them."""
        if len(members) > MOST_MEMBERS:
            raise self.unsafe(f"it has {len(members)} files")
        files: dict[str, zipfile.ZipInfo] = {}
        for item in members:
            # orig_filename is the name as stored: zipfile cuts filename at a NUL.
            stored = item.orig_filename
            shown = ascii(stored[:80])
            # Some programs write backslashes, or "./" first.
            name = "/".join(part for part in stored.replace("\\", "/").split("/") if part != ".")
            if "\0" in name or re.match("/|[A-Za-z]:", name) or ".." in name.split("/"):
                raise self.unsafe(f"the name {shown} in it leads out of it")
            if stat.S_ISLNK(item.external_attr >> 16):
                raise self.unsafe(f"{shown} in it is a link")
            if item.flag_bits & 1:
                raise self.unsafe(f"{shown} in it is encrypted")
            if name in files:
                raise self.unsafe(f"it has {shown} twice")
            if item.file_size > SWELLING_IGNORED_BYTES and item.file_size > MOST_SWELLING * item.compress_size:
                raise self.unsafe(f"{shown} in it would expand to {item.file_size} bytes")
            files[name] = item
        unpacked = sum(item.file_size for item in members)
        if unpacked > MOST_UNPACKED_BYTES:
            raise self.unsafe(f"it would expand to {unpacked} bytes")
        return {name: item for name, item in files.items() if not name.endswith("/")}


def open_container(path: Path) -> Container:
    """The container at `path`.

    Raises:
        UserError: ``package-not-found``, ``model-is-checkpoint``, those of `conresnet.files.check_content`, or
            one from reading the container.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise UserError("package-not-found", file=str(path))
    if path.suffix.lower() in (".pth", ".pt", ".ckpt", ".tar", ".safetensors"):
        raise UserError("model-is-checkpoint", name=path.name)
    check_content(path)
    return Archive(path)
