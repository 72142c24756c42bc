"""Files sent through the pipe in compressed blocks, for when both ends do not share a disk. Standard library only.

A block is a message, or part of one, with these fields. Its file is relative to the receiver's session folder:

    "file": "1/labels.npy", "offset": 1048576, "data": zlib, in base64, of up to BLOCK_BYTES bytes,
    "new": true to replace an older file of that name; optional
"""

import base64
import contextlib
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import write_error

BLOCK_BYTES = 1 << 20
# Label maps compress well at any level, and image voxels hardly gain from a higher one.
_LEVEL = 1
_FILE = re.compile(r"\w[\w-]*(\.[\w-]+)*(/\w[\w-]*(\.[\w-]+)*)*", re.ASCII)


def block(file: str, offset: int, data: bytes | memoryview) -> dict:
    """The fields of a message that contains part of a file."""
    return {"file": file, "offset": offset, "data": base64.b64encode(zlib.compress(data, _LEVEL)).decode("ascii")}


def write_block(folder: Path, message: dict) -> None:
    """Write a block of a file below a folder.

    Raises:
        UserError: "bad-request" if it is not a block or its path leaves the folder, "engine-folder-gone" if the folder
            was removed, "disk-full" or "cannot-write"; in the last two cases, the file is removed.
    """
    file, offset = message.get("file"), message.get("offset")
    if not isinstance(file, str) or not _FILE.fullmatch(file) or type(offset) is not int or offset < 0:
        raise UserError("bad-request", reason=f"not a block: {file!r} at {offset!r}")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(message["data"], validate=True), BLOCK_BYTES)
        if not unpacker.eof:
            raise ValueError("it is larger than a block, or cut off")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise UserError("bad-request", reason=f"not a block: {file} at {offset}: {error}") from error
    path = folder / file
    try:
        # Never create the folder itself: nothing would ever remove it.
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
        if message.get("new"):
            path.unlink(missing_ok=True)
        with open(path, "r+b" if path.exists() else "xb") as target:
            target.seek(offset)
            target.write(data)
    except FileNotFoundError as error:
        raise UserError("engine-folder-gone") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise write_error(error, path) from error


class BlockWriter:
    """Writes a file on the other side of the pipe, from start to end.

    Args:
        send: sends the fields of a block.
        file: path relative to the other side's session folder.
    """

    def __init__(self, send: Callable[[dict], object], file: str):
        self._send, self._file, self._offset = send, file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Send bytes, in as many blocks as needed."""
        for start in range(0, len(data), BLOCK_BYTES):
            piece = data[start : start + BLOCK_BYTES]
            self._send({**block(self._file, self._offset, piece), "new": self._offset == 0})
            self._offset += len(piece)
        return len(data)


class GrowingFile:
    """Sends the changes of a file from time to time.

    Args:
        path: the file, whose size never changes.
        file: its name on the other side.
    """

    def __init__(self, path: Path, file: str):
        self._path, self._file = path, file
        self._sums: dict[int, int] = {}

    def changes(self) -> Iterator[dict]:
        """The blocks that have changed since the last call."""
        with open(self._path, "rb") as source:
            offset = 0
            while data := source.read(BLOCK_BYTES):
                if self._sums.get(offset) != (value := zlib.crc32(data)):
                    yield block(self._file, offset, data)
                    self._sums[offset] = value
                offset += len(data)
