"""What comes of a run: its figures, and its model in ConRes Segmentation."""

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from ConResSegmentationLib import Messages, Models
from ConResSegmentationLib.EnginePanel import say

from .Backend import Backend, BackendTask
from .JobPanel import JobPanel

_SEGMENTATION_MODULE = "ConResSegmentation"


class ResultsPanel:
    """The widgets of the results.

    Args:
        ui: the module's widgets by name.
        backend: where they are made.
        jobPanel: says which run.
        log: called with what the backend prints, line by line.
    """

    def __init__(self, ui, backend: Backend, jobPanel: JobPanel, log: Callable[[str], None]):
        self._ui, self._backend, self._jobPanel = ui, backend, jobPanel
        self._lastRun: Path | None = None
        ui.checkpointSelector.addItem(_("The newest"), "last")
        ui.checkpointSelector.addItem(_("The best in validation"), "best")
        self._evaluation = BackendTask(ui.evaluateButton, ui.resultsStatusLabel, self._evaluate, log)
        self._export = BackendTask(ui.importButton, ui.resultsStatusLabel, self._onImport, log)
        ui.openEvaluationButton.connect("clicked(bool)", self._onOpenReport)
        ui.checkpointSelector.connect("currentIndexChanged(int)", self.updateButtons)

    def updateButtons(self, _index: int = 0) -> None:
        """Allow what can be done, and say on the buttons why the rest cannot."""
        problem = self._problem()
        for button, task, other, tip in (
            (
                self._ui.evaluateButton,
                self._evaluation,
                self._export,
                _("Segment the cases that the run never saw, and measure how well."),
            ),
            (
                self._ui.importButton,
                self._export,
                self._evaluation,
                _("Pack the network as a model, and install it for ConRes Segmentation."),
            ),
        ):
            busy = _("Wait for the other command to end.") if other.isRunning else ""
            button.enabled = task.isRunning or not (problem or busy)
            button.toolTip = problem or busy or tip
        self._ui.openEvaluationButton.enabled = self._report is not None and self._report.is_file()

    def runChanged(self) -> None:
        """Another run was chosen, or it has come on."""
        isOther, self._lastRun = self._run != self._lastRun, self._run
        if isOther and not self._evaluation.isRunning and not self._export.isRunning:
            say(self._ui.resultsStatusLabel, "")
        self.updateButtons()

    def close(self) -> None:
        """The panel goes."""
        self._evaluation.stop()
        self._export.stop()

    @property
    def _run(self) -> Path | None:
        return self._jobPanel.job.folder if self._jobPanel.job else None

    @property
    def _checkpoint(self) -> str:
        return self._ui.checkpointSelector.currentData

    @property
    def _report(self) -> Path | None:
        return self._run / "evaluation" / "report.html" if self._run else None

    def _problem(self) -> str:
        if self._run is None or not (self._run / "checkpoints" / f"{self._checkpoint}.ckpt").is_file():
            return _("The run has no checkpoint yet.")
        return self._backend.problem

    def _evaluate(self) -> None:
        arguments = ("evaluate", str(self._run), "--checkpoint", self._checkpoint)
        text = _("Segmenting and measuring the held-out cases")
        self._evaluation.run(lambda: self._backend.launch(*arguments), text, self._onEvaluated)
        self.updateButtons()

    def _onEvaluated(self, _output: str) -> None:
        self.updateButtons()
        self._onOpenReport()

    def _onOpenReport(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._report)))

    def _onImport(self) -> None:
        # In the run's folder, which the other side of a command reaches too.
        package = self._run / "model.zip"
        options = ("--output", str(package), "--checkpoint", self._checkpoint, "--overwrite")
        arguments = ("export", str(self._run), *options)
        text = _("Packing the model and measuring it on the held-out cases")
        self._export.run(lambda: self._backend.launch(*arguments), text, lambda _output: self._install(package))
        self.updateButtons()

    def _install(self, package: Path) -> None:
        self.updateButtons()
        try:
            name = Models.installAsking(str(package))
        except UserError as error:
            say(self._ui.resultsStatusLabel, Messages.sentence(error), isError=True)
            return
        if not name:
            say(
                self._ui.resultsStatusLabel,
                _("The model was packed as {path}, and not installed.").format(path=package),
            )
            return
        widget = _segmentationWidget()
        widget.modelPanel.refresh()
        choices = widget.logic.getParameterNode()
        choices.model, choices.channels = name, []
        say(
            self._ui.resultsStatusLabel,
            _("The model {name} is installed, and chosen in ConRes Segmentation.").format(name=name),
        )
        question = _("The model {name} is installed, and chosen in ConRes Segmentation. Go there now?")
        if slicer.util.confirmYesNoDisplay(question.format(name=name)):
            slicer.util.selectModule(_SEGMENTATION_MODULE)


def _segmentationWidget():
    """The other module's panel, which is built when it was not opened yet."""
    return slicer.app.moduleManager().module(_SEGMENTATION_MODULE).widgetRepresentation().self()
