"""Help for diagnosing problems: a bug report without names of images, and the module's self-test."""

import logging
import os
import platform
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from conresnet.package.reader import read_package
from conresnet.package.store import list_models
from conresnet.request import SegmentOptions

from . import ResultOrigin, ResultParts
from .SegmentationRun import SegmentationTask

# The window of this model is about as large as the test volume.
_MODEL = "hippocampus"
# An absolute path. Its folders may have spaces in their names.
_PATH = re.compile(r"""(?<![\w.~:\\/])((?:[A-Za-z]:|~|\\)?[\\/]+(?:[^\\/:"“”\n]+[\\/]+)+)([^\\/:"“”'\s]*)""")


def report(engine, model: str, choices: dict[str, object], log: str, names: Iterable[str]) -> str:
    """The text of a bug report. Names of nodes and folders, which may identify a patient, are replaced.

    Args:
        model: name and version of the model.
        choices: the settings of the panel by name.
        names: names of what was segmented earlier, in addition to the nodes of the scene.
    """
    lines = [
        slicerVersion(),
        f"Model: {model}",
        *(f"{name}: {value}" for name, value in choices.items()),
        "",
        engine.diagnostics(),
        "Log of the module:",
        log,
    ]
    nodes = [*_nodes("vtkMRMLStorableNode"), *_nodes("vtkMRMLTransformNode")]
    text = withoutNames("\n".join(lines), [*(node.GetName() for node in nodes), *sorted(names)])
    return "\n".join(line if line.startswith("Engine: ") else withoutFolders(line) for line in text.split("\n"))


def slicerVersion() -> str:
    """The first line of a bug report."""
    app = slicer.app
    return f"Slicer {app.applicationVersion} (revision {app.revision}) on {platform.platform()}"


def copyReport(text: str) -> None:
    """Copy a bug report to the clipboard, and say so."""
    slicer.app.clipboard().setText(text)
    slicer.util.showStatusMessage(_("The diagnostics were copied to the clipboard."), 3000)


def notTested(test: ScriptedLoadableModuleTest, what: str, problem: str) -> None:
    """Say in a self-test and in the log that this Slicer cannot run a part of it."""
    logging.warning("NOT TESTED: %s. %s", what, problem)
    test.delayDisplay(f"Not tested: {what}. {problem}", 3000)


def withoutFolders(text: str) -> str:
    """The text with the folders of absolute paths replaced, except those of Python and of this module."""
    ours = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])]
    ours += [path.replace(os.path.expanduser("~"), "~") for path in ours]

    def reduced(match) -> str:
        folder, name = match.groups()
        if folder.startswith(tuple(ours)):
            return match.group()
        # What has no extension may be a folder, too.
        return f"<folder>/{name}" if re.search(r"\.\w", name) else "<folder>"

    return _PATH.sub(reduced, text)


def withoutNames(text: str, privateNames: list[str]) -> str:
    """The text with the given names and the user's home folder replaced."""
    # A name of one or two letters identifies nobody, and replacing it would make the text unreadable.
    names = [name for name in dict.fromkeys(privateNames) if len(name or "") > 2]
    named = sorted(enumerate(names, start=1), key=lambda item: -len(item[1]))
    for number, name in named:
        text = text.replace(name, f"<image {number}>")
    return text.replace(os.path.expanduser("~"), "~")


def _nodes(className: str) -> list:
    return [node for node in slicer.util.getNodesByClass(className) if not node.GetHideFromEditors()]


class SelfTest(ScriptedLoadableModuleTest):
    """The self-test, with a synthetic image and the shipped models. A subclass names the module's Logic."""

    Logic = None

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests, and report those that this Slicer cannot run."""
        self.setUp()
        self.test_shippedModels()
        self.setUp()
        self.test_segmentation()

    def test_shippedModels(self) -> None:
        self.delayDisplay("Looking for models")
        checkModels()

    def test_segmentation(self) -> None:
        """A volume becomes segments and maps, and edited results are kept."""
        logic = self.Logic()
        problem = engineProblem(logic.enginePython)
        if problem:
            notTested(self, "segmentation", problem)
            return
        self.delayDisplay("Segmenting")
        try:
            checkSegmentation(logic, checkModels())
        finally:
            logic.engine.stop(wait=True)
        self.delayDisplay("Test passed")


def makeVolume():
    """A synthetic volume of 1 mm voxels with a bright body in noise, away from the origin."""
    shape = (40, 48, 36)
    noise = np.random.default_rng(0).normal(100, 10, shape)
    k, j, i = np.indices(shape)
    center = (np.array(shape) - 1) / 2
    inside = ((k - center[0]) / 8) ** 2 + ((j - center[1]) / 16) ** 2 + ((i - center[2]) / 7) ** 2 < 1
    ijkToRas = np.array([[-1, 0, 0, 20], [0, -1, 0, -30], [0, 0, 1, 10], [0, 0, 0, 1]], dtype=float)
    return slicer.util.addVolumeFromArray((noise + 60 * inside).astype(np.int16), ijkToRas, "T1 phantom")


def checkModels() -> str:
    """Check that the shipped models are complete; returns the path of the one to segment with."""
    shipped = {entry.name: entry.path for entry in list_models() if entry.kind == "shipped"}
    assert _MODEL in shipped, f"the model {_MODEL} is not shipped"
    for path in shipped.values():
        read_package(path)
    return str(shipped[_MODEL])


def engineProblem(enginePython) -> str:
    """Why the engine cannot run here, as a sentence; empty if it can."""
    answers = []
    enginePython.check(answers.append)
    while not answers:
        slicer.app.processEvents()
        time.sleep(0.01)
    return answers[0].problem


def checkSegmentation(logic, model: str) -> None:
    """Segment a volume and check that segments and maps are on its grid and under its transform."""
    volume = makeVolume()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    task = SegmentationTask(model, (volume,), options=SegmentOptions(maps=("residual", "attention")))
    outcome = logic.segmentAndWait(task)
    node = outcome.segmentationNode
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() > 0, "no segments"
    assert node.GetParentTransformNode() is transform, "the result is not under the input's transform"
    assert ResultOrigin.isUntouched(node), "a new result counts as edited"
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        assert segment.GetName() and not segment.GetNameAutoGenerated(), "a segment has no name"
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(number), volume)
        assert array.shape == slicer.util.arrayFromVolume(volume).shape, "a segment is not on the input's grid"
    kinds = {mapNode.GetAttribute(ResultParts.MAP_ATTRIBUTE) for mapNode in outcome.mapNodes}
    assert kinds == {"residual", "attention"}, f"the maps are {kinds}"
    again = logic.segmentAndWait(SegmentationTask(model, (volume,), segmentationNode=node))
    assert again.segmentationNode is node, "an unedited result was not replaced"
    segmentation.GetNthSegment(0).SetName("edited")
    kept = logic.segmentAndWait(SegmentationTask(model, (volume,), segmentationNode=node))
    assert kept.segmentationNode is not node, "an edited result was overwritten"
    logging.info("Self-test: segmented with %s", outcome.report.get("device", "the engine"))
