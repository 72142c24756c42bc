"""Where what belongs to a data set is proposed to lie: beside its folder, and called after it.

The data set: its folder, what it is, and what the check has found in it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import qt
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet_training.data import DataSet, read_data_set
from ConResSegmentationLib import Messages
from ConResSegmentationLib.EnginePanel import say, whenPathChanges

from . import TrainingDiagnostics
from .Backend import Backend, BackendTask

# What a folder without a name of its own, such as the root of a drive, is called.
_NAMELESS = "data-set"


def pathBeside(folder: Path, ending: str) -> Path:
    """ "scans-plan.yaml" beside the folder "scans", for the ending "-plan.yaml"; nothing is made there.

    There is nothing beside the root of a drive: for it the path lies in the user's home.
    """
    if folder.name:
        return folder.with_name(f"{folder.name}{ending}")
    return Path.home() / f"{_NAMELESS}{ending}"


_EXIT_WITH_ERRORS = 2
# A path that is typed changes with every letter, and to look into a folder with many others takes seconds.
_MILLISECONDS_UNTIL_LOOK = 300
_ICONS = {"error": qt.QStyle.SP_MessageBoxCritical}


class DataSetPanel:
    """The widgets of the data set.

    Args:
        ui: the module's widgets by name.
        backend: where the check runs.
        log: called with what the check prints, line by line.
        onChanged: called when another folder was chosen, and again when it has been looked at.
    """

    def __init__(self, ui, backend: Backend, log: Callable[[str], None], onChanged: Callable[[], None]):
        self._ui, self._backend, self._onChanged = ui, backend, onChanged
        self._dataSet: DataSet | None = None
        self._problem = ""
        self._isSettled = True
        # Goes with a widget: PythonQt holds what a timer calls, and so this panel, for as long as the timer lives.
        self._timer = qt.QTimer(ui.dataSetPathEdit)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_MILLISECONDS_UNTIL_LOOK)
        self._timer.connect("timeout()", self.refresh)
        self._task = BackendTask(ui.checkButton, ui.checkStatusLabel, self._check, log)
        # The heights of the rows follow the width that is left for the last column.
        ui.findingsTable.horizontalHeader().connect("sectionResized(int,int,int)", self._onColumnResized)
        ui.dataSetPathEdit.currentPath = TrainingDiagnostics.value("DataSet")
        whenPathChanges(ui.dataSetPathEdit, self._onPathChanged)
        ui.openCheckButton.connect("clicked(bool)", self._onOpenReport)

    @property
    def folder(self) -> Path | None:
        """The chosen folder, which need not exist; None while none is chosen."""
        text = self._ui.dataSetPathEdit.currentPath.strip()
        return Path(text) if text else None

    @property
    def dataSet(self) -> DataSet | None:
        """What lies in the folder; None when that is no data set."""
        return self._dataSet

    @property
    def problem(self) -> str:
        """Why there is no data set, as a sentence; empty when there is one."""
        return self._problem

    @property
    def isSettled(self) -> bool:
        """Whether the folder that is named has been looked at; a moment after the last letter it is."""
        return self._isSettled

    def refresh(self) -> None:
        """Look at the folder again."""
        self._timer.stop()
        wasSettled, self._isSettled = self._isSettled, True
        self._dataSet, self._problem = None, ""
        if self.folder is None:
            self._problem = _("Choose the folder of a data set.")
        else:
            try:
                self._dataSet = read_data_set(self.folder)
            except UserError as error:
                self._problem = Messages.sentence(error)
        summary = _summary(self._dataSet) if self._dataSet else self._problem if self.folder else ""
        say(self._ui.dataSetSummaryLabel, summary)
        self.updateButtons()
        if not wasSettled:
            self._onChanged()

    def updateButtons(self) -> None:
        """Allow Check, or say on it why it cannot be done."""
        problem = self._problem or self._backend.problem
        self._ui.checkButton.enabled = self._task.isRunning or not problem
        self._ui.checkButton.toolTip = problem or _("Read every case, and report what is missing or wrong.")
        self._ui.openCheckButton.enabled = bool(self._report) and self._report.is_file()

    def close(self) -> None:
        """The panel goes."""
        self._timer.stop()
        self._task.stop()

    def _onPathChanged(self, path: str) -> None:
        TrainingDiagnostics.setValue("DataSet", path)
        self._ui.findingsTable.setRowCount(0)
        self._ui.findingsTable.visible = False
        say(self._ui.checkStatusLabel, "")
        say(self._ui.dataSetSummaryLabel, "")
        # What is known is of another folder, and nothing may be started with it.
        self._isSettled, self._dataSet = False, None
        self._problem = _("The folder of the data set is being looked at.")
        self._timer.start()
        self._onChanged()

    @property
    def _output(self) -> Path | None:
        if self.folder is None:
            return None
        # Beside the plan, where the user may write and the other side of a command reaches; never among the data.
        plan = self._ui.planPathEdit.currentPath.strip()
        beside = pathBeside(self.folder, "-check")
        return Path(plan).parent / beside.name if plan else beside

    @property
    def _report(self) -> Path | None:
        return self._output / "check.html" if self._output else None

    def _check(self) -> None:
        output = self._output
        arguments = ("check", str(self.folder), "--output", str(output))
        # What it found last time must not pass for what it finds now.
        (output / "check.json").unlink(missing_ok=True)
        self._ui.findingsTable.setRowCount(0)
        self._ui.findingsTable.visible = False
        self._task.run(
            lambda: self._backend.launch(*arguments),
            _("Checking {count} cases").format(count=len(self._dataSet.cases)),
            lambda _text: self._showFindings(output),
            doneCodes=(0, _EXIT_WITH_ERRORS),
        )

    def _showFindings(self, output: Path) -> None:
        try:
            report = json.loads((output / "check.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            # It could not begin, and has said why.
            return
        except (OSError, ValueError) as error:
            say(self._ui.checkStatusLabel, _("The findings cannot be read: {error}").format(error=error), isError=True)
            return
        rows = [("", finding) for finding in report["summary"]["findings"]]
        rows += [(case["name"], finding) for case in report["cases"] for finding in case["findings"]]
        isWrong = any(finding["level"] == "error" for _case, finding in rows)
        rows.sort(key=lambda row: row[1]["level"] != "error")
        table = self._ui.findingsTable
        table.setRowCount(len(rows))
        for number, (case, finding) in enumerate(rows):
            for column, text in enumerate(("", case, finding["message"])):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(number, column, item)
            icon = _ICONS.get(finding["level"], qt.QStyle.SP_MessageBoxWarning)
            table.item(number, 0).setIcon(table.style().standardIcon(icon))
        for column in (0, 1):
            table.resizeColumnToContents(column)
        table.visible = bool(rows)
        say(self._ui.checkStatusLabel, _outcome(report["summary"]), isError=isWrong)
        self.updateButtons()

    def _onColumnResized(self, *_sizes: int) -> None:
        self._ui.findingsTable.resizeRowsToContents()

    def _onOpenReport(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._report)))


def _outcome(summary: dict) -> str:
    if summary["fine"] == summary["cases"]:
        return _("All {count} cases are fine.").format(count=summary["cases"])
    parts = [_("{count} of {of} cases are fine").format(count=summary["fine"], of=summary["cases"])]
    if summary["with_errors"]:
        parts.append(_("{count} have errors").format(count=summary["with_errors"]))
    if summary["with_warnings"]:
        parts.append(_("{count} have warnings").format(count=summary["with_warnings"]))
    return ", ".join(parts) + "."


def _summary(dataSet: DataSet) -> str:
    layout = {
        "decathlon": _("Medical Segmentation Decathlon"),
        "nnunet": _("nnU-Net (raw data)"),
        "brats": _("BraTS"),
        "label_maps": _("Label maps, from which images are synthesized"),
    }[dataSet.layout]
    if dataSet.regions:
        labels = _("Regions: {names}").format(names=", ".join(dataSet.regions))
    else:
        labels = _("Labels: {names}").format(
            names=", ".join(f"{value} {name}" for value, name in dataSet.labels.items())
        )
    sentence = _("{layout}: {count} labelled cases. Channels: {channels}. {labels}.")
    return sentence.format(layout=layout, count=len(dataSet.cases), channels=", ".join(dataSet.channels), labels=labels)
