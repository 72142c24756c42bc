"""What the text of a plan says, as far as the panel must know; Slicer's Python has no reader of YAML.

The plan: made from the data, shown with every line to edit, saved, and read again.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet_training.planning.systems import DEFAULT, SYSTEMS
from ConResSegmentationLib import Messages
from ConResSegmentationLib.EnginePanel import say, whenPathChanges

from . import TrainingDiagnostics
from .Backend import Backend, BackendTask, Place
from .DataSetPanel import DataSetPanel, pathBeside

# A value goes on in lines that are indented, where it is long.
_DATA = re.compile(r"^data:[ \t]+(\S.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_FOLDS = re.compile(r"^\s+folds:\s*(\d+)", re.MULTILINE)


def foldsOfPlan(text: str) -> int | None:
    """Into how many folds the plan divides the cases; None where it does not say."""
    found = _FOLDS.search(text)
    return int(found[1]) if found else None


def dataOfPlan(text: str) -> Path | None:
    """The data set's folder as it stands there, perhaps relative to the plan's file; None where it does not say."""
    found = _DATA.search(text)
    value = _unquoted(found[1].strip()) if found else ""
    return Path(value) if value else None


def _unquoted(value: str) -> str:
    """A YAML text without its quotes, whose breaks of lines are blanks; empty where it is none that can be read."""
    if value.startswith('"'):
        # There a backslash before a break stands for no blank, and one after it for the blank that follows.
        joined = re.sub(r"\\\n[ \t]*(?:\\(?= ))?", "", value)
        try:
            return str(json.loads(re.sub(r"\s*\n\s*", " ", joined)))
        except ValueError:
            return ""
    value = re.sub(r"\s*\n\s*", " ", value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'") if value.endswith("'") else ""
    return re.sub(r"\s+#.*", "", value)


class PlanPanel:
    """The widgets of the plan.

    Args:
        ui: the module's widgets by name.
        backend: where the plan is made.
        dataSetPanel: what it is made from.
        log: called with what the backend prints, line by line.
        onChanged: called when there is another plan, or none.
    """

    def __init__(
        self,
        ui,
        backend: Backend,
        dataSetPanel: DataSetPanel,
        log: Callable[[str], None],
        onChanged: Callable[[], None],
    ):
        self._ui, self._backend, self._dataSetPanel, self._onChanged = ui, backend, dataSetPanel, onChanged
        # The text as it is in the file.
        self._saved = ""
        self._fillSystems()
        self._fields = (ui.stepsSpinBox, ui.batchSpinBox, ui.widthSpinBox, ui.foldsSpinBox)
        for field in self._fields:
            field.connect("valueChanged(int)", self._onChoice)
        # What was chosen above the plan when it was made, or read.
        self._choicesOfPlan = self._choices
        self._task = BackendTask(ui.makePlanButton, ui.planStatusLabel, self._make, log)
        ui.planTextEdit.setFont(qt.QFontDatabase.systemFont(qt.QFontDatabase.FixedFont))
        ui.planPathEdit.currentPath = TrainingDiagnostics.value("Plan")
        whenPathChanges(ui.planPathEdit, self._onPathChanged)
        ui.planTextEdit.connect("textChanged()", self._onTextChanged)
        ui.savePlanButton.connect("clicked(bool)", self._onSave)
        ui.resetPlanButton.connect("clicked(bool)", self._onReset)

    @property
    def path(self) -> Path | None:
        """The plan's file, which need not exist; None while none is named."""
        text = self._ui.planPathEdit.currentPath.strip()
        return Path(text) if text else None

    @property
    def problem(self) -> str:
        """Why a run cannot start by it, as a sentence; empty when it can."""
        if self._task.isRunning:
            return _("A plan is being made.")
        if not self._ui.planTextEdit.toPlainText().strip() or self.path is None:
            return _("Make a plan first, or choose the file of one.")
        return self._problemOfData

    @property
    def folds(self) -> int | None:
        """Into how many folds the plan divides the cases, as its text says; None where it does not."""
        return foldsOfPlan(self._ui.planTextEdit.toPlainText())

    @property
    def _problemOfData(self) -> str:
        """That the plan is for another data set than the chosen one, under whose name it would train."""
        chosen, planned = self._dataSetPanel.folder, dataOfPlan(self._ui.planTextEdit.toPlainText())
        if chosen is None or planned is None:
            return ""
        # The other side of a command may reach the same folder by another path.
        isSame = self._backend.place is Place.command and planned.name == chosen.name
        if isSame or (self.path.parent / planned).resolve() == chosen.resolve():
            return ""
        sentence = _("This plan is for the data set {planned}; choose that folder, or make a plan for {chosen}.")
        return sentence.format(planned=planned, chosen=chosen)

    def refresh(self) -> None:
        """Read the plan's file, unless what is in the editor was not saved."""
        if not self._isEdited:
            self._read()
        self.updateButtons()

    def save(self) -> None:
        """Write what is in the editor into the plan's file, where it differs.

        Raises:
            UserError: where it cannot be written.
        """
        if not self._isEdited:
            return
        text = self._ui.planTextEdit.toPlainText()
        with replacing(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        self._saved = text
        self.updateButtons()

    def proposePath(self) -> None:
        """Name a file beside the data set for its plan, when another data set was chosen."""
        folder = self._dataSetPanel.folder
        if folder and not self._isEdited:
            self._ui.planPathEdit.currentPath = str(pathBeside(folder, "-plan.yaml"))

    def updateButtons(self) -> None:
        """Allow what can be done, and say on the buttons why the rest cannot."""
        problem = self._dataSetPanel.problem or self._backend.problem
        if not problem and self.path is None:
            problem = _("Name the file of the plan.")
        self._ui.makePlanButton.enabled = self._task.isRunning or not problem
        self._ui.makePlanButton.toolTip = problem or _(
            "Look at the data set and make a plan for it; the values above are put into it."
        )
        self._ui.savePlanButton.enabled = self._isEdited and self.path is not None
        self._ui.resetPlanButton.enabled = self._isEdited

    def close(self) -> None:
        """The panel goes."""
        self._task.stop()

    def _fillSystems(self) -> None:
        selector = self._ui.systemSelector
        for name, entry in SYSTEMS.items():
            selector.addItem(entry.title, name)
            selector.setItemData(selector.count - 1, entry.sentence, qt.Qt.ToolTipRole)
        kept = TrainingDiagnostics.value("System")
        selector.setCurrentIndex(selector.findData(kept if kept in SYSTEMS else DEFAULT))
        selector.toolTip = SYSTEMS[selector.currentData].sentence
        selector.connect("currentIndexChanged(int)", self._onSystemChosen)

    @property
    def _choices(self) -> list:
        return [self._ui.systemSelector.currentData, *(field.value for field in self._fields)]

    @property
    def _isEdited(self) -> bool:
        return self._ui.planTextEdit.toPlainText() != self._saved

    def _read(self) -> None:
        text = ""
        if self.path and self.path.is_file():
            try:
                text = self.path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                sentence = _("The plan {path} cannot be read: {error}").format(path=self.path, error=error)
                say(self._ui.planStatusLabel, sentence, isError=True)
        self._saved = text
        # One that is there already keeps its place in the view.
        if self._isEdited:
            self._ui.planTextEdit.setPlainText(text)

    def _onSystemChosen(self, _index: int) -> None:
        selector = self._ui.systemSelector
        TrainingDiagnostics.setValue("System", selector.currentData)
        selector.toolTip = SYSTEMS[selector.currentData].sentence
        self._onChoice()

    def _onChoice(self, _value: int = 0) -> None:
        if self._task.isRunning or not self._ui.planTextEdit.toPlainText().strip():
            return
        stale = _("This plan was not made with what is chosen above it; make it anew.")
        say(self._ui.planStatusLabel, stale if self._choices != self._choicesOfPlan else "")

    def _onPathChanged(self, path: str) -> None:
        TrainingDiagnostics.setValue("Plan", path)
        self._choicesOfPlan = self._choices
        say(self._ui.planStatusLabel, "")
        self.refresh()
        self._onChanged()

    def _onTextChanged(self) -> None:
        self.updateButtons()
        self._onChanged()

    def _onSave(self) -> None:
        try:
            self.save()
        except UserError as error:
            say(self._ui.planStatusLabel, Messages.sentence(error), isError=True)
        else:
            say(self._ui.planStatusLabel, _("Saved."))

    def _onReset(self) -> None:
        say(self._ui.planStatusLabel, "")
        self._read()

    def _make(self) -> None:
        question = _("The plan in {path} is made anew, and what was edited in it is lost. Go on?")
        isThere = self.path.exists() or bool(self._ui.planTextEdit.toPlainText().strip())
        if isThere and not slicer.util.confirmYesNoDisplay(question.format(path=self.path.name)):
            return
        choices = self._choices
        where = (str(self._dataSetPanel.folder), "--output", str(self.path), "--overwrite")
        arguments = ("plan", *where, *self._options())
        self._task.run(
            lambda: self._backend.launch(*arguments), _("Making a plan"), lambda _output: self._onMade(choices)
        )
        self._onChanged()

    def _options(self) -> list[str]:
        """What is chosen, for the command; 0 leaves a value to the plan."""
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
        self.updateButtons()
        self._onChanged()
