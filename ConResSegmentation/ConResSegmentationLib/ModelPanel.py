"""The model selector, what it says of the chosen model, and installing one from a file."""

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Messages, ModelChoices

_LAST_SETTING = "ConResSegmentation/Model"


class ModelPanel:
    """The widgets of the model.

    A scene names its model; for a new one, the application's settings keep which the user has chosen last.

    Args:
        ui: the module's widgets by name.
        onChosen: called with the name of a model that the user has chosen.
    """

    def __init__(self, ui, onChosen: Callable[[str], None]):
        self._ui, self._onChosen = ui, onChosen
        self._choices: list[ModelChoices.ModelChoice] = []
        self._wanted = ""
        ui.modelSelector.connect("activated(int)", self._onActivated)
        ui.installModelButton.connect("clicked(bool)", self._onInstall)

    @property
    def choice(self) -> ModelChoices.ModelChoice | None:
        """The chosen model, which may be a broken one; None when the one that is wanted is not here."""
        return next((choice for choice in self._choices if choice.name == self._wanted), None)

    @property
    def problem(self) -> str:
        """Why the chosen model cannot be used, as a sentence; empty when it can."""
        choice = self.choice
        if choice is not None:
            return Messages.sentence(choice.problem) if choice.problem else ""
        if self._wanted:
            return _("The model {name} is not installed here; install it, or choose another one.").format(
                name=self._wanted
            )
        return _("There is no model; install one from a file.")

    def refresh(self) -> None:
        """List the models anew."""
        self._choices = ModelChoices.modelChoices()
        self._ui.modelSelector.clear()
        for choice in self._choices:
            self._ui.modelSelector.addItem(choice.title, choice.name)
        self.select(self._wanted)

    def select(self, name: str) -> str:
        """Show a model; for an empty name the one that the user has chosen last, else the first usable one.

        Returns:
            the name of the one that is shown.
        """
        self._wanted = name or self._likely()
        names = [choice.name for choice in self._choices]
        self._ui.modelSelector.setCurrentIndex(names.index(self._wanted) if self._wanted in names else -1)
        choice = self.choice
        isUsable = choice is not None and choice.problem is None
        self._ui.modelSummaryLabel.text = ModelChoices.summary(choice.description) if isUsable else self.problem
        self._ui.modelDetailsLabel.text = ModelChoices.details(choice) if choice else ""
        self._ui.modelDetailsButton.enabled = choice is not None
        return self._wanted

    def _likely(self) -> str:
        usable = [choice.name for choice in self._choices if choice.problem is None]
        last = slicer.util.settingsValue(_LAST_SETTING, "")
        return last if last in usable else next(iter(usable), "")

    def _choose(self, name: str) -> None:
        slicer.app.userSettings().setValue(_LAST_SETTING, name)
        self._onChosen(name)

    def _onActivated(self, index: int) -> None:
        self._choose(self._choices[index].name)

    def _onInstall(self) -> None:
        source = self._askForPackage()
        if not source:
            return
        try:
            name = ModelChoices.installAsking(source)
        except UserError as error:
            slicer.util.errorDisplay(Messages.sentence(error))
            return
        if name:
            self.refresh()
            self._choose(name)

    def _askForPackage(self) -> str:
        parent = slicer.util.mainWindow()
        box = qt.QMessageBox(parent)
        box.windowTitle = _("Install a model")
        box.text = _("A model package is a .zip file or a folder. Which one do you have?")
        zipButton = box.addButton(_("A .zip file"), qt.QMessageBox.AcceptRole)
        folderButton = box.addButton(_("A folder"), qt.QMessageBox.AcceptRole)
        box.addButton(qt.QMessageBox.Cancel)
        box.exec_()
        if box.clickedButton() == zipButton:
            return qt.QFileDialog.getOpenFileName(parent, box.windowTitle, "", _("Model packages (*.zip)"))
        if box.clickedButton() == folderButton:
            return qt.QFileDialog.getExistingDirectory(parent, box.windowTitle)
        return ""
