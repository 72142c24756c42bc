"""How a program is started beside Slicer: its words, and the environment variables that suit it."""

import os
from dataclasses import dataclass

import qt
import slicer


@dataclass(frozen=True)
class ProcessLaunch:
    """A program, its arguments, and its whole environment."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def start(self, process: qt.QProcess) -> None:
        """Start it as ``process``."""
        environment = qt.QProcessEnvironment()
        for name, value in self.environment.items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        process.start(self.program, list(self.arguments))


def variablesOfPython(isSlicers: bool) -> dict[str, str]:
    """The environment variables that a Python starts with; a copy, to be added to.

    Args:
        isSlicers: whether it is Slicer's own, which finds its standard library by Slicer's variables alone. Another one
            would load Slicer's libraries instead of its own by them, and crash.
    """
    return dict(os.environ) if isSlicers else slicer.util.startupEnvironment()
