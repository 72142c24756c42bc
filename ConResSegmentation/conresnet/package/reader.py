"""Reading a model package: what is in it is checked before anything is used, and nothing in it is ever executed."""

import hashlib
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from conresnet.errors import UserError
from conresnet.package.archive import Container, open_container
from conresnet.package.description import DESCRIPTION_FILE, WEIGHTS_SUFFIX, ModelDescription, PackedFile
from conresnet.package.parsing import parse_description
from conresnet.package.tensors import read_tensor_shapes

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
            raise UserError(
                "package-truncated",
                f"{name} in the model package {self.path} has {size} bytes instead of {entry.bytes}; get a fresh copy.",
                file=str(self.path),
                name=name,
                bytes=size,
                expected=entry.bytes,
            )

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
            raise UserError(
                "package-checksum",
                f"{name} in the model package {self.path} does not have the checksum in its {DESCRIPTION_FILE}, so it "
                "is damaged or was changed; get a fresh copy.",
                file=str(self.path),
                name=name,
            )
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
        raise UserError(
            "package-not-found",
            f"{container.path} holds no {DESCRIPTION_FILE}, so it is no model package; choose the folder or zip file "
            "that holds one.",
            file=str(container.path),
        )
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
    return UserError(
        "package-file-missing",
        f"The model package {path} is incomplete: {name} is not in it; get a fresh copy.",
        file=str(path),
        name=name,
    )
