"""Locations of models, and writing, installing and removing packages. Torch-free.

A models folder holds model packages, each a folder or a .zip file. They are searched in this order, and the first
package with a name is used:

1. the extra path given by the caller: a models folder, or one model package;
2. the user's: the folders of ``CONRESNET_MODELS`` (separated as in PATH) if that is set, otherwise the platform's place
   for a user's data. `install_model` puts new ones into the first;
3. shipped with the engine.

So a user's newer version replaces a shipped model, and the list shows that it does. A package that cannot be used is
also an entry, with a message that says why. A package is written completely or not at all.
"""

import contextlib
import difflib
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders, move, write_error
from conresnet.messages import sentence
from conresnet.package import DESCRIPTION_FILE, ModelDescription, packed_file, parse_description
from conresnet.package.reader import LICENSE_FILE, ModelPackage, files_of_others, read_metrics, read_package

logger = logging.getLogger(__name__)

SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "models"
FOLDERS_VARIABLE = "CONRESNET_MODELS"
# Not the one of hidden folders with results, which are treated otherwise after a kill.
_PREFIX = ".part-package-"
_ASIDE = "replaced"
_MOST_NAMED = 5
# A package with such a name would be a folder, although the name looks like that of an archive or a checkpoint.
_OTHER_ENDINGS = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".pth", ".pt", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class ModelEntry:
    """One model package that was found.

    Attributes:
        name: the name in its description; of a broken one, its folder's or file's.
        path: the folder or zip file.
        kind: origin: ``extra``, ``user`` or ``shipped``.
        description, problem: one of them is None; the problem is the error message of a broken package.
        hidden_by: an earlier package with the same name, so that this one can only be used by its path.
    """

    name: str
    path: Path
    kind: str
    description: ModelDescription | None
    problem: UserError | None = None
    hidden_by: Path | None = None


def model_folders(extra: str | PathLike | None = None) -> list[tuple[str, Path]]:
    """Folders that are searched for models, in order: (kind, path); the paths need not exist."""
    folders = [("extra", Path(extra))] if extra else []
    folders += [("user", folder) for folder in _user_folders()]
    return [*folders, ("shipped", SHIPPED_FOLDER)]


def add_models_folder(folder: Path) -> None:
    """Search a folder before the user's models folders for the rest of this process; it need not exist yet."""
    os.environ[FOLDERS_VARIABLE] = os.pathsep.join(map(str, [folder, *_user_folders()]))


def list_models(extra: str | PathLike | None = None) -> list[ModelEntry]:
    """All model packages, including broken and hidden ones, in the order in which names are resolved.

    A user's package that was being replaced when an installation was killed is restored first.

    Descriptions and sizes are checked, checksums are not: see `ModelPackage.verify`. Raises UserError
    ``models-folder-not-found`` when `extra` does not exist.
    """
    if extra and not Path(extra).exists():
        raise UserError("models-folder-not-found", file=str(extra))
    entries: list[ModelEntry] = []
    first: dict[str, Path] = {}
    for folder in _user_folders():
        with contextlib.suppress(OSError):
            recover_packages(folder)
    for kind, folder in model_folders(extra):
        try:
            paths = list(_packages_in(folder))
        except OSError as error:
            # Otherwise nobody would know why a shipped model takes the place of the user's.
            problem = UserError("cannot-access", path=str(folder), reason=error.strerror)
            entries.append(ModelEntry(folder.name, folder, kind, None, problem))
            continue
        for path in paths:
            entry = _read_entry(kind, path)
            if entry.description:
                hidden_by = first.setdefault(entry.name, path)
                if hidden_by != path:
                    entry = replace(entry, hidden_by=hidden_by)
            entries.append(entry)
    return entries


def find_model(name_or_path: str | PathLike, extra: str | PathLike | None = None) -> Path:
    """The model package for a name or path.

    The name of a listed model refers to that model; any other text is a path. So a folder in the current directory
    is never used by accident: write ``./hippocampus`` for it. A warning is logged if a models folder, or a model that
    comes before the one of this name, cannot be read. Raises UserError ``model-kind``, ``model-not-found``,
    ``model-not-found-near``, ``cannot-access``, or the error of the broken model of that name.
    """
    if not isinstance(name_or_path, str | PathLike):
        raise UserError("model-kind", kind=type(name_or_path).__name__)
    text = os.path.expanduser(os.fspath(name_or_path))
    # Avoids reading all models: names have no folders.
    if not extra and os.path.dirname(text) and os.path.exists(text):
        return Path(text)
    entries, unread = list_models(extra), []
    folders = [folder for _kind, folder in model_folders(extra)]
    for entry in entries:
        if entry.description and entry.name == text:
            for problem in unread:
                values = {"sentence": problem.message, "name": text, "path": str(entry.path)}
                logger.warning(sentence("warn-model-instead", values))
            return entry.path
        # If a package cannot be read, only the name of its folder or file is known.
        if entry.problem and (entry.path in folders or entry.name in (text, f"{text}.zip")):
            unread.append(entry.problem)
    try:
        # As a path, "" would be the current folder.
        if text and Path(text).exists():
            return Path(text)
    except OSError as error:
        raise UserError("cannot-access", path=text, reason=error.strerror) from error
    for entry in entries:
        if entry.problem and entry.name == text:
            raise entry.problem
    names = sorted({entry.name for entry in entries if entry.description})
    near = difflib.get_close_matches(text, names, n=1)
    if near:
        raise UserError("model-not-found-near", name=text, near=near[0])
    raise UserError("model-not-found", name=text, names=", ".join(names) or "none")


def read_model(
    model: str | PathLike | ModelPackage, extra: str | PathLike | None = None, verify: bool = True
) -> ModelPackage:
    """A model package: its description (channels, segments, license, ...) and its weights, verified.

    Args:
        model: name of an installed or shipped model, the path of a package, or a package, which is returned unchanged.
        extra: see ``find_model``.
        verify: see ``conresnet.package.reader.read_package``.

    Raises:
        UserError: as ``find_model`` and ``conresnet.package.reader.read_package``.
    """
    return model if isinstance(model, ModelPackage) else read_package(find_model(model, extra), verify)


def digest_with_locator(model: str | PathLike | ModelPackage) -> str:
    """Digest of a model, as for `read_model`, and of its locator: other programs may replace either at any time."""
    package = read_model(model, verify=False)
    digests, locator = [package.description.digest], package.description.locator
    with contextlib.suppress(UserError):
        # A missing locator is an error only if it is needed.
        digests += [read_model(locator.model, verify=False).description.digest] if locator else []
    return " ".join(digests)


def install_model(source: str | PathLike, overwrite: bool = False, name: str | None = None) -> ModelPackage:
    """Copy a model package, a folder or a zip file, into the user's models folder, as a folder of the model's name.

    With ``overwrite``, an installed model of that name is replaced; with ``name``, it is installed under another name.
    Raises UserError if it is broken, or as ``write_package`` or ``place_to_install``; nothing is installed then.
    """
    # It imports numpy, which lists of models do without.
    from conresnet.results.review import read_ranking

    package = read_package(source)
    read_metrics(package)
    read_ranking(package)
    description = package.description
    if name:
        description = parse_description({**description.to_dict(), "name": name}, DESCRIPTION_FILE)
    files = {file: package.read_file(file) for file in description.files}
    return write_package(description, files, place_to_install(description.name), overwrite)


def place_to_install(name: str) -> Path:
    """The path to install a model of this name at: that of the installed package with this name, which could otherwise
    hide the new one, even if its folder has another name. If there is none, a new folder of this name.

    Raises UserError as ``user_folder``.
    """
    folder = user_folder()
    try:
        entries = [_read_entry("user", path) for path in _packages_in(folder)]
    except OSError:
        # Reported when it is written to.
        entries = []
    return next((entry.path for entry in entries if entry.description and entry.name == name), folder / name)


def user_folder() -> Path:
    """The folder where models are installed; it may not exist yet.

    Raises UserError ``models-folder-not-folder`` if ``CONRESNET_MODELS`` names a model package, which is used but must
    not be changed, or a file.
    """
    folder = _user_folders()[0]
    if os.path.isfile(folder) or os.path.exists(folder / DESCRIPTION_FILE):
        raise UserError("models-folder-not-folder", file=str(folder), variable=FOLDERS_VARIABLE)
    return folder


def free_name(name: str) -> str:
    """A similar name that no model has, such as "hippocampus-2"."""
    taken = {entry.name for entry in list_models()} | {path.name for path in user_folder().glob("*")}
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def is_removable(path: str | PathLike) -> bool:
    """Whether a path is a model package directly in one of the user's models folders."""
    path = Path(path).absolute()
    for folder in _user_folders():
        # Compared with what is there, because the parent of "models/.." is "models", too.
        with contextlib.suppress(OSError):
            if path.parent == folder.absolute() and path in [found.absolute() for found in _packages_in(folder)]:
                return True
    return False


def check_removable(path: str | PathLike) -> None:
    """Raise UserError ``model-not-removable`` for a path that is not an installed model package, and
    ``model-other-files`` for one whose folder also has other files, which would be lost.
    """
    path = Path(path)
    if not is_removable(path):
        raise UserError("model-not-removable", path=str(path))
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder and (others := files_of_others(path, is_package=True)):
        raise UserError("model-other-files", file=str(path), names=_shortened(others))


def remove_model(path: str | PathLike) -> None:
    """Delete an installed model package. Raises UserError as ``check_removable``, or ``cannot-write``."""
    path = Path(path)
    check_removable(path)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise write_error(error, path) from error


def _user_folders() -> list[Path]:
    named = [Path(text).expanduser() for text in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if text]
    if named:
        return named
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        # The XDG specification has relative paths ignored.
        data = Path(os.environ.get("XDG_DATA_HOME") or "")
        data = data if data.is_absolute() else Path.home() / ".local" / "share"
    return [data / "conresnet" / "models"]


def _packages_in(folder: Path) -> Iterator[Path]:
    """Packages directly in a models folder, by name, or the folder itself if it is a package.

    There are none if the folder does not exist yet. Raises OSError if it cannot be read.
    """
    if os.path.isfile(folder) or os.path.exists(folder / DESCRIPTION_FILE):
        yield folder
        return
    try:
        items = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in items:
        # A hidden one is a package that is being written just now.
        is_package = item.suffix.lower() == ".zip" or os.path.exists(item / DESCRIPTION_FILE)
        if is_package and not item.name.startswith("."):
            yield item


def _read_entry(kind: str, path: Path) -> ModelEntry:
    try:
        description = read_package(path, verify=False).description
    except UserError as error:
        return ModelEntry(path.name, path, kind, None, problem=error)
    return ModelEntry(description.name, path, kind, description)


def write_package(
    description: ModelDescription, files: Mapping[str, bytes | PathLike], path: str | PathLike, overwrite: bool = False
) -> ModelPackage:
    """Write a model package and read it back.

    Args:
        description: content of `model.json`; its ``files`` are replaced by those that are written.
        files: every other file by its plain name, as bytes or as the path of a file to copy: each network's weights,
            and for instance ``metrics.json``. Where there is no ``LICENSE.txt``, one is made of the license and the
            attribution.
        path: the package to make: a zip file if it ends in ``.zip``, else a folder.
        overwrite: replace an existing model package. Nothing else is ever replaced.

    Raises:
        UserError: when the description does not fit its files, those of `check_replaceable`, ``disk-full`` or
            ``cannot-write``.
    """
    path = Path(path)
    license_text = f"{description.license}\n\n{description.attribution}".strip() + "\n"
    contents = {LICENSE_FILE: license_text.encode(), **files}
    check_replaceable(path, overwrite)
    with _writing(path) as folder:
        entries = {name: packed_file(content) for name, content in contents.items()}
        # Checks the names of the files before any is written.
        written = parse_description(replace(description, files=entries).to_dict(), str(path / DESCRIPTION_FILE))
        for name, content in contents.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        (folder / DESCRIPTION_FILE).write_text(written.to_json(), encoding="utf-8", newline="\n")
        made = folder
        if path.suffix.lower() == ".zip":
            made = folder.parent / path.name
            _zip(folder, made)
        # Before it replaces anything.
        try:
            read_package(made)
        except UserError as error:
            raise error.naming(str(made), str(path)) from error
        _replace(made, path)
    return read_package(path, verify=False)


def check_package_path(path: Path, overwrite: bool) -> None:
    """Raise UserError ``package-path-ending`` for a misleading ending, or as ``check_replaceable``."""
    if path.suffix.lower() in _OTHER_ENDINGS and not path.is_dir():
        raise UserError("package-path-ending", file=str(path), ending=path.suffix)
    check_replaceable(path, overwrite)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is, unless it is a model package and may be overwritten.

    A package may be of a later version, or damaged in any file but ``model.json``. It must have no other files, which
    would be lost. Raises UserError ``package-exists``, ``package-is-link``, ``package-path-taken`` or
    ``package-other-files``.
    """
    if not os.path.lexists(path):
        return
    others = files_of_others(path)
    if others is None:
        raise UserError("package-path-taken", file=str(path))
    if not overwrite:
        raise UserError("package-exists", file=str(path))
    if path.is_symlink():
        raise UserError("package-is-link", file=str(path))
    if others:
        raise UserError("package-other-files", file=str(path), names=_shortened(others))


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """An empty folder for the package's files, inside a hidden one next to `path` that is removed afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_packages(path.parent)
        owned = OwnedFolder.make(_PREFIX, path.parent, needs_lock=False)
        try:
            folder = owned.path / "package"
            folder.mkdir()
            yield folder
        finally:
            _put_back(owned, path.parent)
            owned.remove()
    except OSError as error:
        raise write_error(error, path) from error


def recover_packages(folder: Path) -> None:
    """Restore the packages that a killed process had moved aside, and remove its hidden folders."""
    for owned in abandoned_folders(folder, _PREFIX):
        _put_back(owned, folder)
        owned.remove()


def _put_back(owned: OwnedFolder, folder: Path) -> None:
    """Move a package back to its name, unless the new one exists."""
    aside = owned.path / _ASIDE
    try:
        for package in list(aside.iterdir()) if aside.is_dir() else []:
            if not os.path.lexists(folder / package.name):
                move(package, folder / package.name)
    except OSError:
        # The hidden folder must stay; another process may take it over.
        owned.release()
        raise


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            # A fixed date, so that the same model gives the same archive.
            item = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
            item.compress_type = zipfile.ZIP_DEFLATED
            item.external_attr = 0o644 << 16
            archive.writestr(item, file.read_bytes())


def _replace(made: Path, path: Path) -> None:
    """Move a new package to its name; an existing folder is moved aside first.

    If this fails or is interrupted in between, `_writing` puts it back; after a kill, `recover_packages` does.
    """
    if not path.is_dir():
        move(made, path)
        return
    aside = made.parent / _ASIDE / path.name
    aside.parent.mkdir()
    move(path, aside)
    move(made, path)
