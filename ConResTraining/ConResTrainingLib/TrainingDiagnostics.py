"""The text of a bug report on training, without the names of cases, which may identify a patient."""

import platform
from collections.abc import Iterable

import slicer

from conresnet import __version__
from conresnet.errors import UserError
from conresnet_training.data import DataSet, read_data_set
from ConResSegmentationLib.Diagnostics import withoutNames

from .Backend import Backend
from .PlanText import dataOfPlan
from .TrainingJob import TrainingJob


def report(backend: Backend, job: TrainingJob | None, dataSet: DataSet | None, log: str, names: Iterable[str]) -> str:
    """The text of a bug report, with the names of cases and the user's home folder replaced.

    Args:
        backend: where training runs.
        job: the chosen run.
        dataSet: the chosen data set.
        log: the panel's log.
        names: of all cases seen in this session.
    """
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
    return withoutNames("\n".join(lines), sorted({*names, *_namesInRun(job)}))


def _namesInRun(job: TrainingJob | None) -> list[str]:
    """The cases of a run that was started in an earlier session, whose log the panel shows again."""
    if job is None:
        return []
    try:
        plan = job.planFile
        data = dataOfPlan(plan.read_text(encoding="utf-8"))
        return [case.name for case in read_data_set(plan.parent / data).cases] if data else []
    except (OSError, ValueError, UserError):
        return []
