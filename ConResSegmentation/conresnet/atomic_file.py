"""Writing a file so that it is either there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from conresnet.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, with its suffixes, that takes its place when the block ends well.

    Raises:
        UserError: "disk-full" or "cannot-write" for any OSError inside; nothing new is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_error(error: OSError, path: str | Path) -> UserError:
    """The sentence for an OSError met while writing ``path``."""
    if error.errno in _FULL:
        return UserError(
            "disk-full", f"There is no room left to write {path}; free some space and try again.", path=str(path)
        )
    reason = error.strerror or str(error)
    return UserError(
        "cannot-write",
        f"{path} cannot be written ({reason}); choose a folder you may write to.",
        path=str(path),
        reason=reason,
    )
