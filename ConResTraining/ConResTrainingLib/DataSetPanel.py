"""The section Data set: the folder, a summary of what it contains, and the findings of the check."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet_training.data import LAYOUTS, DataSet
from conresnet_training.data.layouts import read_data_set
from ConResSegmentationLib.Widgets import EditedPath, errorSentence, openFile, pathIn, say, textItem

from .Backend import Backend, BackendTask

# Name for a folder without one, such as the root of a drive.
_NAMELESS = "data-set"


def pathNextTo(folder: Path, ending: str) -> Path:
    """The path "scans-plan.yaml" next to the folder "scans", for the ending "-plan.yaml"; nothing is created.

    For the root of a drive, the path is in the user's home folder.
    """
    if folder.name:
        return folder.with_name(f"{folder.name}{ending}")
    return Path.home() / f"{_NAMELESS}{ending}"


_EXIT_WITH_ERRORS = 2
# In pixels, so that long names of cases leave room for the findings.
_WIDEST_NAMES = 120
_ICONS = {"error": qt.QStyle.SP_MessageBoxCritical}


class DataSetPanel:
    """The widgets of the data set.

    Args:
        reportFolder: returns the folder for the check's report, given the folder of the data set.
        onChanged: called when another folder was chosen, and again when it has been read.

    Attributes:
        namesSeen: the cases of all data sets that were chosen.
        dataSet: the data set in the folder; None if there is none.
        problem: why there is none, as a sentence; empty if there is one.
    """

    def __init__(self, section, backend: Backend, reportFolder: Callable[[Path], Path], onChanged: Callable[[], None]):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._reportFolder, self._onChanged = backend, reportFolder, onChanged
        self.namesSeen: set[str] = set()
        self.dataSet: DataSet | None = None
        self.problem = ""
        self._task = BackendTask(backend, ui.checkButton, ui.checkStatusLabel, self._check, about=lambda: self.folder)
        # The heights of the rows depend on the width that is left for the last column.
        header = ui.findingsTable.horizontalHeader()
        header.connect("sectionResized(int,int,int)", lambda *_sizes: ui.findingsTable.resizeRowsToContents())
        ui.dataSetPathEdit.currentPath = slicer.util.settingsValue("ConResTraining/DataSet", "")
        # Reading a folder with many files takes seconds.
        self._path = EditedPath(ui.dataSetPathEdit, self._onPathSettled, self._onPathEdited)
        ui.openCheckButton.connect("clicked(bool)", lambda _checked: openFile(self._report, ui.checkStatusLabel))

    @property
    def folder(self) -> Path | None:
        """The chosen folder, which may not exist; None if none is chosen."""
        return pathIn(self._ui.dataSetPathEdit)

    @property
    def isSettled(self) -> bool:
        """Whether the chosen folder has been read, which happens a moment after the last letter was typed."""
        return self._path.isSettled

    def refresh(self) -> None:
        if self.isSettled:
            self._read()
        else:
            self._path.flush()

    def _read(self) -> None:
        self.dataSet, self.problem = None, ""
        if self.folder is None:
            self.problem = _("Choose the folder of a data set.")
        else:
            try:
                self.dataSet = read_data_set(self.folder)
            except UserError as error:
                self.problem = errorSentence(error)
            except OSError as error:
                unreadable = UserError("folder-unreadable", path=str(self.folder), reason=error.strerror)
                self.problem = errorSentence(unreadable)
            else:
                self.namesSeen |= {case.name for case in self.dataSet.cases}
        summary = _summary(self.dataSet) if self.dataSet else self.problem if self.folder else ""
        say(self._ui.dataSetSummaryLabel, summary)
        self.updateButtons()

    def updateButtons(self) -> None:
        """Enable Check, or show on it why it is not available."""
        tip = _("Read every case and report what is missing or wrong.")
        self._task.offer(self.problem or self._backend.problem, tip)
        self._ui.openCheckButton.enabled = bool(self._report) and os.path.isfile(self._report)

    def close(self) -> None:
        self._path.close()
        self._task.stop()

    def _onPathSettled(self, path: str) -> None:
        slicer.app.userSettings().setValue("ConResTraining/DataSet", path)
        self._read()
        self._onChanged()

    def _hideFindings(self) -> None:
        self._ui.findingsTable.setRowCount(0)
        self._ui.findingsTable.visible = False

    def _onPathEdited(self) -> None:
        self._hideFindings()
        say(self._ui.checkStatusLabel, "")
        say(self._ui.dataSetSummaryLabel, "")
        # What is known belongs to the previous folder, and must not be used to start anything.
        self.dataSet, self.problem = None, _("Reading the folder of the data set.")
        self._onChanged()

    @property
    def _output(self) -> Path | None:
        return self._reportFolder(self.folder) if self.folder else None

    @property
    def _report(self) -> Path | None:
        return self._output / "check.html" if self._output else None

    def _check(self) -> None:
        output = self._output
        arguments = ("check", str(self.folder), "--output", str(output))
        # Earlier findings must not be shown as those of this check.
        with contextlib.suppress(OSError):
            (output / "check.json").unlink()
        self._hideFindings()
        self._task.run(
            arguments,
            _("Checking {count} cases").format(count=len(self.dataSet.cases)),
            lambda _text: self._showFindings(output),
            doneCodes=(0, _EXIT_WITH_ERRORS),
        )

    def _showFindings(self, output: Path) -> None:
        try:
            report = json.loads((output / "check.json").read_text(encoding="utf-8"))
            outcome, found = _outcome(report["summary"]), [("", one) for one in report["summary"]["findings"]]
            found += [(case["name"], one) for case in report["cases"] for one in case["findings"]]
            rows = [(str(case), str(one["level"]), str(one["message"])) for case, one in found]
        except FileNotFoundError:
            # The check could not start, and its closing sentence says why.
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(self._ui.checkStatusLabel, _("The findings cannot be read: {error}").format(error=error), isError=True)
            return
        rows.sort(key=lambda row: row[1] != "error")
        table = self._ui.findingsTable
        table.setRowCount(len(rows))
        for number, (case, level, message) in enumerate(rows):
            for column, text in enumerate(("", case, message)):
                table.setItem(number, column, textItem(text))
            icon = _ICONS.get(level, qt.QStyle.SP_MessageBoxWarning)
            table.item(number, 0).setIcon(table.style().standardIcon(icon))
        for column in (0, 1):
            table.resizeColumnToContents(column)
        table.setColumnWidth(1, min(table.columnWidth(1), _WIDEST_NAMES))
        table.visible = bool(rows)
        say(self._ui.checkStatusLabel, outcome, isError=any(level == "error" for _case, level, _message in rows))
        self.updateButtons()


def _outcome(summary: dict) -> str:
    if summary["fine"] == summary["cases"] and not summary["findings"]:
        return _("No problems were found in {count} cases.").format(count=summary["cases"])
    parts = [_("{count} of {of} cases have no problems").format(count=summary["fine"], of=summary["cases"])]
    if summary["with_errors"]:
        parts.append(_("{count} have errors").format(count=summary["with_errors"]))
    if summary["with_warnings"]:
        parts.append(_("{count} have warnings").format(count=summary["with_warnings"]))
    if summary["findings"]:
        parts.append(_("the data set as a whole has problems"))
    return ", ".join(parts) + "."


def _summary(dataSet: DataSet) -> str:
    layout = _(LAYOUTS[dataSet.layout])
    if dataSet.regions:
        labels = _("Regions: {names}").format(names=", ".join(dataSet.regions))
    else:
        labels = _("Labels: {names}").format(
            names=", ".join(f"{value} {name}" for value, name in dataSet.labels.items())
        )
    sentence = _("{layout}: {count} labeled cases. Channels: {channels}. {labels}.")
    return sentence.format(layout=layout, count=len(dataSet.cases), channels=", ".join(dataSet.channels), labels=labels)
