"""The section Plan: making a plan from the data set, editing, saving and reading it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import write_text
from ConResSegmentationLib.Widgets import pathIn, plain, say, whenPathChanges

from .Backend import Backend, BackendTask, Place
from .DataSetPanel import DataSetPanel, pathNextTo

# Slicer's Python cannot read YAML. Long values continue on indented lines.
_DATA = re.compile(r"^data:[ \t]+(\S.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
# A Qt number has no more than nine digits.
_FOLDS = re.compile(r"^\s+folds:\s*(\d{1,9})\b", re.MULTILINE)


class PlanPanel:
    """The widgets of the plan.

    Args:
        onChanged: called when there is another plan, or none.
    """

    def __init__(self, section, backend: Backend, dataSetPanel: DataSetPanel, onChanged: Callable[[], None]):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._dataSetPanel, self._onChanged = backend, dataSetPanel, onChanged
        # The text in the file.
        self._saved = ""
        self._fillSystems()
        self._fields = (ui.stepsSpinBox, ui.batchSpinBox, ui.widthSpinBox, ui.foldsSpinBox)
        for field in self._fields:
            field.connect("valueChanged(int)", self._onChoice)
        # The choices above the plan when it was made or read.
        self._choicesOfPlan = self._choices
        self._task = BackendTask(
            backend, ui.makePlanButton, ui.planStatusLabel, self._make, self._update, lambda: self.path
        )
        ui.planTextEdit.setFont(qt.QFontDatabase.systemFont(qt.QFontDatabase.FixedFont))
        ui.planPathEdit.currentPath = slicer.util.settingsValue("ConResTraining/Plan", "")
        whenPathChanges(ui.planPathEdit, self._onPathChanged)
        ui.planTextEdit.connect("textChanged()", self._update)
        ui.savePlanButton.connect("clicked(bool)", self._onSave)
        ui.resetPlanButton.connect("clicked(bool)", self._onReset)

    @property
    def path(self) -> Path | None:
        """The plan's file, which may not exist; None if none is chosen."""
        return pathIn(self._ui.planPathEdit)

    @property
    def problem(self) -> str:
        """Why a run cannot start with this plan, as a sentence; empty if it can."""
        if self._task.isRunning:
            return _("The plan is being made.")
        if not self._ui.planTextEdit.toPlainText().strip() or self.path is None:
            return _("Make a plan first, or choose a plan file.")
        return self._problemOfData

    @property
    def folds(self) -> int | None:
        """The number of folds in the plan's text; None if it is missing."""
        return foldsOfPlan(self._ui.planTextEdit.toPlainText())

    @property
    def _problemOfData(self) -> str:
        """A sentence if the plan is for a data set other than the chosen one; else empty."""
        chosen, planned = self._dataSetPanel.folder, dataOfPlan(self._ui.planTextEdit.toPlainText())
        if chosen is None or planned is None:
            return ""
        # A remote machine may have the same folder under another path.
        isSame = self._backend.place is Place.command and planned.name == chosen.name
        if isSame or os.path.realpath(self.path.parent / planned) == os.path.realpath(chosen):
            return ""
        sentence = _("This plan is for the data set {planned}; choose that folder, or make a plan for {chosen}.")
        return sentence.format(planned=planned, chosen=chosen)

    def refresh(self) -> None:
        """Read the plan's file, unless the editor contains unsaved changes."""
        if not self._isEdited:
            self._read()
        self.updateButtons()

    def confirmFile(self) -> None:
        """Show what another program has written to the plan's file since it was read; unsaved changes are kept.

        Raises:
            UserError: ``plan-edited-elsewhere``, or ``plan-gone`` if the file is missing or unreadable; the text then
                counts as edited.
        """
        shown = self._ui.planTextEdit.toPlainText()
        if self._isEdited or (there := self._textOfFile()) == shown:
            return
        if not there:
            self._saved = ""
            self._update()
            raise UserError("plan-gone", path=str(self.path))
        self.refresh()
        raise UserError("plan-edited-elsewhere")

    def save(self) -> None:
        """Write the text in the editor to the plan's file if it was changed.

        Raises:
            UserError: the file cannot be written, or ``plan-kept`` if it contains another plan, which the user keeps.
        """
        if not self._isEdited:
            return
        text = self._ui.planTextEdit.toPlainText()
        # It was edited elsewhere, or the user chose another file while the editor had unsaved edits.
        there = self._textOfFile()
        question = _("{path} contains a different plan from the one edited here. Replace it?")
        if there is None:
            question = _("{path} cannot be read. Replace it?")
        isOther = os.path.lexists(self.path) and there != self._saved
        if isOther and not slicer.util.confirmYesNoDisplay(plain(question.format(path=self.path.name))):
            raise UserError("plan-kept", path=str(self.path))
        write_text(self.path, text)
        self._saved = text
        self.updateButtons()

    def proposePath(self) -> None:
        """Propose a file next to the data set when another data set was chosen."""
        folder = self._dataSetPanel.folder
        if folder and not self._isEdited:
            self._ui.planPathEdit.currentPath = str(pathNextTo(folder, "-plan.yaml"))

    def updateButtons(self) -> None:
        """Enable the buttons, or show on them why they are not available."""
        problem = self._dataSetPanel.problem or self._backend.problem
        if not problem and self.path is None:
            problem = _("Choose a file for the plan.")
        self._task.offer(problem, _("Analyze the data set and make a plan for it with the values chosen above."))
        # The plan that is being made will replace this text.
        canEdit = not self._task.isRunning
        self._ui.planTextEdit.readOnly = not canEdit
        self._ui.savePlanButton.enabled = canEdit and self._isEdited and self.path is not None
        self._ui.resetPlanButton.enabled = canEdit and self._isEdited

    def close(self) -> None:
        self._task.stop()

    def _fillSystems(self) -> None:
        # It imports SimpleITK, which takes time when Slicer starts.
        from conresnet_training.planning.systems import DEFAULT, SYSTEMS

        selector = self._ui.systemSelector
        for name, entry in SYSTEMS.items():
            selector.addItem(entry.title, name)
            selector.setItemData(selector.count - 1, plain(entry.sentence), qt.Qt.ToolTipRole)
        kept = slicer.util.settingsValue("ConResTraining/System", "")
        selector.setCurrentIndex(selector.findData(kept if kept in SYSTEMS else DEFAULT))
        selector.toolTip = selector.itemData(selector.currentIndex, qt.Qt.ToolTipRole)
        selector.connect("currentIndexChanged(int)", self._onSystemChosen)

    @property
    def _choices(self) -> list:
        return [self._ui.systemSelector.currentData, *(field.value for field in self._fields)]

    @property
    def _isEdited(self) -> bool:
        return self._ui.planTextEdit.toPlainText() != self._saved

    def _textOfFile(self) -> str | None:
        """None, and a sentence in the panel, if it cannot be read."""
        if not self.path or not os.path.isfile(self.path):
            return ""
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError as error:
            error = UserError("plan-not-found", path=str(self.path), reason=error.strerror)
            say(self._ui.planStatusLabel, error)
        except ValueError:
            say(self._ui.planStatusLabel, UserError("plan-not-text", path=str(self.path)))
        return None

    def _read(self) -> None:
        self._saved = text = self._textOfFile() or ""
        # Text that has not changed keeps its scroll position.
        if self._isEdited:
            self._ui.planTextEdit.setPlainText(text)

    def _onSystemChosen(self, _index: int) -> None:
        selector = self._ui.systemSelector
        slicer.app.userSettings().setValue("ConResTraining/System", selector.currentData)
        selector.toolTip = selector.itemData(selector.currentIndex, qt.Qt.ToolTipRole)
        self._onChoice()

    def _onChoice(self, _value: int = 0) -> None:
        if self._task.isRunning or not self._ui.planTextEdit.toPlainText().strip():
            return
        stale = _("This plan was not made with the values chosen above; make it again.")
        say(self._ui.planStatusLabel, stale if self._choices != self._choicesOfPlan else "")

    def _onPathChanged(self, path: str) -> None:
        slicer.app.userSettings().setValue("ConResTraining/Plan", path)
        self._choicesOfPlan = self._choices
        say(self._ui.planStatusLabel, "")
        self.refresh()
        self._onChanged()

    def _onSave(self) -> None:
        try:
            self.save()
        except UserError as error:
            say(self._ui.planStatusLabel, error)
        else:
            say(self._ui.planStatusLabel, _("Saved."))

    def _onReset(self) -> None:
        say(self._ui.planStatusLabel, "")
        self._read()

    def _make(self) -> None:
        question = _("Replace the plan in {path}? Your edits will be lost.")
        isThere = os.path.lexists(self.path) or bool(self._ui.planTextEdit.toPlainText().strip())
        if isThere and not slicer.util.confirmYesNoDisplay(plain(question.format(path=self.path.name))):
            return
        choices = self._choices
        where = (str(self._dataSetPanel.folder), "--output", str(self.path), "--overwrite")
        arguments = ("plan", *where, *self._options())
        self._task.run(arguments, _("Making a plan"), lambda _output: self._onMade(choices))
        self._update()

    def _options(self) -> list[str]:
        """The choices as command-line options; 0 leaves a value to the planner."""
        ui = self._ui
        options = ["--system", ui.systemSelector.currentData]
        if ui.widthSpinBox.value > 0:
            options += ["--base-width", str(ui.widthSpinBox.value)]
        fields = {"steps": ui.stepsSpinBox, "batch": ui.batchSpinBox, "folds": ui.foldsSpinBox}
        for key, field in fields.items():
            if field.value > 0:
                options += ["--set", f"training.{key}={field.value}"]
        return options

    def _onMade(self, choices: list) -> None:
        self._choicesOfPlan = choices
        self._read()
        self._update()

    def _update(self) -> None:
        self.updateButtons()
        self._onChanged()


def foldsOfPlan(text: str) -> int | None:
    """The number of folds in a plan; None if it is missing."""
    found = _FOLDS.search(text)
    return int(found[1]) if found else None


def dataOfPlan(text: str) -> Path | None:
    """The data set's folder in a plan, which may be relative to the plan's file; None if it is missing."""
    found = _DATA.search(text)
    value = _unquoted(found[1].strip()) if found else ""
    # No path contains a zero byte.
    return Path(value) if value and "\0" not in value else None


def _unquoted(value: str) -> str:
    """A YAML string without its quotes, with line breaks as spaces; empty if it is invalid."""
    if value.startswith('"'):
        # In double quotes, a backslash before a line break removes it, and one after it keeps the space that follows.
        joined = re.sub(r"\\\n[ \t]*(?:\\(?= ))?", "", value)
        try:
            return str(json.loads(re.sub(r"\s*\n\s*", " ", joined)))
        except ValueError:
            return ""
    value = re.sub(r"\s*\n\s*", " ", value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'") if value.endswith("'") else ""
    return re.sub(r"\s+#.*", "", value)
