"""Writing a model package: complete under its name, or not there at all."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders, move, write_error
from conresnet.package.description import DESCRIPTION_FILE, ModelDescription, PackedFile, parse_description
from conresnet.package.reader import ModelPackage, read_package

LICENSE_FILE = "LICENSE.txt"
# Not the one of hidden folders with results, which are treated otherwise after a kill.
_PREFIX = ".part-package-"
_ASIDE = "replaced"


def write_package(
    description: ModelDescription,
    files: Mapping[str, bytes | PathLike],
    path: str | PathLike,
    overwrite: bool = False,
) -> ModelPackage:
    """Write a model package and read it back.

    Args:
        description: what goes into `model.json`; its ``files`` are replaced by what is written.
        files: every other file by its plain name, as bytes or as the path of a file to copy: each network's weights,
            and for instance ``metrics.json``. Where there is no ``LICENSE.txt``, one is made of the license and the
            attribution.
        path: the package to make: a zip file if it ends in ``.zip``, else a folder.
        overwrite: replace a model package that is there. Nothing else is ever replaced.

    Raises:
        UserError: when the description does not fit its files, ``package-exists``, ``disk-full`` or ``cannot-write``.
    """
    path = Path(path)
    license_text = f"{description.license}\n\n{description.attribution}".strip() + "\n"
    contents = {LICENSE_FILE: license_text.encode(), **files}
    check_replaceable(path, overwrite)
    with _writing(path) as folder:
        entries = {name: _measure(content) for name, content in contents.items()}
        # Checks the names of the files before any is written.
        written = parse_description(replace(description, files=entries).to_dict(), str(path / DESCRIPTION_FILE))
        for name, content in contents.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        (folder / DESCRIPTION_FILE).write_text(written.to_json(), encoding="utf-8", newline="\n")
        read_package(folder)
        if path.suffix.lower() == ".zip":
            made = folder.parent / path.name
            _zip(folder, made)
        else:
            made = folder
        _replace(made, path)
    return read_package(path, verify=False)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is, unless it is a model package and may be overwritten.

    Raises:
        UserError: ``package-exists`` or ``package-path-taken``.
    """
    if not os.path.lexists(path):
        return
    is_package = path.suffix.lower() == ".zip" if path.is_file() else (path / DESCRIPTION_FILE).is_file()
    if overwrite and is_package and not path.is_symlink():
        return
    raise UserError("package-exists" if is_package else "package-path-taken", file=str(path))


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """An empty folder for the package's files, in a hidden one next to `path` that is gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_packages(path.parent)
        owned = OwnedFolder.make(_PREFIX, path.parent, needs_lock=False)
        try:
            folder = owned.path / "package"
            folder.mkdir()
            yield folder
        finally:
            owned.remove()
    except OSError as error:
        raise write_error(error, path) from error


def recover_packages(folder: Path) -> None:
    """Bring back the packages that a process which was killed had moved aside, and remove its hidden folders.

    Raises:
        OSError: a package cannot be moved back.
    """
    for owned in abandoned_folders(folder, _PREFIX):
        aside = owned.path / _ASIDE
        for package in list(aside.iterdir()) if aside.is_dir() else []:
            if not os.path.lexists(folder / package.name):
                move(package, folder / package.name)
        owned.remove()


def _measure(content: bytes | PathLike) -> PackedFile:
    if isinstance(content, bytes):
        return PackedFile(hashlib.sha256(content).hexdigest(), len(content))
    with open(content, "rb") as file:
        return PackedFile(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            # A fixed date, so that the same model gives the same archive.
            item = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
            item.compress_type = zipfile.ZIP_DEFLATED
            item.external_attr = 0o644 << 16
            archive.writestr(item, file.read_bytes())


def _replace(made: Path, path: Path) -> None:
    """Move what was made to its name; a folder that is there steps aside first, and comes back if the move fails.

    After a kill in between, `recover_packages` brings it back.
    """
    if not path.is_dir():
        move(made, path)
        return
    aside = made.parent / _ASIDE / path.name
    aside.parent.mkdir()
    move(path, aside)
    try:
        move(made, path)
    except OSError:
        move(aside, path)
        raise
