"""The buttons that start and stop, the progress, the sentence that says how it went, and the log."""

import time

import slicer
from slicer.i18n import tr as _

from .StatusLabel import say


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
