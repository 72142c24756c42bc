"""The most memory that this process has held."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """Bytes of the computer's memory, all that was loaded included. Not on Windows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
