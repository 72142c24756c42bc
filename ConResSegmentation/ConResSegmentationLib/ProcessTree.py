"""Ending a process at once together with those that it has started."""

import contextlib
import os
import signal
import subprocess


def killTree(pid: int) -> None:
    """Kill a process and what it has started; one that has gone already is no error.

    On Linux and macOS what it has started is found where it leads a process group, also when it is gone itself.
    """
    with contextlib.suppress(OSError):
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], creationflags=subprocess.CREATE_NO_WINDOW)
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It shares the group of another, such as a shell, which is not ours to kill.
            os.kill(pid, signal.SIGKILL)
