"""Keeping the memory of large tensors for the next one instead of fetching it from the system every time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt, malloc.h
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM = 128 * 1024


@contextmanager
def reused_memory() -> Iterator[None]:
    """While it lasts, memory that is freed stays with the process.

    glibc gives every block over 32 MB back to the system as it is freed, so that each operation on a large tensor
    pays for fresh pages. Afterwards its own ways are back and what is free is returned. Elsewhere than on glibc
    nothing happens.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
