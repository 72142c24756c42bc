"""Keeping standard input and output to the protocol."""

import os
import sys


def take_standard_streams() -> tuple[int, int]:
    """Take standard input and output away from everybody else.

    What any library prints goes to standard error from now on, and reading standard input finds nothing. The latter is
    more than tidiness: on Windows, a library that looks at standard input while it is loaded (numpy's does) would hang
    behind our reader that waits for a request (https://github.com/numpy/numpy/issues/24290).

    Returns:
        file descriptors of the input and the output, not inherited by other processes.
    """
    requests, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return requests, events


def lead_process_group() -> None:
    """Become the leader of a process group where there are such, so that the client can end all of it at once."""
    if hasattr(os, "setsid") and not os.isatty(0) and os.getpgrp() != os.getpid():
        os.setsid()
