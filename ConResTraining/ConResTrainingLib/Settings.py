"""What the module remembers from one start of Slicer to the next.

Folders, Pythons and runs are those of this computer and outlive every scene: they are kept in the application's
settings, not in a parameter node, which another computer would load with the scene.
"""

import json
from pathlib import Path

import slicer

_GROUP = "ConResTraining/"
_MOST_RUNS = 12


def value(name: str, default: str = "") -> str:
    """A text that was kept."""
    return slicer.util.settingsValue(_GROUP + name, default)


def setValue(name: str, text: str) -> None:
    """Keep a text."""
    slicer.app.userSettings().setValue(_GROUP + name, text)


def runs() -> list[Path]:
    """The folders of the runs that were started or looked at last, the newest first; those that are gone left out."""
    try:
        kept = json.loads(value("Runs", "[]"))
    except ValueError:
        kept = []
    return [Path(folder) for folder in kept if Path(folder).is_dir()]


def addRun(folder: Path) -> None:
    """Remember a run's folder as the newest."""
    folders = [folder, *(other for other in runs() if other != folder)][:_MOST_RUNS]
    setValue("Runs", json.dumps([str(other) for other in folders]))
