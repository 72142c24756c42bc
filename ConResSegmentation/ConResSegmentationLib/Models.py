"""The models: the list in the panel, information about each model, installing and removing them."""

import html
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.importing import CHECKPOINT_SUFFIXES
from conresnet.package import ModelDescription
from conresnet.package.outputs import provided_maps, residual_plane
from conresnet.package.reader import MAY_HAVE_LEARNED, OWN_WEIGHTS, figures, read_metrics, read_package
from conresnet.package.store import ModelEntry, free_name, install_model, is_removable, list_models, remove_model

from .CheckpointImport import askForCheckpoint
from .Widgets import FittedHeight, errorSentence, megabytesOf, plain, showError, textSetting

_LAST_SETTING = "ConResSegmentation/Model"
_SECONDS_SETTING = "ConResSegmentation/Seconds/"
# A mean of fewer cases says little.
_FEWEST_CASES = 5
# Segments to name where space is limited.
_MOST_NAMED = 6


@dataclass(frozen=True)
class ModelChoice:
    """An entry of the model selector. A broken one has a problem instead of a description.

    Args:
        name: the model's name; for one that another model of the same name hides, its path.
        title: the text in the selector.
    """

    name: str
    title: str
    path: Path
    description: ModelDescription | None
    problem: UserError | None


def modelChoices() -> list[ModelChoice]:
    """The user's and the shipped models, usable ones first, broken ones last; equal titles include the name."""
    entries = list_models()
    hiding = {entry.hidden_by for entry in entries if entry.kind == "shipped"}
    shown = [entry for entry in entries if entry.hidden_by is None or entry.kind == "shipped"]
    choices = [_choice(entry, entry.path in hiding) for entry in shown]
    count = Counter(choice.title for choice in choices)
    choices = [
        replace(choice, title=f"{choice.title} ({choice.name})") if count[choice.title] > 1 else choice
        for choice in choices
    ]
    return sorted(choices, key=lambda choice: (choice.problem is not None, choice.title.casefold()))


def _choice(entry: ModelEntry, hidesShipped: bool) -> ModelChoice:
    name = entry.name
    if entry.problem:
        title = _("{name} (cannot be used)").format(name=entry.name)
    else:
        title = entry.description.title
    if entry.hidden_by:
        name, title = str(entry.path), _("{title} (shipped)").format(title=title)
    elif hidesShipped:
        title = _("{title} (installed)").format(title=title)
    return ModelChoice(name, title, entry.path, entry.description, entry.problem)


def installAsking(source: str) -> str:
    """Copy a model package, a folder or a .zip file, into the user's models folder, asking about an existing name.

    A model with the same name as a shipped one gets another name. One with the same name as an installed one replaces
    it or gets another name, as the user chooses.

    Returns:
        its name; empty if the user does not want to install it.

    Raises:
        UserError: it is broken or a checkpoint, or what has its name is not a model package.
    """
    name = read_package(source).description.name
    if name in {entry.name for entry in list_models() if entry.kind == "shipped"}:
        other = free_name(name)
        question = _("The extension already ships a model named {name}. Install this one as {other}?")
        if not slicer.util.confirmYesNoDisplay(question.format(name=name, other=other)):
            return ""
        return install_model(source, name=other).description.name
    try:
        return install_model(source).description.name
    except UserError as error:
        if error.code != "package-exists":
            raise
    other = free_name(name)
    installations = {
        _("Replace it"): lambda: install_model(source, overwrite=True),
        _("Keep both"): lambda: install_model(source, name=other),
    }
    question = _("A model named {name} is already installed. Replace it, or keep both and install this one as {other}?")
    install = _ask(question.format(name=name, other=other), installations)
    return install().description.name if install else ""


def _ask(question: str, ways: Mapping[str, Callable]) -> Callable | None:
    """The action of the button that the user clicks; None for Cancel."""
    box = qt.QMessageBox(slicer.util.mainWindow())
    box.windowTitle, box.text = _("Install a model"), plain(question)
    buttons = [(box.addButton(text, qt.QMessageBox.AcceptRole), way) for text, way in ways.items()]
    box.addButton(qt.QMessageBox.Cancel)
    box.exec_()
    chosen = next((way for button, way in buttons if button == box.clickedButton()), None)
    # Otherwise it would stay as a child of the main window.
    box.deleteLater()
    return chosen


def isPackage(path: str) -> bool:
    """Whether a path looks like a model package, or like a checkpoint that can be imported as one."""
    return path.casefold().endswith((".zip", *CHECKPOINT_SUFFIXES)) or (Path(path) / "model.json").is_file()


def structures(names: Sequence[str]) -> str:
    """The structures that a model segments; if there are many, their number and the first ones."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return _("{count} structures: {names} and {more} more").format(
        count=len(names), names=", ".join(names[:_MOST_NAMED]), more=len(names) - _MOST_NAMED
    )


def summary(description: ModelDescription) -> str:
    """A line or two: the inputs and the segments of a model."""
    segments = [segment.name for segment in description.output.segments]
    return _("{channels} → {segments}").format(channels=_inputs(description), segments=structures(segments))


def _inputs(description: ModelDescription) -> str:
    """Each channel with its modality, unless that is its name."""
    return ", ".join(
        item.name if item.name == item.modality else f"{item.name} ({item.modality})" for item in description.inputs
    )


def details(choice: ModelChoice) -> str:
    """What a user should know about a model before using it, as rich text."""
    description = choice.description
    if description is None:
        return html.escape(f"{choice.path}")
    plane = residual_plane(description)
    rows = [
        ("", description.description),
        (_("Inputs"), _inputs(description)),
        (_("Segments"), ", ".join(segment.name for segment in description.output.segments)),
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


def measured(path: Path, isBrief: bool = False) -> list[str]:
    """Measured accuracy of a model and its data, as sentences; briefly, without segments. Empty if unreadable."""
    try:
        return list(_sentences(read_metrics(read_package(path, verify=False)), isBrief))
    except UserError:
        return []


def _sentences(metrics: dict, isBrief: bool) -> Iterator[str]:
    """Figures from our training as a sentence; others as they are."""
    overall, segments, cases = (metrics.get(key) for key in ("mean_dice", "mean_dice_a_segment", "dice_a_case"))
    if (
        isinstance(cases, dict)
        and isinstance(segments, dict)
        and all(isinstance(one, float | int) for one in (overall, *segments.values()))
    ):
        split = str(metrics.get("split") or "")
        if OWN_WEIGHTS in metrics:
            sentence = _("mean Dice {overall:.3f} on {count} cases, for a model trained the same way without them")
        elif MAY_HAVE_LEARNED in split:
            sentence = _("mean Dice {overall:.3f} on {count} cases, some of which may have been used for training")
        else:
            sentence = _("mean Dice {overall:.3f} on {count} cases not used for training")
        each = "" if isBrief else ", ".join(f"{name} {value:.3f}" for name, value in segments.items())
        yield sentence.format(overall=overall, count=len(cases)) + (f" ({each})" if each else "")
        if len(cases) < _FEWEST_CASES:
            yield _("too few cases for a reliable figure")
        if metrics.get("data"):
            yield _("data set: {name}").format(name=metrics["data"])
        if split and not isBrief:
            yield split
        return
    for name, value in figures(metrics):
        if isinstance(value, str | int | float):
            yield f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def rememberSeconds(model: str, seconds: float) -> None:
    """Save how long a model took on this computer, to show it in the gallery."""
    slicer.app.userSettings().setValue(_SECONDS_SETTING + model, f"{seconds:.1f}")


def lastSeconds(model: str) -> str:
    """How long a model took on this computer when it was last used; "" if it has not been used yet."""
    return textSetting(_SECONDS_SETTING + model)


class ModelPanel:
    """The widgets of the model.

    A scene names its model. For a new scene, the application's settings remember the model that was chosen last.

    Args:
        onChosen: called with the name of a model that the user has chosen.
        onCheckpoint: called with the path of a checkpoint that the user wants to import.
    """

    def __init__(self, section, onChosen: Callable[[str], None], onCheckpoint: Callable[[str], None]):
        ui = slicer.util.childWidgetVariables(section)
        self._onChosen, self._onCheckpoint = onChosen, onCheckpoint
        self._selector, self._removeButton = ui.modelSelector, ui.removeModelButton
        self._summary, self._detailsButton = ui.modelSummaryLabel, ui.modelDetailsButton
        self._details, self._fitted = ui.modelDetailsLabel, FittedHeight(ui.modelDetailsLabel)
        self._choices: list[ModelChoice] = []
        self._wanted = ""
        ui.modelSelector.connect("activated(int)", lambda index: self.choose(ui.modelSelector.itemData(index)))
        ui.installModelButton.connect("clicked(bool)", self._onInstall)
        ui.removeModelButton.connect("clicked(bool)", self._onRemove)

    @property
    def choice(self) -> ModelChoice | None:
        """The chosen model, which may be broken; None if it is not installed here."""
        return next((choice for choice in self._choices if choice.name == self._wanted), None)

    @property
    def description(self) -> ModelDescription | None:
        """The chosen model's description; None if there is no usable model."""
        return self.choice.description if self.choice else None

    @property
    def nameAndVersion(self) -> str:
        """The chosen model's name and version; empty if there is no usable model."""
        return f"{self.description.name} {self.description.version}" if self.description else ""

    @property
    def maps(self) -> set[str]:
        """The maps that the chosen model can compute."""
        return provided_maps(self.description) if self.description else set()

    @property
    def problem(self) -> str:
        """Why the chosen model cannot be used, as a sentence; empty if it can."""
        choice = self.choice
        if choice is not None:
            return errorSentence(choice.problem) if choice.problem else ""
        if self._wanted:
            sentence = _("The model {name} is not installed here; install it, or choose another one.")
            return sentence.format(name=self._wanted)
        return _("There is no model; install one from a file.")

    def refresh(self) -> None:
        self._choices = modelChoices()
        self._selector.clear()
        for choice in self._choices:
            self._selector.addItem(choice.title, choice.name)
        self.select(self._wanted)

    def select(self, name: str) -> str:
        """Show a model, or else the one that the user has chosen last, or the first usable one; returns its name."""
        if not name:
            usable, last = [choice.name for choice in self._choices if not choice.problem], textSetting(_LAST_SETTING)
            name = last if last in usable else next(iter(usable), "")
        self._wanted = name
        self._selector.setCurrentIndex(self._selector.findData(self._wanted))
        choice = self.choice
        isUsable = choice is not None and choice.problem is None
        self._summary.text = summary(choice.description) if isUsable else self.problem
        self._details.text = details(choice) if choice else ""
        self._fitted.fit()
        self._detailsButton.enabled = choice is not None
        self._removeButton.enabled = choice is not None and is_removable(choice.path)
        return self._wanted

    def isReplaced(self) -> bool:
        """Whether another program has replaced the chosen model, which is then shown as it is now.

        What is wrong with one that was removed or damaged is said when it is used.
        """
        choice = self.choice
        if choice is None or choice.description is None:
            return False
        try:
            digest = read_package(choice.path, verify=False).description.digest
        except UserError:
            return False
        if digest == choice.description.digest:
            return False
        self.refresh()
        self.choose(self.select(choice.name))
        return True

    def install(self, source: str) -> str:
        """Install a model package and choose it; a checkpoint is imported first.

        Returns its name; empty if it is not installed (yet).
        """
        if source.casefold().endswith(CHECKPOINT_SUFFIXES):
            self._onCheckpoint(source)
            return ""
        try:
            name = installAsking(source)
        except UserError as error:
            showError(error)
            return ""
        if name:
            self.refresh()
            self.choose(name)
        return name

    def choose(self, name: str) -> None:
        """Use a model from now on, also in new scenes."""
        slicer.app.userSettings().setValue(_LAST_SETTING, name)
        self._onChosen(name)

    def _onInstall(self) -> None:
        source = self._askForPackage()
        if source:
            self.install(source)

    def _onRemove(self) -> None:
        choice = self.choice
        question = _("Delete the model {title} ({megabytes:.1f} MB) from {path}?")
        text = question.format(title=choice.title, megabytes=megabytesOf(choice.path), path=choice.path)
        if not slicer.util.confirmYesNoDisplay(plain(text)):
            return
        try:
            remove_model(choice.path)
        except UserError as error:
            showError(error)
        self.refresh()
        # A shipped model of the same name takes over; otherwise the first one.
        self.choose(self.select(choice.name if self.choice else ""))

    def _askForPackage(self) -> str:
        question = _(
            "A model package is a .zip file or a folder. A checkpoint (.pth) by the authors of ConResNet can also be "
            "imported. Which of these do you have?"
        )
        parent, files = slicer.util.mainWindow(), qt.QFileDialog
        title, kinds = _("Install a model"), _("Model packages (*.zip)")
        ways = {
            _("A .zip file"): lambda: files.getOpenFileName(parent, title, "", kinds),
            _("A folder"): lambda: files.getExistingDirectory(parent, title),
            _("A checkpoint"): askForCheckpoint,
        }
        ask = _ask(question, ways)
        return ask() if ask else ""
