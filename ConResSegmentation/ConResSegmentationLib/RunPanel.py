"""The buttons that start and stop, the progress, the sentence that says how it went, and the log.

Starting, following and stopping a segmentation from the panel.
"""

import logging
import time
import traceback
from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Messages
from .EnginePanel import EnginePanel, say
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationRun, SegmentationTask


class RunPanel:
    """The widgets of a run.

    Args:
        ui: the module's widgets by name.
    """

    def __init__(self, ui):
        self._ui = ui
        self._problem = ""
        self._isRunning = False

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation is under way."""
        return self._isRunning

    @property
    def log(self) -> str:
        """All that was logged."""
        return self._ui.logTextEdit.toPlainText()

    def setProblem(self, problem: str) -> None:
        """Allow Segment, or say on it why it cannot start."""
        self._problem = problem
        self._updateButtons()

    def begin(self, text: str) -> None:
        """A segmentation starts."""
        self._isRunning = True
        self._updateButtons()
        self._ui.progressBar.visible = True
        self.addToLog(text)
        self.progress(text, 0.0)

    def progress(self, text: str, fraction: float) -> None:
        """It has come to ``fraction``, 0 to 1."""
        self._ui.progressBar.value = round(1000 * fraction)
        say(self._ui.statusLabel, text)

    def end(self, text: str, isError: bool = False) -> None:
        """It is over; the sentence stays, also in the status bar and the log."""
        self._isRunning = False
        self._updateButtons()
        self._ui.progressBar.visible = False
        say(self._ui.statusLabel, text, isError)
        self.addToLog(text)
        slicer.util.showStatusMessage(text, 5000)

    def clear(self) -> None:
        """Forget the last sentence: what it speaks of is gone."""
        say(self._ui.statusLabel, "")

    def addToLog(self, text: str) -> None:
        """Add a line, or several, to the log."""
        self._ui.logTextEdit.appendPlainText(f"{time.strftime('%H:%M:%S')} {text}")

    def _updateButtons(self) -> None:
        self._ui.applyButton.enabled = not self._isRunning and not self._problem
        self._ui.applyButton.toolTip = (
            _("A segmentation is under way.") if self._isRunning else self._problem or _("Segment the chosen volumes.")
        )
        self._ui.cancelButton.enabled = self._isRunning


class RunControl(RunListener):
    """What the buttons Segment and Cancel do.

    Args:
        ui: the module's widgets by name.
        runPanel: shows how it goes.
        enginePanel: knows whether the engine can run.
        task: returns what to segment, as chosen in the panel.
        segment: starts it, and has a listener hear of it.
        onFinished: called when a result is in the scene.
    """

    def __init__(
        self,
        ui,
        runPanel: RunPanel,
        enginePanel: EnginePanel,
        task: Callable[[], SegmentationTask],
        segment: Callable[[SegmentationTask, RunListener], SegmentationRun],
        onFinished: Callable[[SegmentationOutcome], None],
    ):
        self._ui, self._panel, self._enginePanel = ui, runPanel, enginePanel
        self._task, self._segment, self._onFinished = task, segment, onFinished
        self._run: SegmentationRun | None = None
        ui.applyButton.connect("clicked(bool)", lambda _checked: self.start())
        ui.cancelButton.connect("clicked(bool)", lambda _checked: self.cancel())

    def start(self) -> None:
        """Segment, once the engine's Python is known to have what it needs."""
        self._panel.begin(_("Looking for the engine"))
        try:
            # As chosen at the click: until the engine's Python is known, or installed, the choices may change.
            task = self._task()
            self._enginePanel.whenReady(lambda: self._ask(task), self._refuse)
        except Exception:
            self._enginePanel.stopWaiting()
            self._onNotStarted()

    def cancel(self) -> None:
        """Stop what runs, or what is about to."""
        self._enginePanel.stopWaiting()
        if self._run:
            self._run.cancel()
        elif self._panel.isRunning:
            self.onCancelled()

    def _ask(self, task: SegmentationTask) -> None:
        try:
            self._run = self._segment(task, self)
        except UserError as error:
            self.onFailed(Messages.sentence(error), "")
        except Exception:
            self._onNotStarted()

    def _onNotStarted(self) -> None:
        self.onFailed(_("The segmentation could not be started; see the log."), traceback.format_exc())

    def _refuse(self, problem: str) -> None:
        self._ui.advancedCollapsibleButton.collapsed = False
        self.onFailed(problem, "")

    def onProgress(self, text: str, fraction: float) -> None:
        self._panel.progress(text, fraction)

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        self._run = None
        self._onFinished(outcome)
        self._panel.end(" ".join([Messages.finished(outcome.report, outcome.seconds), *outcome.notes]))
        self._panel.addToLog(Messages.logOf(outcome.report))

    def onFailed(self, sentence: str, details: str) -> None:
        self._run = None
        self._panel.end(sentence, isError=True)
        if details:
            self._panel.addToLog(details)
            logging.error("%s\n%s", sentence, details)

    def onCancelled(self) -> None:
        self._run = None
        self._panel.end(_("Cancelled."))
