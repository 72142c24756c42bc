"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Peak resident memory in bytes, including loaded libraries. Not available on Windows."""
    if STATUS.exists():
        # The value of resource starts at the peak of the process that started this one.
        return int(STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
