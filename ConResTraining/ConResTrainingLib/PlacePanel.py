"""The section Where to run: the module's own environment, another Python, or a command prefix."""

import json
import shlex
import sys
from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet_training.cli.needs import PACKAGES, PYTHON
from ConResSegmentationLib.Processes import lastLine
from ConResSegmentationLib.Widgets import plain, say, whenPathChanges

from .Backend import Backend, BackendTask, Place
from .TrainingEnvironment import BasePython, BasePythonSearch, EnvironmentMaker


class PlacePanel:
    """The widgets of the place.

    Args:
        section: the collapsible button that contains the widgets.
        backend: gets the settings.
        log: called with each line that the tools print.
        onChanged: called when the settings have changed, or the environment is ready.
    """

    def __init__(self, section, backend: Backend, log: Callable[[str], None], onChanged: Callable[[], None]):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._log, self._onChanged = backend, log, onChanged
        self._search: BasePythonSearch | None = None
        self._maker: EnvironmentMaker | None = None
        self._makeText = ui.makeEnvironmentButton.text
        self._test = BackendTask(ui.testPlaceButton, ui.placeStatusLabel, self._onTest, log)
        titles = {
            Place.environment: _("Environment of this module"),
            Place.python: _("Another Python"),
            Place.command: _("Command prefix (ssh, srun)"),
        }
        for place, title in titles.items():
            ui.placeSelector.addItem(title, place.value)
        self._load()
        ui.placeSelector.connect("currentIndexChanged(int)", self._onEdited)
        whenPathChanges(ui.trainingPythonPathEdit, self._onEdited)
        ui.commandEdit.connect("textChanged(QString)", self._onEdited)
        ui.commandPythonEdit.connect("textChanged(QString)", self._onEdited)
        ui.torchOptionsEdit.connect("textChanged(QString)", self._onEdited)
        ui.makeEnvironmentButton.connect("clicked(bool)", self._onMake)
        ui.removeEnvironmentButton.connect("clicked(bool)", self._onRemove)
        # Open it if something still has to be set up.
        section.collapsed = not backend.problem
        self._update()

    @property
    def isMaking(self) -> bool:
        """Whether the environment is being created."""
        return bool(self._search or self._maker)

    def close(self) -> None:
        """The panel is about to be deleted; an incomplete environment is abandoned."""
        self._test.stop()
        if self._search:
            self._search.stop()
        if self._maker:
            self._maker.stop(wait=True)

    def _load(self) -> None:
        kept = slicer.util.settingsValue("ConResTraining/Place", Place.environment.value)
        index = self._ui.placeSelector.findData(kept)
        self._ui.placeSelector.setCurrentIndex(max(index, 0))
        self._ui.trainingPythonPathEdit.currentPath = slicer.util.settingsValue("ConResTraining/Python", "")
        self._ui.commandEdit.text = slicer.util.settingsValue("ConResTraining/Command", "")
        self._ui.commandPythonEdit.text = slicer.util.settingsValue("ConResTraining/CommandPython", "")
        self._ui.torchOptionsEdit.text = slicer.util.settingsValue("ConResTraining/TorchOptions", "")
        self._setBackend()

    def _setBackend(self) -> None:
        backend = self._backend
        backend.place = Place(self._ui.placeSelector.currentData)
        backend.command = self._ui.commandEdit.text.strip()
        isBehind = backend.place is Place.command
        python = self._ui.commandPythonEdit.text if isBehind else self._ui.trainingPythonPathEdit.currentPath
        backend.python = python.strip()

    def _onEdited(self, *_value) -> None:
        self._setBackend()
        slicer.app.userSettings().setValue("ConResTraining/Place", self._backend.place.value)
        slicer.app.userSettings().setValue("ConResTraining/Python", self._ui.trainingPythonPathEdit.currentPath)
        slicer.app.userSettings().setValue("ConResTraining/Command", self._ui.commandEdit.text)
        slicer.app.userSettings().setValue("ConResTraining/CommandPython", self._ui.commandPythonEdit.text)
        slicer.app.userSettings().setValue("ConResTraining/TorchOptions", self._ui.torchOptionsEdit.text)
        say(self._ui.placeStatusLabel, "")
        self._update()
        self._onChanged()

    def _update(self) -> None:
        ui, place = self._ui, self._backend.place
        shown = {
            Place.environment: (
                ui.torchOptionsLabel,
                ui.torchOptionsEdit,
                ui.makeEnvironmentButton,
                ui.removeEnvironmentButton,
            ),
            Place.python: (ui.trainingPythonLabel, ui.trainingPythonPathEdit),
            Place.command: (ui.commandLabel, ui.commandEdit, ui.commandPythonLabel, ui.commandPythonEdit),
        }
        for ofPlace, widgets in shown.items():
            for widget in widgets:
                widget.visible = ofPlace is place
        problem = self._backend.problem
        ui.testPlaceButton.enabled = not problem or self._test.isRunning
        tip = _("Start the backend with these settings and check that the required packages are installed.")
        ui.testPlaceButton.toolTip = plain(problem or tip)
        ui.placeSelector.enabled = ui.torchOptionsEdit.enabled = not self.isMaking
        ui.removeEnvironmentButton.enabled = self._backend.environment.isReady and not self.isMaking
        ui.makeEnvironmentButton.text = _("Cancel") if self.isMaking else self._makeText
        if not ui.placeStatusLabel.text and not self.isMaking:
            ready = _("The environment is in {folder}.").format(folder=self._backend.environment.folder)
            say(ui.placeStatusLabel, problem or (ready if place is Place.environment else ""))

    # Making the environment

    def _onMake(self) -> None:
        if self._maker:
            self._maker.stop()
        elif self._search:
            self._search.stop()
            self._search = None
            self._finish(_("Canceled; no environment was created."), isError=False)
        else:
            self._search = BasePythonSearch(self._onFound)
            say(self._ui.placeStatusLabel, _("Looking for a Python interpreter"))
            self._update()
            self._search.start()

    def _onFound(self, base: BasePython | None) -> None:
        self._search = None
        if base is None:
            sentence = _(
                "No Python {least} or later that can create environments was found; install one from {source}, or "
                "choose another Python above."
            )
            # On a Mac, the universal Python from python.org would run for Intel, the way Slicer does.
            source = "Homebrew" if sys.platform == "darwin" else "python.org"
            self._finish(sentence.format(least=PYTHON, source=source))
            return
        question = _(
            "Create a Python environment from Python {version} in {folder}, and install {packages} into it? Several "
            "gigabytes are downloaded for PyTorch with CUDA, the default on Linux, and a few hundred megabytes for any "
            "other build. Slicer's own packages are not changed."
        )
        environment = self._backend.environment
        values = {"version": base.version, "folder": environment.folder, "packages": ", ".join(PACKAGES)}
        if not slicer.util.confirmOkCancelDisplay(plain(question.format(**values))):
            self._finish("", isError=False)
            return
        try:
            options = shlex.split(self._ui.torchOptionsEdit.text)
        except ValueError:
            self._finish(_("The options for PyTorch have an unmatched quotation mark."))
            return
        self._maker = EnvironmentMaker(environment, base, options, self._onMakerLine, self._onMade)
        say(self._ui.placeStatusLabel, _("Creating the environment"))
        self._update()
        self._maker.start()

    def _onMakerLine(self, line: str) -> None:
        self._log(line)
        # The status shows only the current step of pip; the rest is in the log.
        if line.lstrip().startswith(("Collecting", "Downloading", "Installing", ">")):
            say(self._ui.placeStatusLabel, _("Creating the environment: {line}").format(line=line.strip()[:90]))

    def _onMade(self, problem: str) -> None:
        self._maker = None
        self._finish(problem)
        if not problem:
            self._onTest()

    def _onRemove(self) -> None:
        environment = self._backend.environment
        question = _("Delete the training environment in {folder} ({megabytes:.0f} MB)?")
        text = question.format(folder=environment.folder, megabytes=environment.megabytes)
        if slicer.util.confirmYesNoDisplay(plain(text)):
            with slicer.util.WaitCursor():
                environment.remove()
            self._finish("", isError=False)

    def _finish(self, sentence: str, isError: bool = True) -> None:
        say(self._ui.placeStatusLabel, sentence, isError=isError and bool(sentence))
        self._update()
        self._onChanged()

    # Testing

    def _onTest(self) -> None:
        launch, launchModule = self._backend.launch, self._backend.launchModule
        self._test.run(
            lambda: launchModule("conresnet_training.cli.needs"),
            _("Checking the required packages"),
            lambda output: self._onNeeds(output, launch),
        )

    def _onNeeds(self, output: str, launch: Callable) -> None:
        problem, summary = needsInWords(output)
        if problem:
            say(self._ui.placeStatusLabel, problem, isError=True)
            return
        self._test.run(
            lambda: launch("--version"),
            _("Starting the backend"),
            lambda version: say(self._ui.placeStatusLabel, f"{lastLine(version)}; {summary}"),
        )


def needsInWords(output: str) -> tuple[str, str]:
    """The answer of ``conresnet_training.cli.needs`` as (what is wrong, or else what is installed)."""
    try:
        found = json.loads(lastLine(output))
    except ValueError:
        return _("This does not run as a Python interpreter; choose another one."), ""
    if not found["python_is_enough"]:
        sentence = _("This is Python {found}, but training needs {least} or later; choose another one.")
        return sentence.format(found=found["python"], least=PYTHON), ""
    if found["problems"]:
        wanted = " ".join(f'"{name}>={PACKAGES[name]}"' for name in found["problems"])
        name, reason = next(iter(found["problems"].items()))
        sentence = _("Missing packages: {names} ({first}: {reason}). Install them with: python -m pip install {wanted}")
        values = {"names": ", ".join(found["problems"]), "first": name, "reason": reason, "wanted": wanted}
        return sentence.format(**values), ""
    devices = ", ".join(found["devices"]) or _("no GPU, trains on the CPU")
    sentence = _("Python {python}, PyTorch {torch}: {devices}.")
    return "", sentence.format(python=found["python"], torch=found["packages"]["torch"], devices=devices)
