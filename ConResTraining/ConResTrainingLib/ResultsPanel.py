"""The section Results: evaluating a run, and importing its model into ConRes Segmentation."""

import os
from collections.abc import Callable
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from ConResSegmentationLib import Messages
from ConResSegmentationLib.Widgets import openFile, plain, say

from .Backend import Backend, BackendTask
from .JobPanel import JobPanel

_SEGMENTATION_MODULE = "ConResSegmentation"
# Some cases could not be measured; the others were, and are in the report.
_EXIT_WITH_FAILED_CASES = 2


class ResultsPanel:
    """The widgets of the results.

    Args:
        section: the collapsible button that contains the widgets.
        backend: where they are computed.
        jobPanel: the chosen run.
        log: called with each line that the backend prints.
    """

    def __init__(self, section, backend: Backend, jobPanel: JobPanel, log: Callable[[str], None]):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._jobPanel = backend, jobPanel
        self._lastRun: Path | None = None
        ui.checkpointSelector.addItem(_("Latest"), "last")
        ui.checkpointSelector.addItem(_("Best validation Dice"), "best")
        self._evaluation = BackendTask(ui.evaluateButton, ui.resultsStatusLabel, self._evaluate, log)
        self._export = BackendTask(ui.importButton, ui.resultsStatusLabel, self._onImport, log)
        ui.openEvaluationButton.connect("clicked(bool)", self._onOpenReport)
        ui.checkpointSelector.connect("currentIndexChanged(int)", self.updateButtons)

    def updateButtons(self, _index: int = 0) -> None:
        """Enable the buttons, or show on them why they are not available."""
        problem = self._problem()
        for button, task, other, tip in (
            (
                self._ui.evaluateButton,
                self._evaluation,
                self._export,
                _("Segment the held-out cases and measure the quality."),
            ),
            (
                self._ui.importButton,
                self._export,
                self._evaluation,
                _("Pack the network as a model and install it in ConRes Segmentation."),
            ),
        ):
            busy = _("Wait until the other command has ended.") if other.isRunning else ""
            button.enabled = task.isRunning or not (problem or busy)
            button.toolTip = plain(problem or busy or tip)
        self._ui.openEvaluationButton.enabled = self._report is not None and os.path.isfile(self._report)

    def runChanged(self) -> None:
        """Another run was chosen, or it has made progress."""
        isOther, self._lastRun = self._run != self._lastRun, self._run
        if isOther and not self._evaluation.isRunning and not self._export.isRunning:
            say(self._ui.resultsStatusLabel, "")
        self.updateButtons()

    def close(self) -> None:
        """The panel is about to be deleted."""
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
        if self._run is None or not os.path.isfile(self._run / "checkpoints" / f"{self._checkpoint}.ckpt"):
            return _("The run has no checkpoint yet.")
        return self._backend.problem

    def _evaluate(self) -> None:
        # Here the data set is an argument.
        data = self._jobPanel.dataOptions()[1:]
        arguments = ("evaluate", str(self._run), *data, "--checkpoint", self._checkpoint)
        report = self._report
        before = _timeOf(report)
        self._evaluation.run(
            lambda: self._backend.launch(*arguments),
            _("Segmenting and evaluating the held-out cases"),
            lambda _output: self._onEvaluated(report, before),
            doneCodes=(0, _EXIT_WITH_FAILED_CASES),
        )
        self.updateButtons()

    def _onEvaluated(self, report: Path, before: int | None) -> None:
        self.updateButtons()
        # With the same exit code, the command says that it could not start; the report is then an earlier one.
        if _timeOf(report) != before:
            openFile(report, self._ui.resultsStatusLabel)

    def _onOpenReport(self) -> None:
        openFile(self._report, self._ui.resultsStatusLabel)

    def _onImport(self) -> None:
        # In the run's folder, which a remote machine can reach too.
        package = self._run / "model.zip"
        options = ("--output", str(package), "--checkpoint", self._checkpoint, "--overwrite")
        arguments = ("export", str(self._run), *options, *self._jobPanel.dataOptions())
        text = _("Packing the model and evaluating it on the held-out cases")
        self._export.run(lambda: self._backend.launch(*arguments), text, lambda _output: self._install(package))
        self.updateButtons()

    def _install(self, package: Path) -> None:
        self.updateButtons()
        try:
            name = slicer.util.getModuleLogic(_SEGMENTATION_MODULE).install(str(package))
        except UserError as error:
            say(self._ui.resultsStatusLabel, Messages.sentence(error), isError=True)
            return
        if not name:
            say(
                self._ui.resultsStatusLabel,
                _("The model was packed as {path}, but not installed.").format(path=package),
            )
            return
        say(
            self._ui.resultsStatusLabel,
            _("The model {name} is installed and chosen in ConRes Segmentation.").format(name=name),
        )
        question = _("The model {name} is installed and chosen in ConRes Segmentation. Go there now?")
        if slicer.util.confirmYesNoDisplay(question.format(name=name)):
            slicer.util.selectModule(_SEGMENTATION_MODULE)


def _timeOf(file: Path) -> int | None:
    """When a file was changed last, in ns; None if it is missing."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return None
