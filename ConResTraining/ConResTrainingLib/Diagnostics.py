"""Help for diagnosing problems: a bug report without names of cases, and the module's self-test."""

import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import slicer

from conresnet import __version__
from conresnet.errors import UserError
from conresnet_training.data import DataSet, read_data_set
from ConResSegmentationLib.Diagnostics import makeVolume, withoutNames
from ConResSegmentationLib.Processes import ChildProcess

from . import SceneCase, TrainingCurves
from .Backend import Backend
from .PlacePanel import needsInWords
from .PlanPanel import dataOfPlan
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


def checkCaseFromScene() -> None:
    """A volume and a segment become a case of a new data set, which is read back."""
    volume = makeVolume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentId = segmentation.GetSegmentation().AddEmptySegment("Body", "Body")
    mask = (slicer.util.arrayFromVolume(volume) > 130).astype("uint8")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segmentId, volume)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "data set"
        arrays, grid = SceneCase.channelArrays({"T1": volume})
        SceneCase.addCase(folder, "phantom", arrays, SceneCase.segmentMasks(segmentation, volume), grid)
        dataSet = read_data_set(folder)
    assert dataSet.channels == ("T1",) and list(dataSet.labels.values()) == ["Body"], "the data set has changed"


def checkCurves() -> None:
    """Events of a run become charts in Slicer's plot views."""
    from conresnet_training.runs.state import Progress

    progress = Progress()
    progress.add({"event": "started", "step": 0, "steps": 20, "segments": ["Body"]})
    for step in (10, 20):
        progress.add({"event": "step", "step": step, "loss": 1 / step})
        progress.add({"event": "validation", "step": step, "dice": 0.5, "dice_a_segment": {"Body": 0.5}, "best": True})
    TrainingCurves.update("self-test", progress)
    layout = TrainingCurves.show()
    charts = TrainingCurves.charts()
    shown = {viewNode.GetPlotChartNode() for viewNode in TrainingCurves.viewNodes().values()}
    TrainingCurves.hide(layout)
    assert set(charts.values()) <= shown, "the plot views do not show the curves"


def backendProblem(backend: Backend) -> str:
    """Why the backend does not run with these settings, as a sentence; empty if it does."""
    if backend.problem:
        return backend.problem
    ended = []
    process = ChildProcess(backend.launchModule("conresnet_training.cli.needs"), lambda *result: ended.append(result))
    process.start()
    while not ended:
        slicer.app.processEvents()
        time.sleep(0.01)
    return needsInWords(ended[0][1])[0]
