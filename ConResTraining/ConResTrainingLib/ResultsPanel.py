"""The section Results: evaluating runs, comparing them, and importing them as a model into ConRes Segmentation."""

import json
import os
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.importing import CHECKPOINT_SUFFIXES
from ConResSegmentationLib.CheckpointImport import CheckpointImport, askForCheckpoint
from ConResSegmentationLib.Widgets import errorSentence, openFile, plain, say, textItem

from .Backend import Backend, BackendTask
from .JobPanel import JobPanel, recentRuns
from .TrainingJob import REPORT_FILE, JobState, jobIn

_SEGMENTATION_MODULE = "ConResSegmentation"
# Some cases could not be measured; the others were, and are in the report.
_EXIT_WITH_FAILED_CASES = 2
_SEGMENT_COLUMN = 1


class ResultsPanel:
    """The widgets of the results. It also receives the progress of importing a checkpoint."""

    def __init__(self, section, backend: Backend, jobPanel: JobPanel):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._jobPanel = backend, jobPanel
        self._lastRun: Path | None = None
        self._listed: list[Path] = []
        ui.checkpointSelector.addItem(_("Latest"), "last")
        ui.checkpointSelector.addItem(_("Best validation Dice"), "best")
        # Importing a checkpoint logs there, too.
        self.log, status = backend.log, ui.resultsStatusLabel
        self._evaluation = BackendTask(
            backend, ui.evaluateButton, status, self._evaluate, self.updateButtons, lambda: self._run
        )
        self._export = BackendTask(
            backend, ui.importButton, status, self._onImport, self.updateButtons, lambda: self._run
        )
        self._comparison = BackendTask(
            backend, ui.compareButton, status, self._compare, self.updateButtons, lambda: (self._run, self.others)
        )
        self._checkpointImport: CheckpointImport | None = None
        self._importText, self._checkpointText = ui.importButton.text, ui.checkpointButton.text
        # The names of the segments get the width that the numbers leave free.
        header = ui.comparisonTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(_SEGMENT_COLUMN, qt.QHeaderView.Stretch)
        ui.otherRunsList.connect("itemChanged(QListWidgetItem*)", self._onOthersChosen)
        ui.checkpointButton.connect("clicked(bool)", self._onCheckpoint)
        ui.openEvaluationButton.connect("clicked(bool)", lambda _checked: openFile(self._report, status))
        ui.checkpointSelector.connect("currentIndexChanged(int)", self.updateButtons)

    def updateButtons(self, _index: int = 0) -> None:
        """Enable the buttons, or show on them why they are not available."""
        others = self.others
        importTip = _("Pack the network as a model and install it in ConRes Segmentation.")
        if self._isOfAllCases:
            importTip = _("Pack the network of this run as a model, with the measurements of the checked runs.")
        elif others:
            importTip = _("Pack the networks of this run and of the checked runs as one model, which averages them.")
        evaluateTip = _("Segment the held-out cases and measure the quality of the result.")
        compareTip = _("Compare both evaluations, case by case. A is this run, B the checked one.")
        for task, problem, tip in (
            (self._evaluation, self._problem() or self._problemOfEvaluation(), evaluateTip),
            (self._export, self._problem(*others) or self._problemOfImport(), importTip),
            (self._comparison, self._problemOfComparison(), compareTip),
        ):
            task.offer(problem or ("" if task.isRunning else self._busy), tip)
        if not self._export.isRunning:
            ensemble = _("Import {count} runs as one ensemble").format(count=1 + len(others))
            self._ui.importButton.text = ensemble if others and not self._isOfAllCases else self._importText
        self._ui.checkpointButton.enabled = bool(self._checkpointImport) or not self._busy
        self._ui.checkpointButton.text = _("Cancel") if self._checkpointImport else self._checkpointText
        self._ui.openEvaluationButton.enabled = self._report is not None and os.path.isfile(self._report)

    def runChanged(self) -> None:
        """Another run was chosen, or it has made progress."""
        isOther, self._lastRun = self._run != self._lastRun, self._run
        if isOther:
            self._ui.comparisonTable.visible = False
        if isOther and not self._busy:
            say(self._ui.resultsStatusLabel, "")
        self._listOthers()
        self.updateButtons()

    def close(self) -> None:
        for task in self._tasks:
            task.stop()
        if self._checkpointImport:
            self._checkpointImport.cancel()

    def install(self, source: str) -> None:
        """Install a model package, or import a checkpoint by the paper's authors, in ConRes Segmentation."""
        if self._busy:
            slicer.util.errorDisplay(self._busy)
        elif not source.casefold().endswith(CHECKPOINT_SUFFIXES):
            self._install(Path(source), _("Canceled."))
        else:
            try:
                self._checkpointImport = _segmentationLogic(source).importCheckpoint(source, None, self)
            except UserError as error:
                self.onEnded(errorSentence(error), isError=True)
            self.updateButtons()

    def onProgress(self, text: str, _fraction: float | None) -> None:
        """Show the current step of an import."""
        say(self._ui.resultsStatusLabel, text)

    def onCancelled(self) -> None:
        self.onEnded(_("Canceled."))

    def onEnded(self, text: str, isError: bool = False) -> None:
        """An import has ended."""
        self._checkpointImport = None
        say(self._ui.resultsStatusLabel, text, isError)
        self.updateButtons()

    @property
    def others(self) -> list[Path]:
        """The runs that are checked in the list."""
        items = [self._ui.otherRunsList.item(number) for number in range(self._ui.otherRunsList.count)]
        return [run for run, item in zip(self._listed, items, strict=True) if item.checkState() == qt.Qt.Checked]

    @property
    def _tasks(self) -> tuple[BackendTask, ...]:
        return self._evaluation, self._export, self._comparison

    @property
    def _busy(self) -> str:
        isBusy = self._checkpointImport or any(task.isRunning for task in self._tasks)
        return _("Wait until the other command has ended.") if isBusy else ""

    @property
    def _run(self) -> Path | None:
        return self._jobPanel.job.folder if self._jobPanel.job else None

    @property
    def _checkpoint(self) -> str:
        return self._ui.checkpointSelector.currentData

    @property
    def _report(self) -> Path | None:
        return self._run / REPORT_FILE if self._run else None

    def _problem(self, *others: Path) -> str:
        job = self._jobPanel.job
        if job is None or not job.hasCheckpoint(self._checkpoint):
            return _("The run has no checkpoint yet.")
        for folder in others:
            if not jobIn(folder, isGlance=True).hasCheckpoint(self._checkpoint):
                return _("The run {name} has no checkpoint yet.").format(name=folder.name)
        return self._backend.problem

    @property
    def _isOfAllCases(self) -> bool:
        """Whether the run was trained without holding out any case."""
        job = self._jobPanel.job
        return bool(job and job.progress.started) and job.progress.started.get("fold", 0) is None

    def _problemOfEvaluation(self) -> str:
        if self._isOfAllCases:
            return _("This run was trained on all cases, so there are no held-out cases to evaluate it on.")
        if self._jobPanel.state is JobState.evaluating:
            # Both would write the same files.
            return _("The cross-validation is already evaluating the held-out cases.")
        return ""

    def _problemOfImport(self) -> str:
        if not self._isOfAllCases or self.others:
            return ""
        return _(
            "This run was trained on all cases, so the model's measurements must come from other runs. Check runs "
            "in the list that were trained with the same plan and held out cases."
        )

    def _problemOfComparison(self) -> str:
        if len(self.others) != 1:
            return _("Check one run in the list to compare it with this run.")
        for folder in (self._run, *self.others):
            if folder is None or not os.path.isfile(folder / "evaluation" / "evaluation.json"):
                return _("Evaluate {name} first.").format(name=folder.name if folder else _("this run"))
        return self._backend.problem

    def _listOthers(self) -> None:
        """List the earlier runs except the chosen one; those that were checked stay checked."""
        runs = [folder for folder in recentRuns() if folder != self._run]
        view = self._ui.otherRunsList
        if runs != self._listed:
            checked, self._listed = self.others, runs
            wasBlocked = view.blockSignals(True)
            view.clear()
            for folder in runs:
                item = qt.QListWidgetItem(folder.name)
                item.setToolTip(plain(str(folder)))
                item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
                item.setCheckState(qt.Qt.Checked if folder in checked else qt.Qt.Unchecked)
                view.addItem(item)
            view.blockSignals(wasBlocked)
        self._ui.otherRunsCollapsibleButton.visible = bool(runs)

    def _onOthersChosen(self, _item) -> None:
        if not self._ui.comparisonTable.isHidden():
            self._ui.comparisonTable.visible = False
            say(self._ui.resultsStatusLabel, "")
        self.updateButtons()

    def _compare(self) -> None:
        (other,) = self.others
        folders = [folder / "evaluation" for folder in (self._run, other)]
        output = folders[0] / "comparison.json"
        arguments = ("compare", *map(str, folders), "--output", str(output))
        self._ui.comparisonTable.visible = False
        first = self._run.name
        self._comparison.run(arguments, _("Comparing"), lambda _output: self._onCompared(output, first, other.name))
        self.updateButtons()

    def _onCompared(self, output: Path, first: str, second: str) -> None:
        try:
            rows = comparedRows(json.loads(output.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            sentence = _("The comparison cannot be read: {error}")
            say(self._ui.resultsStatusLabel, sentence.format(error=error), isError=True)
            return
        table = self._ui.comparisonTable
        table.setRowCount(len(rows))
        for number, (cells, tip) in enumerate(rows):
            for column, text in enumerate(cells):
                table.setItem(number, column, textItem(text, tip))
        table.resizeRowsToContents()
        table.visible = True
        sentence = _("A: {first}. B: {second}. Point to a row to see the interval of the difference.")
        say(self._ui.resultsStatusLabel, sentence.format(first=first, second=second))

    def _evaluate(self) -> None:
        # Here the data set is an argument.
        data = self._jobPanel.dataOptions()[1:]
        arguments = ("evaluate", str(self._run), *data, "--checkpoint", self._checkpoint)
        report = self._report
        before = _timeOf(report)
        self._evaluation.run(
            arguments,
            _("Segmenting and evaluating the held-out cases"),
            lambda _output: self._onEvaluated(report, before),
            doneCodes=(0, _EXIT_WITH_FAILED_CASES),
            name=self._run.name,
        )
        self.updateButtons()

    def _onEvaluated(self, report: Path, before: int | None) -> None:
        # With the same exit code, the command says that it could not start; the report is then an earlier one.
        if _timeOf(report) != before:
            openFile(report, self._ui.resultsStatusLabel)

    def _onImport(self) -> None:
        # In the run's folder, which a remote machine can reach too.
        package = self._run / "model.zip"
        options = ("--output", str(package), "--checkpoint", self._checkpoint, "--overwrite")
        others = [str(run) for run in self.others]
        if self._isOfAllCases:
            others = [argument for run in others for argument in ("--measured-by", run)]
        arguments = ("export", str(self._run), *others, *options, *self._jobPanel.dataOptions())
        text = _("Packing the model and evaluating it on the held-out cases")
        self._export.run(arguments, text, lambda _output: self._onPacked(package), name=self._run.name)
        self.updateButtons()

    def _onPacked(self, package: Path) -> None:
        self._install(package, _("The model was packed as {path}, but not installed.").format(path=package))

    def _onCheckpoint(self) -> None:
        if self._checkpointImport:
            self._checkpointImport.cancel()
        elif source := askForCheckpoint():
            self.install(source)

    def _install(self, package: Path, otherwise: str) -> None:
        try:
            name = _segmentationLogic(package).install(str(package))
        except UserError as error:
            say(self._ui.resultsStatusLabel, error)
            return
        if not name:
            say(self._ui.resultsStatusLabel, otherwise)
            return
        sentence = _("The model {name} is installed and chosen in ConRes Segmentation.")
        say(self._ui.resultsStatusLabel, sentence.format(name=name))
        question = _("The model {name} is installed and chosen in ConRes Segmentation. Go there now?")
        if slicer.util.confirmYesNoDisplay(question.format(name=name)):
            slicer.util.selectModule(_SEGMENTATION_MODULE)


def _segmentationLogic(source: Path | str):
    """The logic of ConRes Segmentation, which installs the model in a file. Raises UserError if it is not loaded."""
    try:
        return slicer.util.getModuleLogic(_SEGMENTATION_MODULE)
    except RuntimeError as error:
        raise UserError("segmentation-module-not-loaded", path=str(source)) from error


def comparedRows(comparison: dict) -> list[tuple[tuple[str, ...], str]]:
    """The cells (measure, segment, A, B, A - B, p) and the tooltip of each row, from the JSON of ``compare``."""
    titles = {"dice": (_("Dice"), 3), "surface_dice": (_("Surface Dice"), 3), "hd95": (_("HD95, mm"), 2)}
    rows = []
    for metric, (title, digits) in titles.items():
        for segment, metrics in comparison["rows"].items():
            row = metrics.get(metric)
            if not row or not row["cases"]:
                continue
            numbers = [f"{row[key]:.{digits}f}" for key in ("first", "second")]
            p = f"{row['p']:.2g}" if row["p"] is not None else ""
            name = _("Mean") if segment == "overall" else segment
            tip = _("{count} cases").format(count=row["cases"])
            if row["interval"]:
                low, high = (f"{end:+.{digits}f}" for end in row["interval"])
                tip = _("{count} cases; 95% interval of A - B: {low} to {high}").format(
                    count=row["cases"], low=low, high=high
                )
            rows.append(((title, name, *numbers, f"{row['difference']:+.{digits}f}", p), tip))
    return rows


def _timeOf(file: Path) -> int | None:
    """When a file was changed last, in ns; None if it is missing."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return None
