"""The table of contents of a safetensors file, read and checked with nothing but the standard library.

The measured figures that a package may bring, `metrics.json`: of any form, so long as it is one JSON object.

Reading a model package: what is in it is checked before anything is used, and nothing in it is ever executed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from conresnet.errors import UserError
from conresnet.files import check_content
from conresnet.package.archive import Container, open_container
from conresnet.package.description import (
    DESCRIPTION_FILE,
    WEIGHTS_SUFFIX,
    ModelDescription,
    PackedFile,
    parse_description,
)
from conresnet.package.schema import load_json

MOST_HEADER_BYTES = 16 * 2**20
# Far more than any network has; a product of millions of sizes would take hours.
_MOST_DIMENSIONS = 8
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}


def read_tensor_shapes(file: BinaryIO, size: int, source: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by name.

    The format: the header's length as 8 bytes, little-endian; the header, JSON; the tensors' data, without gaps.

    Args:
        file: open at its start.
        size: the file's size in bytes.
        source: its name for messages.

    Raises:
        UserError: ``package-weights`` when it is not in the format, a pickled checkpoint with that suffix for one.
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
        tensors = header
        end = 0
        "".join(tensors).encode("utf-8")  # lone surrogates raise UnicodeEncodeError, a ValueError
        for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
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
        return {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("package-weights", file=source) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


METRICS_FILE = "metrics.json"


def read_metrics(package: "ModelPackage") -> dict[str, Any]:
    """What a package's `metrics.json` holds; empty where it brings none.

    Raises:
        UserError: ``package-json``, or that of ``ModelPackage.read_file``.
    """
    if METRICS_FILE not in package.description.files:
        return {}
    return load_json(package.read_file(METRICS_FILE), str(package.path / METRICS_FILE))


def figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each figure with its name in words, without the tables inside of tables: those of the single cases."""
    for name, value in metrics.items():
        for key, item in value.items() if isinstance(value, dict) else [("", value)]:
            if not isinstance(item, dict):
                yield f"{name} {key}".strip().replace("_", " "), item


MOST_DESCRIPTION_BYTES = 2**20
_BLOCK_BYTES = 2**20


class ModelPackage:
    """A model package that can be used, from `read_package`.

    Attributes:
        path: the folder or zip file.
        description: its checked `model.json`.
    """

    def __init__(self, container: Container, description: ModelDescription):
        self._container = container
        self.path = container.path
        self.description = description

    def read_file(self, name: str) -> bytes:
        """The bytes of the listed file `name`, whose size and checksum are right.

        Raises:
            UserError: when they are not, or when the package does not list it (``package-file-missing``).
        """
        if name not in self.description.files:
            raise _missing(self.path, name)
        return b"".join(self._blocks(name, self.description.files[name]))

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in a weights file, by name, without torch.

        Raises:
            UserError: ``package-weights`` when it is no safetensors file.
        """
        with self._container.open(name) as file:
            return read_tensor_shapes(file, self.description.files[name].bytes, f"{self.path / name}")

    def count_parameters(self, name: str) -> int:
        """The numbers in a weights file, without torch; errors as for `tensor_shapes`."""
        return sum(math.prod(shape) for shape in self.tensor_shapes(name).values())

    def verify(self) -> None:
        """Check the size and checksum of every listed file, and that weights are safetensors files.

        Raises:
            UserError: for the first file that is wrong.
        """
        for name, entry in self.description.files.items():
            for _ in self._blocks(name, entry):
                pass
            if name.endswith(WEIGHTS_SUFFIX):
                self.tensor_shapes(name)

    def check_sizes(self) -> None:
        """Check that every listed file is there in its size, which is quick.

        Raises:
            UserError: ``package-file-missing`` or ``package-truncated``.
        """
        for name, entry in self.description.files.items():
            self._check_size(name, entry)

    def _check_size(self, name: str, entry: PackedFile) -> None:
        size = self._container.size(name)
        if size is None:
            raise _missing(self.path, name)
        if size != entry.bytes:
            if size:
                # As git leaves it where the file was not downloaded.
                with self._container.open(name) as file:
                    check_content(self.path / name, file.read(512))
            values = {"file": str(self.path), "name": name, "bytes": size, "expected": entry.bytes}
            raise UserError("package-truncated", **values)

    def _blocks(self, name: str, entry: PackedFile) -> Iterator[bytes]:
        """The file in blocks; never more than its listed size, and the checksum compared before the last is given."""
        self._check_size(name, entry)
        digest = hashlib.sha256()
        left = entry.bytes
        with self._container.open(name) as file:
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
                if left:
                    yield block
        if digest.hexdigest() != entry.sha256:
            raise UserError("package-checksum", file=str(self.path), name=name)
        if entry.bytes:
            yield block


def read_package(path: str | PathLike, verify: bool = True) -> ModelPackage:
    """Open the model package at `path`, a folder or a .zip file.

    Args:
        path: where it is.
        verify: also compare every file's checksum and look into the weights. Without it names and sizes are checked,
            and checksums as each file is read.

    Raises:
        UserError: with a sentence that names the package, what is wrong with it and what to do.
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


def _missing(path: Path, name: str) -> UserError:
    return UserError("package-file-missing", file=str(path), name=name)
