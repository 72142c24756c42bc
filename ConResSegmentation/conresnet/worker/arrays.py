"""Where results live: files that the client maps too, so that it sees them grow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conresnet.atomic_file import write_error

_BLOCK = bytes(1 << 20)


class ResultArrays:
    """The arrays of one request.

    Args:
        folder: where their files go.
        announce: called with name, path, shape and dtype of each as soon as it can be mapped.
    """

    def __init__(self, folder: Path, announce: Callable[[str, Path, tuple[int, ...], str], None]):
        self._folder = folder
        self._announce = announce
        self._paths: dict[str, Path] = {}

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A new array of zeros in a file of its own.

        Raises:
            UserError: "disk-full" or "cannot-write".
        """
        path, dtype = self._folder / f"{name}.npy", np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        try:
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                _fill(file, math.prod(shape) * dtype.itemsize)
            array = np.load(path, mmap_mode="r+", allow_pickle=False)
        except OSError as error:
            raise write_error(error, path) from error
        self._paths[name] = path
        self._announce(name, path, array.shape, array.dtype.name)
        return array

    def path(self, name: str) -> str:
        """The file of an array."""
        return str(self._paths[name])


def _fill(file: BinaryIO, size: int) -> None:
    """Write zeros, each with its place on the disk: writing to a map when the disk is full would end the process."""
    if hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for start in range(0, size, len(_BLOCK)):
        file.write(_BLOCK[: size - start])
