"""Read model packages. Contents are checked before they are used, and nothing is ever executed.

A package is a folder or a zip archive; nothing is unpacked to disk. Only plain files that are directly in it are read.
What could lead elsewhere or exhaust memory is refused: links, names with folders or drives in them, encrypted members,
archives that expand out of proportion.
"""

import hashlib
import json
import math
import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from conresnet.errors import UserError
from conresnet.files import check_content
from conresnet.package import (
    CARD_FILE,
    DESCRIPTION_FILE,
    FORMAT,
    WEIGHTS_SUFFIX,
    ModelDescription,
    PackedFile,
    parse_description,
)
from conresnet.package.schema import load_json

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it, in which zipfile refuses such members
    LZMAError = zlib.error

MOST_MEMBERS = 1000
MOST_UNPACKED_BYTES = 8 * 2**30
# Weights hardly compress, and text compresses tenfold. Nothing in a model expands a hundredfold to many megabytes.
MOST_SWELLING = 100
SWELLING_IGNORED_BYTES = 4 * 2**20


class Container(ABC):
    """A package's folder or archive. Its methods raise UserError ``package-damaged`` or ``cannot-access``."""

    def __init__(self, path: Path):
        self.path = path

    def damaged(self, reason: str) -> UserError:
        """The error for a package that cannot be read."""
        return UserError("package-damaged", file=str(self.path), reason=reason)

    def unreadable(self, error: OSError, name: str = "") -> UserError:
        """The error for a file system error at a file of the package, or at the package itself."""
        reason = error.strerror or str(error)
        if isinstance(error, PermissionError):
            return UserError("cannot-access", path=str(self.path / name), reason=reason)
        return self.damaged(f"{name}: {reason}" if name else reason)

    def unsafe(self, reason: str) -> UserError:
        """The error for contents that no model package needs."""
        return UserError("package-unsafe", file=str(self.path), reason=reason)

    @abstractmethod
    def names(self) -> list[str]:
        """What is in the package, folders too."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open an existing file for reading."""


class Folder(Container):
    """A package that is a folder."""

    def names(self) -> list[str]:
        try:
            return sorted(item.name for item in self.path.iterdir())
        except OSError as error:
            raise self.unreadable(error) from None

    def size(self, name: str) -> int | None:
        try:
            found = (self.path / name).lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.unreadable(error, name) from None
        if not stat.S_ISREG(found.st_mode):
            raise self.unsafe(f"{name} in it is a link or another special file")
        return found.st_size

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            with (self.path / name).open("rb") as file:
                yield file
        except OSError as error:
            raise self.unreadable(error, name) from None


class Archive(Container):
    """A package in a .zip file, with its files at the top level or in a single folder."""

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

    def names(self) -> list[str]:
        return sorted(name.removeprefix(self._top) for name in self._members)

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
        # The errors that zipfile raises for an unknown compression or an invalid member header.
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise self.damaged(str(error)) from None
        except OSError as error:
            raise self.unreadable(error) from None

    def _checked(self, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """The files by name, with ``/`` between folders regardless of the program that wrote the archive."""
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
    """The folder or archive at `path`.

    Raises UserError ``package-not-found``, ``model-is-checkpoint``, ``package-not-zip``, or as
    `conresnet.files.check_content`.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise UserError("package-not-found", file=str(path))
    if path.suffix.lower() in (".pth", ".pt", ".ckpt", ".tar", ".safetensors"):
        raise UserError("model-is-checkpoint", name=path.name)
    check_content(path)
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        # Such as model.json itself, or another kind of archive.
        raise UserError("package-not-zip", file=str(path))
    return Archive(path)


LICENSE_FILE, METRICS_FILE = "LICENSE.txt", "metrics.json"
# Files of most packages besides the weights, and those that operating systems put into any folder.
_USUAL = (LICENSE_FILE, METRICS_FILE, CARD_FILE, "review.json", "thumbnail.png")
_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")


def files_of_others(path: Path, is_package: bool = False) -> list[str] | None:
    """Names of the files in a package that do not belong to it; None if it is not a package.

    Args:
        is_package: whether it is known to be one; if its description is damaged, the usual files then belong to it.
    """
    document, names = None, []
    with suppress(UserError, KeyError, ValueError, RecursionError):
        container = open_container(path)
        names = container.names()
        with container.open(DESCRIPTION_FILE) as file:
            document = json.loads(file.read(MOST_DESCRIPTION_BYTES))
    if isinstance(document, dict) and document.get("format") == FORMAT:
        listed = document.get("files")
        own = set(listed) if isinstance(listed, dict) else set()
    elif is_package:
        own = {*_USUAL, *(name for name in names if name.endswith(WEIGHTS_SUFFIX))}
    else:
        return None
    own |= {DESCRIPTION_FILE, *_OF_SYSTEMS}
    # The last two are added by macOS to archives and folders.
    return [name for name in names if not (name in own or name.startswith(("__MACOSX/", "._")))]


MOST_HEADER_BYTES = 16 * 2**20
# Far more than any network has; a product of millions of sizes would take hours.
_MOST_DIMENSIONS = 8
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}


def read_tensor_shapes(file: BinaryIO, size: int, source: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by name, in a safetensors file of ``size`` bytes that messages call ``source``.

    The format: the header's length as 8 bytes, little-endian; the header, JSON; the tensors' data, without gaps.
    Raises UserError ``package-weights`` for anything else, such as a pickled checkpoint with that suffix.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        # As strict as the safetensors library, which reads the file later.
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError
        end = 0
        "".join(header).encode("utf-8")  # lone surrogates raise UnicodeEncodeError, a ValueError
        for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
            start, stop = entry["data_offsets"]
            shape = entry["shape"]
            if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= size for n in (*shape, start)):
                raise ValueError
            if type(stop) is not int:
                raise ValueError
            if start != end or stop - start != math.prod(shape) * _ITEM_BYTES[entry["dtype"]]:
                raise ValueError
            end = stop
        if end != size - 8 - length:
            raise ValueError
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("package-weights", file=source) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def read_metrics(package: "ModelPackage") -> dict[str, Any]:
    """What a package's `metrics.json` holds, {} without one. Raises UserError ``package-json``, or as for reading."""
    if METRICS_FILE not in package.description.files:
        return {}
    return load_json(package.read_file(METRICS_FILE), str(package.path / METRICS_FILE))


# Key in `metrics.json`, present only if other weights were measured: how the package's own weights were trained.
OWN_WEIGHTS = "own_weights"
# In its "split", about the weights that a training started with: nothing shows which cases they never saw.
MAY_HAVE_LEARNED = "which may have learned from some of them"


def held_out_cases(package: "ModelPackage") -> tuple[str, ...]:
    """The cases that a package was measured on, if its weights never learned from them; none if that is not known."""
    metrics = read_metrics(package)
    cases = metrics.get("dice_a_case")
    is_known = OWN_WEIGHTS not in metrics and MAY_HAVE_LEARNED not in str(metrics.get("split"))
    return tuple(cases) if isinstance(cases, dict) and is_known else ()


# What our training calls its measurements, in the metrics and in the review list.
_WORDS = {
    "what": "Measured",
    "data": "Data set",
    "split": "Split",
    "mean_dice": "Mean Dice",
    "mean_dice_interval": "Mean Dice, 95% interval",
    "lowest_dice": "Lowest Dice",
    "surface_tolerance_mm": "Tolerance of surface Dice (mm)",
    "mean_surface_dice": "Mean surface Dice",
    "mean_hd95": "Mean HD95 (mm)",
    "mean_volume_difference_ml": "Mean volume difference (mL)",
    "checkpoint": "Checkpoint",
    "steps": "Training steps",
    "remarks": "Remarks",
    OWN_WEIGHTS: "Weights in this package",
    "cases": "Cases",
    "slices": "Slices",
    "bad_share": "Share of bad slices (Dice below 0.8)",
    "auroc": "AUROC for bad slices",
    "auroc_area": "AUROC, by area",
    "auroc_area_fitted": "AUROC, fitted to area alone",
    "spearman": "Spearman, expected and actual wrong voxels",
    "spearman_area": "Spearman, by area",
    "wrong_in_top_tenth": "Share of wrong voxels in the first tenth of slices",
    "wrong_in_top_tenth_at_best": "The same in the best possible order",
}
_PER_SEGMENT = "_a_segment"


def figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each measurement with its name in words; tables within tables, which are those of single cases, are left out."""
    for name, value in metrics.items():
        title = _in_words(name)
        for key, item in value.items() if isinstance(value, dict) else [("", value)]:
            if item is not None and not isinstance(item, dict):
                yield f"{title}, {key}" if key else title, item


def segment_figures(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the measurements of single segments out of ``metrics``: by their name in words, the value by segment."""
    names = [name for name, value in metrics.items() if name.endswith(_PER_SEGMENT) and isinstance(value, dict)]
    return {_in_words(name): metrics.pop(name) for name in names}


def _in_words(name: str) -> str:
    name = name.removesuffix(_PER_SEGMENT)
    return _WORDS.get(name, name.replace("_", " "))


MOST_DESCRIPTION_BYTES = 2**20
_BLOCK_BYTES = 2**20


class ModelPackage:
    """A model package that can be used, from `read_package`: a folder or zip file, and its checked `model.json`."""

    def __init__(self, container: Container, description: ModelDescription):
        self._container = container
        self.path = container.path
        self.description = description

    def read_file(self, name: str) -> bytes:
        """The bytes of a listed file.

        Raises UserError ``package-file-missing`` (also if it is not listed), ``package-truncated``,
        ``package-checksum``, ``package-damaged``, or as `conresnet.files.check_content`.
        """
        return b"".join(self.blocks(name))

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in a weights file, by name, without torch; see `read_tensor_shapes`."""
        with self._container.open(name) as file:
            return read_tensor_shapes(file, self.description.files[name].bytes, f"{self.path / name}")

    def count_parameters(self, name: str) -> int:
        """The numbers in a weights file, without torch."""
        return sum(math.prod(shape) for shape in self.tensor_shapes(name).values())

    def verify(self) -> None:
        """Check the size and checksum of every listed file, and that weights are safetensors files."""
        for name in self.description.files:
            for _ in self.blocks(name):
                pass
            if name.endswith(WEIGHTS_SUFFIX):
                self.tensor_shapes(name)

    def check_sizes(self) -> None:
        """Check that every listed file is there in its size, which is quick."""
        for name, entry in self.description.files.items():
            self._check_size(name, entry)

    def _check_size(self, name: str, entry: PackedFile) -> None:
        size = self._container.size(name)
        if size is None:
            raise UserError("package-file-missing", file=str(self.path), name=name)
        if size != entry.bytes:
            if size:
                # As git leaves it where the file was not downloaded.
                with self._container.open(name) as file:
                    check_content(self.path / name, file.read(512))
            values = {"file": str(self.path), "name": name, "bytes": size, "expected": entry.bytes}
            raise UserError("package-truncated", **values)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Read a listed file in blocks, at most its listed size; the checksum is verified before the last block.

        An empty file is one empty block.
        """
        entry = self.description.files.get(name)
        if entry is None:
            raise UserError("package-file-missing", file=str(self.path), name=name)
        self._check_size(name, entry)
        digest = hashlib.sha256()
        left, block = entry.bytes, b""
        with self._container.open(name) as file:
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
                if left:
                    yield block
        if digest.hexdigest() != entry.sha256:
            raise UserError("package-checksum", file=str(self.path), name=name)
        yield block


def read_package(path: str | PathLike, verify: bool = True) -> ModelPackage:
    """Open the model package at `path`, a folder or a .zip file.

    Args:
        verify: also compare every file's checksum and look into the weights. Without it names and sizes are checked,
            and checksums as each file is read.

    Raises:
        UserError: as `open_container`; ``import-of-run`` or ``package-without-description`` for anything without a
            `model.json`; ``package-unsafe`` or ``package-damaged``; as `parse_description`; as
            `ModelPackage.read_file` for the listed files; and ``package-weights``.
    """
    container = open_container(Path(path))
    size = container.size(DESCRIPTION_FILE)
    if size is None:
        if container.size("plan.yaml") is not None:
            raise UserError("import-of-run", path=str(container.path))
        raise UserError("package-without-description", file=str(container.path))
    if size > MOST_DESCRIPTION_BYTES:
        raise container.unsafe(f"its {DESCRIPTION_FILE} has {size} bytes")
    with container.open(DESCRIPTION_FILE) as file:
        text = file.read(MOST_DESCRIPTION_BYTES)
    description = parse_description(text, str(container.path / DESCRIPTION_FILE))
    package = ModelPackage(container, description)
    package.check_sizes()
    if verify:
        package.verify()
    return package
