"""One segmentation from the scene through the engine and back into the scene.

Waiting for a segmentation while Slicer stays responsive, for scripts.
"""

import logging
import time
import traceback
from dataclasses import dataclass, field

import numpy as np
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.package import ModelDescription, read_package
from conresnet.request import SegmentOptions, SegmentRequest

from . import MapVolumes, Messages, ResultOrigin, ResultSegmentation, SceneInputs
from .EngineProcess import EngineError, EngineObserver, EngineProcess, EngineResult
from .ResultSegmentation import ResultPreview


@dataclass(frozen=True)
class SegmentationTask:
    """What to segment and how.

    Args:
        model: folder or .zip file of the model package.
        volumeNodes: one an input of the model, in its order.
        roiNode: where. Defaults to the whole image.
        segmentationNode: where the result shall go. Defaults to a new node.
        maps: of "residual", "attention", "probability", "features".
        device: "auto" or a name that the engine lists.
        precision: "auto", "fp32", "bf16" or "fp16".
        show3D: whether to make surfaces and show them.
    """

    model: str
    volumeNodes: tuple
    roiNode: object = None
    segmentationNode: object = None
    maps: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    show3D: bool = True


@dataclass(frozen=True)
class SegmentationOutcome:
    """What a finished segmentation has put into the scene.

    Args:
        segmentationNode: the segments.
        mapNodes: the maps, in the order of the engine's.
        report: of the engine: seconds by phase, device, precision, volumes in mL.
        seconds: from the start of the run, with that of the engine and the model's loading, until the result was here.
        notes: sentences for the user: warnings of the engine, and why a result went elsewhere than chosen.
    """

    segmentationNode: object
    mapNodes: list
    report: dict
    seconds: float
    notes: list[str] = field(default_factory=list)


class RunListener:
    """Hears of a run; exactly one of onFinished, onFailed and onCancelled comes, and it comes last."""

    def onProgress(self, text: str, fraction: float) -> None:
        """The work has come to ``fraction``, 0 to 1; the text says at what it is and how long it will take."""

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        """The result is in the scene."""

    def onFailed(self, sentence: str, details: str) -> None:
        """The scene is as it was; one sentence for the user, and details for the log."""

    def onCancelled(self) -> None:
        """The scene is as it was."""


class SegmentationRun(EngineObserver):
    """Takes a task to the engine and its result to the scene.

    Raises:
        UserError: when the inputs cannot be segmented; nothing has been started then.
    """

    def __init__(self, task: SegmentationTask, engine: EngineProcess, listener: RunListener):
        self._began = time.monotonic()
        self._task, self._engine, self._listener = task, engine, listener
        self._description = read_package(task.model, verify=False).description
        channels = _channels(task, self._description)
        self._grid = channels[0].grid
        region = _region(task)
        self._origin = ResultOrigin.ResultOrigin(
            f"{self._description.name} {self._description.version}",
            task.volumeNodes[0],
            tuple(ResultOrigin.checksum(channel.array) for channel in channels),
            region,
        )
        self._isOver = False
        self._preview: ResultPreview | None = None
        # Nodes of a closed scene must not come to life again in the next.
        scene = slicer.mrmlScene
        self._closeTag = scene.AddObserver(scene.StartCloseEvent, lambda caller, event: self.cancel())
        options = SegmentOptions(roi=region, maps=tuple(task.maps), device=task.device, precision=task.precision)
        self._request = engine.segment(SegmentRequest(str(task.model), tuple(channels), options), self)

    def cancel(self) -> None:
        """Stop; the listener hears of it at once, whatever the engine takes."""
        if not self._isOver:
            self._engine.cancel(self._request)
            self._end()
            self._listener.onCancelled()

    def onStarting(self) -> None:
        if not self._isOver:
            self._listener.onProgress(_("Starting the engine"), 0.0)

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        if not self._isOver:
            text = ", ".join(filter(None, (Messages.phase(phase), Messages.timeLeft(secondsLeft))))
            self._listener.onProgress(text, fraction)

    def onArray(self, name: str, array: np.ndarray) -> None:
        if not self._isOver and name == "labels":
            self._preview = ResultPreview(array, self._description.output.segments, self._task.volumeNodes[0])

    def onError(self, error: EngineError) -> None:
        if not self._isOver:
            self._end()
            self._listener.onFailed(Messages.sentence(error), error.log)

    def onCancelled(self) -> None:
        if not self._isOver:
            self._end()
            self._listener.onCancelled()

    def onDone(self, result: EngineResult) -> None:
        if self._isOver:
            return
        self._end()
        try:
            outcome = self._show(result)
        except UserError as error:
            self._listener.onFailed(Messages.sentence(error), "")
        except Exception:
            logging.exception("The result could not be shown")
            self._listener.onFailed(
                _("The result could not be put into the scene; see the log."), traceback.format_exc()
            )
        else:
            self._listener.onFinished(outcome)

    def _end(self) -> None:
        self._isOver = True
        if self._preview:
            self._preview.remove()
        slicer.mrmlScene.RemoveObserver(self._closeTag)

    def _show(self, result: EngineResult) -> SegmentationOutcome:
        """Everything that can fail is made before the scene is touched, and new nodes go if something still fails."""
        task, description = self._task, self._description
        volumeNode = task.volumeNodes[0]
        self._checkUnchanged(volumeNode)
        segments = ResultSegmentation.makeSegments(
            result.labels, description.output.segments, volumeNode, result.regions
        )
        maps = MapVolumes.split(result.maps, [segment.name for segment in description.output.segments])
        notes = [str(warning) for warning in result.report.get("warnings", [])]
        if not np.any(result.labels):
            notes.append(
                _("The model has found nothing in the region; move it onto the structure, or make it larger.")
                if task.roiNode
                else _("The model has found nothing in this image.")
            )
        node, note = _target(task.segmentationNode, self._origin, description.name)
        notes += [note] if note else []
        isFirst = node.GetSegmentation().GetNumberOfSegments() == 0
        isNew = isFirst and node is not task.segmentationNode
        try:
            ResultSegmentation.fill(node, segments, volumeNode, task.show3D)
            self._origin.sign(node)
            if isFirst:
                # Later the user's own choice stays.
                ResultSegmentation.letPartsShowThrough(node, description.output.segments)
            mapNodes = MapVolumes.put(maps, node, volumeNode)
        except Exception:
            if isNew:
                for made in (*MapVolumes.mapNodes(node), node):
                    slicer.mrmlScene.RemoveNode(made)
            raise
        return SegmentationOutcome(node, mapNodes, result.report, time.monotonic() - self._began, notes)

    def _checkUnchanged(self, volumeNode) -> None:
        if not _isInScene(volumeNode):
            sentence = _(
                "The volume {name} was removed while it was segmented, so there is nothing to lay the result on."
            )
            raise UserError("volume-removed", sentence.format(name=volumeNode.GetName()))
        image = volumeNode.GetImageData()
        if (
            image is None
            or image.GetDimensions()[::-1] != self._grid.shape
            or ResultOrigin.checksum(slicer.util.arrayFromVolume(volumeNode)) != self._origin.images[0]
        ):
            sentence = _("The volume {name} was changed while it was segmented; segment it again.")
            raise UserError("volume-changed", sentence.format(name=volumeNode.GetName()))


def _isInScene(node) -> bool:
    return slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node


def _checkInScene(node) -> None:
    """The engine may start some seconds after the click."""
    if not _isInScene(node):
        sentence = _("{name} was removed before its segmentation began; choose what to segment, and click Segment.")
        raise UserError("input-removed", sentence.format(name=node.GetName()))


def _channels(task: SegmentationTask, description: ModelDescription) -> list:
    wanted = description.inputs
    if len(task.volumeNodes) != len(wanted) or None in task.volumeNodes:
        sentence = _("The model {model} takes {count} volumes: {names}.")
        names = ", ".join(item.name for item in wanted)
        raise UserError("channels-missing", sentence.format(model=description.title, count=len(wanted), names=names))
    for node in task.volumeNodes:
        _checkInScene(node)
    return [SceneInputs.volumeInput(node) for node in task.volumeNodes]


def _region(task: SegmentationTask):
    if task.roiNode is None:
        return None
    _checkInScene(task.roiNode)
    return SceneInputs.regionInput(task.roiNode)


def _target(chosen, origin: ResultOrigin.ResultOrigin, shortName: str) -> tuple[object, str]:
    """The node for the result, and why it is not the chosen one where that surprises.

    It is the chosen one if nothing is lost by it; where that is a result of something else, one of the same origin as
    the new one, which images or models segmented in turn leave behind; else a new one.
    """
    isThere = chosen is not None and _isInScene(chosen)
    if isThere and origin.mayReplace(chosen):
        return chosen, ""
    isOtherResult = isThere and ResultOrigin.isUntouched(chosen)
    if isOtherResult:
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if origin.isThatOf(node) and origin.mayReplace(node):
                return node, ""
    name = slicer.mrmlScene.GenerateUniqueName(f"{origin.volumeNode.GetName()} {shortName}")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    if not isThere or isOtherResult:
        return node, ""
    sentence = _(
        "{kept} was left as it is, since it was edited or not made by this module; the result is the new segmentation "
        "{made}."
    )
    return node, sentence.format(kept=chosen.GetName(), made=name)


class RunWaiter(RunListener):
    """Hears how a run has ended."""

    def __init__(self):
        self._outcome: SegmentationOutcome | None = None
        self._failure: str | None = None

    def wait(self) -> SegmentationOutcome:
        """The result, once it is there.

        Raises:
            RuntimeError: when it has failed or was cancelled; with the sentence for the user.
        """
        while self._outcome is None and self._failure is None:
            slicer.app.processEvents()
            time.sleep(0.01)
        if self._failure is not None:
            raise RuntimeError(self._failure)
        return self._outcome

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        self._outcome = outcome

    def onFailed(self, sentence: str, details: str) -> None:
        self._failure = "\n".join(filter(None, (sentence, details)))

    def onCancelled(self) -> None:
        self._failure = _("Cancelled.")
