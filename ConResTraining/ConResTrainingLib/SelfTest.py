"""What the module's self-test checks in a user's Slicer, with files made here; it does not train."""

import tempfile
import time
from pathlib import Path

import slicer

from conresnet_training.data import read_data_set
from ConResSegmentationLib.Processes import ChildProcess
from ConResSegmentationLib.SelfTest import makeVolume

from . import SceneCase, TrainingCurves
from .Backend import Backend
from .PlacePanel import needsInWords


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
