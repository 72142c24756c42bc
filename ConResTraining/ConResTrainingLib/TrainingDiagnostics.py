"""What the module remembers from one start of Slicer to the next.

Folders, Pythons and runs are those of this computer and outlive every scene: they are kept in the application's
settings, not in a parameter node, which another computer would load with the scene.

What a report of a fault in training should hold, and what it must not: the names of cases, who may be patients.
"""

import json
import platform
from pathlib import Path

import slicer

from conresnet import __version__
from conresnet_training.data import DataSet
from ConResSegmentationLib.Diagnostics import withoutNames

from .Backend import Backend
from .TrainingJob import TrainingJob

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


def report(backend: Backend, job: TrainingJob | None, dataSet: DataSet | None, log: str) -> str:
    """A text for a fault report, with the names of the cases and the user's home folder replaced."""
    app = slicer.app
    lines = [
        f"Slicer {app.applicationVersion} (revision {app.revision}) on {platform.platform()}",
        f"ConResNet {__version__}",
        f"Place: {backend.place.value} {backend.command} {backend.python}".rstrip(),
    ]
    if backend.problem:
        lines.append(f"Problem: {backend.problem}")
    if dataSet:
        layout = f"{dataSet.layout}, {len(dataSet.cases)} cases, channels {', '.join(dataSet.channels)}"
        lines.append(f"Data set: {layout}, labels {', '.join(dataSet.labels.values())}")
    if job:
        lines.append(f"Run: {job.state.value}, step {job.progress.step} of {job.progress.steps}")
        started = job.progress.started or {}
        kept = ("version", "device", "devices", "precision", "host", "fold")
        lines += [f"  {key}: {started[key]}" for key in kept if key in started]
        if job.problem:
            lines.append(f"  {job.problem}")
    lines += ["", "Log:", log]
    return withoutNames("\n".join(lines), [case.name for case in dataSet.cases] if dataSet else [])
