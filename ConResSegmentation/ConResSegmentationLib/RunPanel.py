"""Running from the panel: what the buttons start and cancel, with progress, log, and a first look at the result."""

import logging
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from conresnet.errors import UserError

from .EnginePanel import EnginePanel
from .SceneInputs import linearToWorld, shownSliceNodes
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationRun, SegmentationTask
from .Widgets import errorSentence, hint, notStarted, offer, plain, say, showError

# With more segments, the panel does not list their volumes.
_MOST_VOLUMES = 6
# Along each side of the part of a view that may show the result. More would only find what is too small to see.
_MOST_SAMPLES = 512


class RunPanel(RunListener):
    """The widgets of a run, and what the buttons Segment, Set up the engine and Cancel do.

    Args:
        enginePanel: knows whether the engine can run.
        task: returns what to segment, as chosen in the panel.
        segment: starts it, with a listener.
        onFinished: called when a result is in the scene.
        onIdle: called when a run has ended.

    Attributes:
        isRunning: whether a segmentation, or the engine's setup, is running.
    """

    def __init__(
        self,
        ui,
        enginePanel: EnginePanel,
        task: Callable[[], SegmentationTask],
        segment: Callable[[SegmentationTask, RunListener], SegmentationRun],
        onFinished: Callable[[SegmentationOutcome], None],
        onIdle: Callable[[], None],
    ):
        self._ui, self._enginePanel, self._task, self.segment = ui, enginePanel, task, segment
        self._onFinished, self._onIdle = onFinished, onIdle
        self._problem = self._batchProblem = ""
        self.isRunning = False
        self._run: SegmentationRun | None = None
        self._firstLook: FirstLook | None = None
        # What is to be started once the engine is ready; None if it was only to be set up.
        self._begin: Callable[[], object] | None = None
        self._usesScene = False
        ui.applyButton.connect("clicked(bool)", lambda _checked: self.start())
        ui.cancelButton.connect("clicked(bool)", lambda _checked: self.cancel())
        ui.installEngineButton.connect("clicked(bool)", lambda _checked: self._setUp())

    def setProblem(self, problem: str) -> None:
        """Enable Segment, or show on it why it is not available."""
        self._problem = problem
        self._updateButtons()

    def setBatchProblem(self, problem: str) -> None:
        """The same for the button of the batch."""
        self._batchProblem = problem
        self._updateButtons()

    def isFree(self) -> bool:
        """Whether nothing is running; otherwise, tell the user."""
        if self.isRunning:
            showError(self._busy)
        return not self.isRunning

    def start(self) -> None:
        def prepare() -> Callable[[], SegmentationRun]:
            task, self._firstLook = self._task(), FirstLook()
            return lambda: self.segment(task, self)

        self.launch(prepare)

    def launch(self, prepare: Callable[[], Callable[[], object]], usesScene: bool = True) -> None:
        """Start something, once the engine's Python is known to have the required packages.

        Args:
            prepare: called now, with the choices at the click, which may change until the engine's Python is checked
                or set up. It returns what starts the run, which has a method ``cancel`` and tells this object how far
                it is and when it has ended. It may raise UserError.
            usesScene: whether it ends when the scene is closed.
        """
        self._show(_("Looking for the engine"))
        try:
            self._begin, self._usesScene = prepare(), usesScene
            self._enginePanel.whenReady(self._onReady, self._refuse)
        except UserError as error:
            self._enginePanel.stopWaiting()
            self.onFailed(errorSentence(error), "")
        except Exception:
            self._enginePanel.stopWaiting()
            self._onNotStarted()

    def cancel(self) -> None:
        """Stop the current run, or one that is about to start."""
        self._enginePanel.stopWaiting()
        if self._run:
            self._run.cancel()
        elif self.isRunning:
            self.onCancelled()

    def onSceneClosing(self) -> None:
        """Stop what uses the scene. A download or an installation continues; the user has waited for it."""
        if self._usesScene and self._enginePanel.isInstalling:
            self._begin, self._usesScene = None, False
        elif self._usesScene:
            self.cancel()
        if not self.isRunning:
            # What the last sentences name no longer exists.
            say(self._ui.statusLabel, "")
            hint(self._ui.warningsLabel, "")

    def onInstallationLine(self, line: str) -> None:
        """Show what an installation prints."""
        self.log(line)
        if self.isRunning and not self._run:
            self.onProgress(_("Installing: {line}").format(line=line.strip()[:90]), None)

    def log(self, text: str) -> None:
        self._ui.logTextEdit.appendPlainText(f"{time.strftime('%H:%M:%S')} {text}")

    def onProgress(self, text: str, fraction: float | None) -> None:
        """As for `RunListener`; the fraction is None if unknown."""
        self._ui.progressBar.maximum = 0 if fraction is None else 1000
        self._ui.progressBar.value = round(1000 * (fraction or 0))
        say(self._ui.statusLabel, text)

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        self._run = None
        try:
            self._onFinished(outcome)
            if self._firstLook:
                self._firstLook.show(outcome.segmentationNode, outcome.report["volumes_ml"])
        except Exception:
            # The result is already in the scene, so the run must end even if this fails.
            self.log(traceback.format_exc())
            logging.exception("The result could not be shown in the panel")
        # Warnings come first and in a color of their own, lest they be overlooked behind the volumes.
        hint(self._ui.warningsLabel, "\n".join(outcome.notes))
        endWith(self, lambda: _finished(outcome.report, outcome.seconds))
        volumes = _volumes(outcome.report.get("volumes_ml", {}))
        if len(volumes) > _MOST_VOLUMES:
            self._ui.statusLabel.toolTip = plain("\n".join(volumes))
            self.log(", ".join(volumes))
        for line in (*outcome.notes, _logOf(outcome.report)):
            self.log(line)

    def onFailed(self, sentence: str, details: str) -> None:
        self.onEnded(sentence, isError=True)
        if details:
            self.log(details)
            logging.error("%s\n%s", sentence, details)

    def onCancelled(self) -> None:
        self.onEnded(_("Canceled."))

    def onEnded(self, text: str, isError: bool = False) -> None:
        """A run has ended; the sentence stays in the panel, and is added to the status bar and the log."""
        self._run = self._begin = None
        self.isRunning = False
        self._updateButtons()
        self._ui.progressBar.visible = False
        self._ui.progressBar.maximum = 1000
        say(self._ui.statusLabel, text, isError)
        self.log(text)
        slicer.util.showStatusMessage(text, 5000)
        self._onIdle()

    def _show(self, text: str) -> None:
        self.isRunning = True
        self._updateButtons()
        hint(self._ui.warningsLabel, "")
        self._ui.progressBar.visible = True
        self.log(text)
        self.onProgress(text, 0.0)

    @property
    def _busy(self) -> str:
        return _("Wait until the current run has ended, or cancel it.") if self.isRunning else ""

    def _updateButtons(self) -> None:
        busy = self._busy
        offer(self._ui.applyButton, busy or self._problem, _("Segment the chosen volumes (Ctrl+Return)."))
        offer(self._ui.batchButton, busy or self._batchProblem, _("Segment all checked cases, one after another."))
        self._ui.cancelButton.enabled = self.isRunning

    def _setUp(self) -> None:
        """Set up the engine without segmenting."""
        if not self.isRunning:
            self._show(_("Setting up the engine"))
            self._begin, self._usesScene = None, False
            self._enginePanel.whenReady(self._onReady, self._refuse)

    def _onReady(self) -> None:
        if self._begin is None:
            self.onEnded(_("The engine is ready."))
            return
        begin, self._begin = self._begin, None
        try:
            self._run = begin()
        except UserError as error:
            self.onFailed(errorSentence(error), "")
        except Exception:
            self._onNotStarted()

    def _onNotStarted(self) -> None:
        self.onFailed(notStarted(), traceback.format_exc())

    def _refuse(self, problem: str) -> None:
        self._enginePanel.unfold()
        self.onFailed(problem, "")


def notInstalled(model: str) -> str:
    """What a run ends with if a model was not installed: a message box has said why, or the user has declined."""
    return _("{model} was not installed.").format(model=model)


def endWith(control, finish: Callable[[], str]) -> None:
    """End a run with the sentence that a function returns, or with its error if it fails.

    Args:
        control: what shows the run; it has the methods ``onEnded`` and ``log`` of `RunPanel`.
    """
    try:
        text, isError = finish(), False
    except UserError as error:
        text, isError = errorSentence(error), True
    except Exception:
        control.log(traceback.format_exc())
        logging.exception("The end of a run failed")
        text, isError = _("The last step failed; see the log."), True
    control.onEnded(text, isError)


def _finished(report: dict, seconds: float) -> str:
    """The time taken, the volume of each whole segment (even where others cover it), and changes by post-processing.

    With many segments, only their number; their volumes are in the tooltip.
    """
    volumes = _volumes(report.get("volumes_ml", {}))
    if len(volumes) > _MOST_VOLUMES:
        found = sum(size > 0 for size in report["volumes_ml"].values())
        text = _("{found} of {count} segments found (their volumes are in the tooltip and in the log)")
        volumes = [text.format(found=found, count=len(volumes))]
    done = (
        _("Done in {seconds:.1f} s (fast): {volumes}.")
        if report.get("fast")
        else _("Done in {seconds:.1f} s: {volumes}.")
    )
    changes = _changes(report.get("postprocessing") or {})
    return " ".join([done.format(seconds=seconds, volumes=", ".join(volumes)), *changes])


def _volumes(sizes: dict[str, float]) -> list[str]:
    """Volumes in mL by name, each as text."""
    return [f"{name} {size:.2f} mL" for name, size in sizes.items()]


def _changes(postprocessing: dict) -> Iterator[str]:
    """What post-processing has changed, in sentences."""
    sentences = {"removed_ml": _("Pieces removed: {volumes}."), "filled_ml": _("Holes filled: {volumes}.")}
    for key, template in sentences.items():
        sizes = {name: size for name, size in postprocessing.get(key, {}).items() if size}
        volumes = _volumes(sizes)
        if len(volumes) > _MOST_VOLUMES:
            text = _("{total:.2f} mL in {count} segments")
            volumes = [text.format(total=sum(sizes.values()), count=len(volumes))]
        if volumes:
            yield template.format(volumes=", ".join(volumes))


def _logOf(report: dict) -> str:
    """How a result was computed, for the log."""
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in report.get("seconds", {}).items())
    kept = {key: report[key] for key in ("device", "precision", "windows", "window", "tiling") if key in report}
    return "; ".join([*(f"{key} {value}" for key, value in kept.items()), f"seconds: {seconds}"])


class FirstLook:
    """Records what the slice views show, and which segmentations are in the scene, when the user clicks Segment."""

    def __init__(self):
        self._slices = _slices()
        self._earlier = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}

    def show(self, segmentationNode, volumes: dict[str, float]) -> None:
        """Jump the slices to the largest segment if the result is new and out of view.

        They stay where they are if the user has moved them since the click.

        Args:
            volumes: each segment's volume in mL, by name.
        """
        isNew = segmentationNode.GetID() not in self._earlier
        largest = max(volumes, key=volumes.get, default=None)
        if not isNew or not volumes.get(largest) or not self._slices or self._slices != _slices():
            return
        if _isInView(segmentationNode):
            return
        content = segmentationNode.GetSegmentation()
        place = _middle(segmentationNode, content.GetSegment(content.GetSegmentIdBySegmentName(largest)))
        # The second jump also moves the image within the views, which is only needed if they are zoomed in elsewhere.
        for mode in (slicer.vtkMRMLSliceNode.OffsetJumpSlice, slicer.vtkMRMLSliceNode.CenteredJumpSlice):
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place, mode)
            if _isInView(segmentationNode):
                return


def _slices() -> dict[str, tuple]:
    """The position of each slice view, and the part of the slice that it shows."""
    return {
        node.GetID(): (
            slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist(),
            node.GetXYZOrigin(),
            node.GetFieldOfView(),
        )
        for node in shownSliceNodes()
    }


def _isInView(segmentationNode) -> bool:
    """Whether a slice view shows a voxel of any segment."""
    content = segmentationNode.GetSegmentation()
    segments = map(content.GetSegment, content.GetSegmentIDs())
    # Segments that do not overlap share a labelmap.
    images = {id(image): image for image in map(_labelmap, segments) if image.GetNumberOfPoints() > 0}
    return any(
        _showsLabel(node, _voxels(image), _voxelToWorld(segmentationNode, image))
        for image in images.values()
        for node in shownSliceNodes()
    )


def _showsLabel(sliceNode, labels: np.ndarray, toWorld: np.ndarray) -> bool:
    """Whether a slice view shows a nonzero voxel of an array [k, j, i]; ``toWorld`` is (4, 4), from i, j and k."""
    toView = np.linalg.inv(slicer.util.arrayFromVTKMatrix(sliceNode.GetXYToRAS())) @ toWorld
    size = np.array(labels.shape[::-1])
    corners = np.array(np.meshgrid(*((-0.5, end - 0.5) for end in size), [1.0])).reshape(4, -1)
    x, y, z = (toView @ corners)[:3]
    if z.min() > 0 or z.max() < 0:
        return False
    sides = []
    for ends, pixels in zip((x, y), sliceNode.GetDimensions(), strict=False):
        low, high = max(ends.min(), 0.0), min(ends.max(), float(pixels))
        sides.append(np.linspace(low, high, min(int(high - low) + 2, _MOST_SAMPLES)) if low <= high else [])
    columns, rows = np.meshgrid(*sides)
    points = np.stack([columns.ravel(), rows.ravel(), np.zeros(columns.size), np.ones(columns.size)])
    voxels = np.rint(np.linalg.inv(toView) @ points)[:3].astype(int)
    i, j, k = voxels[:, ((voxels >= 0) & (voxels < size[:, None])).all(axis=0)]
    return bool(labels[k, j, i].any())


def _middle(segmentationNode, segment) -> np.ndarray:
    """(3,) A voxel of a segment, in RAS mm: near its middle, in the slice that has most of it."""
    image = _labelmap(segment)
    mask = _voxels(image) == segment.GetLabelValue()
    k = np.argmax(mask.sum(axis=(1, 2)))
    # Of one slice only, because places take many times the memory of voxels.
    places = np.argwhere(mask[k])
    j, i = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    return (_voxelToWorld(segmentationNode, image) @ [i, j, k, 1])[:3]


def _labelmap(segment):
    return segment.GetRepresentation(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName())


def _voxels(image) -> np.ndarray:
    """[k, j, i] A view of a labelmap, from the first voxel of its extent."""
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def _voxelToWorld(segmentationNode, image) -> np.ndarray:
    """(4, 4) From an index into `_voxels` to RAS mm."""
    toWorld, shift = vtk.vtkMatrix4x4(), np.eye(4)
    image.GetImageToWorldMatrix(toWorld)
    shift[:3, 3] = image.GetExtent()[::2]
    return linearToWorld(segmentationNode) @ slicer.util.arrayFromVTKMatrix(toWorld) @ shift
