"""What a report of a fault in training should hold, and what it must not: the names of cases, who may be patients."""

import platform

import slicer

from conresnet import __version__
from conresnet_training.data_sets import DataSet
from ConResSegmentationLib.Diagnostics import withoutNames

from .Backend import Backend
from .TrainingJob import TrainingJob


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
