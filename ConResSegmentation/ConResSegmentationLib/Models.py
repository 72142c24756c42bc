"""The models on offer, what the panel says of them, and their installation.

The model selector, what it says of the chosen model, and installing one from a file.
"""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.package import ModelDescription, read_package
from conresnet.package.maps import residual_plane
from conresnet.package.reader import figures, read_metrics
from conresnet.package.store import ModelEntry, install_model, list_models

from . import Messages


@dataclass(frozen=True)
class ModelChoice:
    """A model as it stands in the selector; a broken one has no description but the sentence that says why."""

    name: str
    title: str
    path: Path
    description: ModelDescription | None
    problem: UserError | None


def modelChoices() -> list[ModelChoice]:
    """The models of the user and those that come with the extension, usable ones first, broken ones last."""
    choices = [_choice(entry) for entry in list_models() if entry.hidden_by is None]
    return sorted(choices, key=lambda choice: (choice.problem is not None, choice.title.casefold()))


def installAsking(source: str) -> str:
    """Copy a model package, a folder or a .zip file, into the user's models folder; asks before it replaces a model.

    Returns:
        its name; empty when one of that name is there and shall stay.

    Raises:
        UserError: when it is broken, or ``package-exists`` when what has its name there is no model package.
    """
    try:
        return install_model(source).description.name
    except UserError as error:
        if error.code != "package-exists":
            raise
    if not slicer.util.confirmYesNoDisplay(_("A model of this name is installed already. Replace it?")):
        return ""
    return install_model(source, overwrite=True).description.name


def summary(description: ModelDescription) -> str:
    """One sentence: what goes in and what comes out."""
    channels = ", ".join(f"{item.name} ({item.modality})" for item in description.inputs)
    segments = ", ".join(segment.name for segment in description.output.segments)
    return _("{channels} → {segments}").format(channels=channels, segments=segments)


def details(choice: ModelChoice) -> str:
    """All that a user should know of a model before trusting it, as rich text."""
    description = choice.description
    if description is None:
        return html.escape(f"{choice.path}")
    plane = residual_plane(description)
    rows = [
        ("", description.description),
        (_("Intended use"), description.intended_use),
        (_("Limits"), description.limitations),
        (_("Measured"), "; ".join(measured(choice.path))),
        (_("Trained on"), description.training_data),
        (_("Residual"), _("between {plane} slices").format(plane=plane) if plane else ""),
        (_("Version"), f"{description.name} {description.version}"),
        (_("License"), description.license),
        (_("Attribution"), description.attribution),
        *((_("Cite"), citation) for citation in description.citations),
    ]
    title = f"<b>{html.escape(description.title)}</b>"
    lines = [
        f"<b>{html.escape(key)}:</b> {html.escape(text)}" if key else html.escape(text) for key, text in rows if text
    ]
    return "".join(f'<p style="margin:0 0 6px 0">{line}</p>' for line in (title, *lines))


def measured(path: Path) -> list[str]:
    """The measured figures that a model brings, in words; empty when it brings none, or none that can be read."""
    try:
        return list(_sentences(read_metrics(read_package(path, verify=False))))
    except UserError:
        return []


def _sentences(metrics: dict) -> Iterator[str]:
    """Those that training writes in words; any others as they stand."""
    overall, segments, cases = (metrics.get(key) for key in ("mean_dice", "mean_dice_a_segment", "dice_a_case"))
    if isinstance(cases, dict) and isinstance(segments, dict) and _areNumbers(overall, *segments.values()):
        each = ", ".join(f"{name} {value:.3f}" for name, value in segments.items())
        sentence = _("mean Dice {overall:.3f} on {count} cases it never saw ({each})")
        yield sentence.format(overall=overall, count=len(cases), each=each)
        return
    for name, value in figures(metrics):
        if isinstance(value, str | int | float):
            yield f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def _areNumbers(*values) -> bool:
    return all(isinstance(value, float | int) for value in values)


def _choice(entry: ModelEntry) -> ModelChoice:
    if entry.problem:
        title = _("{name} (cannot be used)").format(name=entry.name)
    else:
        title = entry.description.title
    return ModelChoice(entry.name, title, entry.path, entry.description, entry.problem)


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
        self._choices: list[ModelChoice] = []
        self._wanted = ""
        ui.modelSelector.connect("activated(int)", self._onActivated)
        ui.installModelButton.connect("clicked(bool)", self._onInstall)

    @property
    def choice(self) -> ModelChoice | None:
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
        self._choices = modelChoices()
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
        self._ui.modelSummaryLabel.text = summary(choice.description) if isUsable else self.problem
        self._ui.modelDetailsLabel.text = details(choice) if choice else ""
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
            name = installAsking(source)
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
