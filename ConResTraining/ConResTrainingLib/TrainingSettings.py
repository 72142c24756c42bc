"""What the module remembers from one start of Slicer to the next.

Folders, Pythons and runs belong to this computer and outlive every scene. They are kept in the application's settings,
not in a parameter node, which would be opened with its scene on another computer.
"""

import json
import os
from pathlib import Path

import slicer

_GROUP = "ConResTraining/"
_MOST_RUNS = 12


def value(name: str, default: str = "") -> str:
    """A stored text."""
    return slicer.util.settingsValue(_GROUP + name, default)


def setValue(name: str, text: str) -> None:
    """Store a text."""
    slicer.app.userSettings().setValue(_GROUP + name, text)


def runs() -> list[Path]:
    """The folders of the most recent runs that still exist, the latest first."""
    try:
        kept = json.loads(value("Runs", "[]"))
    except ValueError:
        kept = []
    return [Path(folder) for folder in kept if os.path.isdir(folder)]


def addRun(folder: Path) -> None:
    """Store a run's folder as the latest."""
    folders = [folder, *(other for other in runs() if other != folder)][:_MOST_RUNS]
    setValue("Runs", json.dumps([str(other) for other in folders]))
