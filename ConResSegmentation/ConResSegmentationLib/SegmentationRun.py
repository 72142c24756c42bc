"""One segmentation: from the scene to the engine and back into the scene."""

import logging
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.images import Grid
from conresnet.images.inputs import BoxROI
from conresnet.package import ModelDescription
from conresnet.package.outputs import residual_plane
from conresnet.package.reader import read_package
from conresnet.package.store import digest_with_locator
from conresnet.request import SegmentOptions, SegmentRequest

from . import ResultOrigin, ResultParts, ResultSegmentation, Review, SceneInputs
from .EngineProcess import EngineError, EngineObserver, EngineProcess, EngineResult
from .Processes import callLater
from .ResultSegmentation import ResultPreview
from .Widgets import errorSentence, nameOf, timeLeft


@dataclass(frozen=True)
class SegmentationTask:
    """What to segment and how.

    Args:
        model: folder or .zip file of the model package.
        volumeNodes: one volume per input of the model, in its order.
        roi: where to segment, such as `SceneInputs.roiInput` of an ROI node. Defaults to the whole image.
        segmentationNode: where the result goes. Defaults to a new node.
        options: what the engine is asked for, without the ROI, which is ``roi``.
        show3D: whether to create surfaces and show them.
        smoothing: of surfaces, 0 to 1. Defaults to what the segmentation has.
        digest: `digest_with_locator` of the model that the user has chosen, which may be replaced before the task is
            started. Defaults to any.
    """

    model: str
    volumeNodes: tuple
    roi: BoxROI | None = None
    segmentationNode: object = None
    options: SegmentOptions = field(default_factory=SegmentOptions)
    show3D: bool = True
    smoothing: float | None = None
    digest: str | None = None


@dataclass(frozen=True)
class SegmentationOutcome:
    """What a finished segmentation has added to the scene.

    Args:
        mapNodes: the maps, in the engine's order.
        report: the engine's report: seconds by phase, device, precision, volumes in mL.
        seconds: how long the user waited, including the start of the engine and loading the model.
        notes: sentences for the user: the engine's warnings, and why the result is not in the chosen segmentation.
    """

    segmentationNode: object
    mapNodes: list
    report: dict
    seconds: float
    notes: list[str] = field(default_factory=list)


class RunListener:
    """Receives the events of a run; the last call is exactly one of onFinished, onFailed and onCancelled.

    Segments appear first, then maps and surfaces one after another; the result is complete with ``onFinished``.
    """

    def onProgress(self, text: str, fraction: float) -> None:
        """``fraction`` of the work is done, 0 to 1; the text names the current step and the time remaining."""

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        """The result is in the scene; if the run was canceled late, some maps or surfaces may be missing."""

    def onFailed(self, sentence: str, details: str) -> None:
        """The scene is unchanged. The sentence is for the user, the details are for the log."""

    def onCancelled(self) -> None:
        """The scene is unchanged."""


class SegmentationRun(EngineObserver):
    """Sends a task to the engine and puts its result into the scene.

    Raises:
        UserError: if the inputs cannot be segmented; nothing is started then.
    """

    def __init__(self, task: SegmentationTask, engine: EngineProcess, listener: RunListener):
        self._began = time.monotonic()
        self._task, self._engine, self._listener = task, engine, listener
        package = read_package(task.model, verify=False)
        self._description, digest = package.description, digest_with_locator(package)
        if task.digest not in (None, digest):
            raise UserError("model-changed", model=self._description.title)
        channels = _channels(task, self._description)
        self._grids = [channel.grid for channel in channels]
        model = f"{self._description.name} {self._description.version}"
        # The checksums follow when the engine has been sent the images: a large one takes a second to read.
        self._origin = ResultOrigin.ResultOrigin(model, task.volumeNodes, (), task.roi)
        self._isOver = False
        self._preview: ResultPreview | None = None
        # The steps that show the result, the segments that were added to the scene and their parts, and the outcome.
        self._work: Generator[None, None, None] | None = None
        self._segments: list[tuple[str, object]] = []
        self._parts: list = []
        self._outcome: SegmentationOutcome | None = None
        # Nodes of a closed scene must not reappear in the next one.
        scene = slicer.mrmlScene
        self._closeTag = scene.AddObserver(scene.StartCloseEvent, lambda caller, event: self.cancel())
        options = replace(task.options, roi=task.roi)
        request = SegmentRequest(str(task.model), tuple(channels), options, digest)
        self._request = engine.segment(request, self)

    def cancel(self) -> None:
        """Cancel; the listener is told at once, however long the engine takes.

        Segments already in the scene stay, without the maps and surfaces that are still missing.
        """
        if self._isOver:
            return
        if self._outcome and not slicer.mrmlScene.IsClosing():
            self._finish()
            return
        self._engine.cancel(self._request)
        self._end()
        self._listener.onCancelled()

    def onStarting(self) -> None:
        if not self._isOver:
            self._listener.onProgress(_("Starting the engine"), 0.0)

    def onSent(self, checksums: tuple[str, ...]) -> None:
        self._origin = replace(self._origin, images=checksums)

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        if not self._isOver:
            text = ", ".join(filter(None, (_phase(phase), timeLeft(secondsLeft))))
            self._listener.onProgress(text, fraction)

    def onArray(self, name: str, array: np.ndarray) -> None:
        if not self._isOver and name == "labels":
            # A locator's places have label values of their own; the first has the model's.
            description = self._description
            output = description.located_output if description.locator else description.output
            self._preview = ResultPreview(array, output.segments, self._task.volumeNodes[0])

    def onError(self, error: EngineError) -> None:
        if not self._isOver:
            self._end()
            self._listener.onFailed(errorSentence(error), error.log)

    def onCancelled(self) -> None:
        if not self._isOver:
            self._end()
            self._listener.onCancelled()

    def onDone(self, result: EngineResult) -> None:
        if not self._isOver:
            self._work = self._show(result)
            self._advance()

    def _advance(self) -> None:
        """Do the next step of showing the result; Slicer handles events between the steps."""
        if self._isOver:
            return
        try:
            self._checkStillShown()
            next(self._work)
        except StopIteration:
            self._finish()
        except UserError as error:
            self._end()
            if self._outcome and not slicer.mrmlScene.IsNodePresent(self._outcome.segmentationNode):
                # The user has removed it; its maps would stay.
                ResultParts.removeResult(self._outcome.segmentationNode, self._parts)
            self._listener.onFailed(errorSentence(error), "")
        except Exception:
            self._end()
            logging.exception("The result could not be shown")
            self._listener.onFailed(
                _("The result could not be added to the scene; see the log."), traceback.format_exc()
            )
        else:
            self._parts = ResultParts.mapsAndParts(self._outcome.segmentationNode) if self._outcome else []
            callLater(self._advance)

    def _readAgain(self) -> Iterator[None]:
        """Compare the voxels with those that were sent to the engine, in short steps."""
        for volumeNode, sent in zip(self._task.volumeNodes, self._origin.images, strict=True):
            self._checkInputs()
            if not slicer.mrmlScene.IsNodePresent(volumeNode):
                continue
            checksum = yield from ResultOrigin.checksumInSteps(volumeNode)
            if checksum != sent:
                raise UserError("volume-changed", name=nameOf(volumeNode))

    def _checkInputs(self) -> np.ndarray:
        """Raise an error if the result would not fit the images any more.

        It fits images that were moved together, for example under a transform: the result moves with them. Only the
        first image has to be in the scene still: the result is shown on it.

        Returns:
            (4, 4) how they were moved, in RAS mm.
        """
        motion = None
        for volumeNode, grid in zip(self._task.volumeNodes, self._grids, strict=True):
            if not slicer.mrmlScene.IsNodePresent(volumeNode):
                if volumeNode is self._task.volumeNodes[0]:
                    raise UserError("volume-removed", name=nameOf(volumeNode))
                continue
            try:
                now = SceneInputs.volumeInput(volumeNode).grid
            except UserError as error:
                # It was emptied, or is under a transform that is not linear.
                raise UserError("volume-changed", name=nameOf(volumeNode)) from error
            if motion is None:
                motion = now.affine @ np.linalg.inv(grid.affine)
            # Voxels of another size would have been segmented differently.
            if not _isRigid(motion) or not now.matches(Grid(grid.shape, motion @ grid.affine)):
                raise UserError("volume-changed", name=nameOf(volumeNode))
        return motion

    def _end(self) -> None:
        self._isOver = True
        if self._work:
            self._work.close()
        self._endPreview()
        slicer.mrmlScene.RemoveObserver(self._closeTag)

    def _finish(self) -> None:
        self._end()
        self._listener.onFinished(replace(self._outcome, seconds=time.monotonic() - self._began))

    def _endPreview(self) -> None:
        if self._preview:
            self._preview.remove()
            self._preview = None

    def _show(self, result: EngineResult) -> Iterator[None]:
        """Show segments, then maps and surfaces, if the images are unchanged since they were sent to the engine.

        Everything that can fail is created before the scene is changed, and new nodes are removed if something still
        fails.
        """
        task, description = self._task, self._description
        volumeNode = task.volumeNodes[0]
        yield from self._readAgain()
        self._listener.onProgress(_("Showing the result"), 1.0)
        output = description.located_output if "located" in result.report else description.output
        segments = ResultSegmentation.makeSegments(
            result.labels, output.segments, volumeNode, result.regions, self._origin.model
        )
        maps = ResultParts.splitMaps(result.maps, [segment.name for segment in output.segments])
        notes = [str(warning) for warning in result.report.get("warnings", [])]
        yield
        self._origin = replace(self._origin, roi=_moved(task.roi, self._checkInputs()))
        node, note = _target(task.segmentationNode, self._origin, description.name)
        notes += [note] if note else []
        isFirst = node.GetSegmentation().GetNumberOfSegments() == 0
        isNew = isFirst and node is not task.segmentationNode
        self._endPreview()
        try:
            ResultSegmentation.fill(node, segments, volumeNode, task.smoothing)
            self._origin.sign(node)
            if isFirst:
                # Later the user's own settings are kept.
                ResultSegmentation.letPartsShowThrough(node, output.segments)
            Review.keep(node, result.report, self._grids[0])
            self._segments, self._outcome = segments, SegmentationOutcome(node, [], result.report, 0.0, notes)
            try:
                yield from ResultParts.putMaps(maps, node, volumeNode, residual_plane(description))
            finally:
                self._outcome.mapNodes[:] = ResultParts.mapNodes(node)
            if task.show3D:
                yield from ResultSegmentation.showSurfaces(node)
        except Exception:
            if isNew:
                ResultParts.removeResult(node)
            raise

    def _checkStillShown(self) -> None:
        """Raise an error if the result was removed or replaced between the steps of `_show`."""
        node = self._outcome and self._outcome.segmentationNode
        if node is None:
            return
        segmentation = node.GetSegmentation()
        isThere = any(segmentation.GetSegment(key) is segment for key, segment in self._segments)
        if not slicer.mrmlScene.IsNodePresent(node) or not isThere:
            raise UserError("result-removed", name=nameOf(node))


def _isRigid(matrix: np.ndarray) -> bool:
    """Whether a (4, 4) matrix only turns and shifts."""
    axes = matrix[:3, :3]
    return np.allclose(axes @ axes.T, np.eye(3), atol=1e-4) and np.linalg.det(axes) > 0


def _moved(roi: BoxROI | None, motion: np.ndarray) -> BoxROI | None:
    """The ROI, moved with the images: it is compared with earlier results, which moved with them, too."""
    # The computed motion of images at rest is not exactly none, and the same ROI must remain the same.
    if roi is None or np.allclose(motion, np.eye(4), atol=1e-6):
        return roi
    return BoxROI((motion @ [*roi.center, 1])[:3], motion[:3, :3] @ roi.axes, roi.size)


def _phase(name: str) -> str:
    return {
        "sending": _("Sending the images"),
        "loading": _("Loading the model"),
        "reading": _("Reading the images"),
        "locating": _("Finding where to segment"),
        "preparing": _("Preparing the images"),
        "segmenting": _("Segmenting"),
        "writing": _("Collecting the result"),
        "receiving": _("Receiving the result"),
    }.get(name, name)


def _channels(task: SegmentationTask, description: ModelDescription) -> list:
    wanted = description.inputs
    if len(task.volumeNodes) != len(wanted) or None in task.volumeNodes:
        names = ", ".join(item.name for item in wanted)
        raise UserError("channels-missing", model=description.title, count=len(wanted), names=names)
    # The engine may start a few seconds after the click.
    for node in task.volumeNodes:
        if not slicer.mrmlScene.IsNodePresent(node):
            raise UserError("input-removed", name=nameOf(node))
    return [SceneInputs.volumeInput(node) for node in task.volumeNodes]


def _target(chosen, origin: ResultOrigin.ResultOrigin, shortName: str) -> tuple[object, str]:
    """The node for the result, and why it is not the chosen one if that may surprise the user.

    It is the chosen one if nothing is lost by that. If the chosen one is a result of another origin, it is an earlier
    result of the same origin as the new one, if there is any. Otherwise it is a new node.
    """
    isThere = chosen is not None and slicer.mrmlScene.IsNodePresent(chosen)
    if isThere and origin.mayReplace(chosen):
        return chosen, ""
    isOtherResult = isThere and ResultOrigin.isUntouched(chosen)
    if isOtherResult:
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if origin.isThatOf(node) and origin.mayReplace(node):
                return node, ""
    name = slicer.mrmlScene.GenerateUniqueName(f"{nameOf(origin.volumeNode)} {shortName}")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    if isThere and origin.isKeptForReview(chosen):
        sentence = _(
            "{kept} was kept because places in its review list were checked off; the result is in the new segmentation "
            "{made}."
        )
        return node, sentence.format(kept=nameOf(chosen), made=name)
    if not isThere or isOtherResult:
        return node, ""
    sentence = _(
        "{kept} was kept unchanged because it was edited or was not created by this module; the result is in the new "
        "segmentation {made}."
    )
    return node, sentence.format(kept=nameOf(chosen), made=name)


class RunWaiter(RunListener):
    """Waits for the end of a run while Slicer stays responsive, for scripts."""

    def __init__(self):
        self._outcome: SegmentationOutcome | None = None
        self._failure: str | None = None

    def wait(self) -> SegmentationOutcome:
        """Wait for the result. Raises RuntimeError with the sentence for the user if it failed or was canceled."""
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
        self._failure = _("Canceled.")
