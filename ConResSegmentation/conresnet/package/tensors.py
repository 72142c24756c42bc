"""The table of contents of a safetensors file, read and checked with nothing but the standard library."""

import json
import math
from typing import BinaryIO

from conresnet.errors import UserError

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
        header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 0
        for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
            start, stop = entry["data_offsets"]
            shape = entry["shape"]
            if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= size for n in shape):
                raise ValueError
            if start != end or stop - start != math.prod(shape) * _ITEM_BYTES[entry["dtype"]]:
                raise ValueError
            end = stop
        if end != size - 8 - length:
            raise ValueError
        return {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            "package-weights",
            f"{source} is not a whole safetensors file, and weights of other kinds are not read; get a fresh copy of "
            "the model package.",
            file=source,
        ) from None
