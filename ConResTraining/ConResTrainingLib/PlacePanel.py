"""Where training runs: the module's own environment, which it makes after asking, another Python, or a command."""

import json
import shlex
import sys
from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet_training.cli.needs import PACKAGES, PYTHON
from ConResSegmentationLib.EnginePanel import say, whenPathChanges
from ConResSegmentationLib.Processes import lastLine

from . import TrainingDiagnostics
from .Backend import Backend, BackendTask, Place
from .TrainingEnvironment import BasePython, BasePythonSearch, EnvironmentMaker


class PlacePanel:
    """The widgets of the place.

    Args:
        ui: the module's widgets by name.
        backend: what is set.
        log: called with what the tools print, line by line.
        onChanged: called when another place was set, or the environment is there.
    """

    def __init__(self, ui, backend: Backend, log: Callable[[str], None], onChanged: Callable[[], None]):
        self._ui, self._backend, self._log, self._onChanged = ui, backend, log, onChanged
        self._search: BasePythonSearch | None = None
        self._maker: EnvironmentMaker | None = None
        self._makeText = ui.makeEnvironmentButton.text
        self._test = BackendTask(ui.testPlaceButton, ui.placeStatusLabel, self._onTest, log)
        titles = {
            Place.environment: _("An environment of this module"),
            Place.python: _("Another Python"),
            Place.command: _("Behind a command (ssh, srun)"),
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
        # What is still to be done is seen at once.
        ui.placeCollapsibleButton.collapsed = not backend.problem
        self._update()

    @property
    def isMaking(self) -> bool:
        """Whether the environment is being made."""
        return bool(self._search or self._maker)

    def close(self) -> None:
        """The panel goes: an environment that is half made is given up."""
        self._test.stop()
        if self._search:
            self._search.stop()
        if self._maker:
            self._maker.stop(wait=True)

    def _load(self) -> None:
        kept = TrainingDiagnostics.value("Place", Place.environment.value)
        index = self._ui.placeSelector.findData(kept)
        self._ui.placeSelector.setCurrentIndex(max(index, 0))
        self._ui.trainingPythonPathEdit.currentPath = TrainingDiagnostics.value("Python")
        self._ui.commandEdit.text = TrainingDiagnostics.value("Command")
        self._ui.commandPythonEdit.text = TrainingDiagnostics.value("CommandPython")
        self._ui.torchOptionsEdit.text = TrainingDiagnostics.value("TorchOptions")
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
        TrainingDiagnostics.setValue("Place", self._backend.place.value)
        TrainingDiagnostics.setValue("Python", self._ui.trainingPythonPathEdit.currentPath)
        TrainingDiagnostics.setValue("Command", self._ui.commandEdit.text)
        TrainingDiagnostics.setValue("CommandPython", self._ui.commandPythonEdit.text)
        TrainingDiagnostics.setValue("TorchOptions", self._ui.torchOptionsEdit.text)
        say(self._ui.placeStatusLabel, "")
        self._update()
        self._onChanged()

    def _update(self) -> None:
        ui, place = self._ui, self._backend.place
        shown = {
            Place.environment: (ui.torchOptionsLabel, ui.torchOptionsEdit, ui.makeEnvironmentButton),
            Place.python: (ui.trainingPythonLabel, ui.trainingPythonPathEdit),
            Place.command: (ui.commandLabel, ui.commandEdit, ui.commandPythonLabel, ui.commandPythonEdit),
        }
        for ofPlace, widgets in shown.items():
            for widget in widgets:
                widget.visible = ofPlace is place
        problem = self._backend.problem
        ui.testPlaceButton.enabled = not problem or self._test.isRunning
        tip = _("Start the backend there, and see whether all that it needs is there.")
        ui.testPlaceButton.toolTip = problem or tip
        ui.placeSelector.enabled = not self.isMaking
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
            self._finish(_("Cancelled; no environment was made."), isError=False)
        else:
            self._search = BasePythonSearch(self._onFound)
            say(self._ui.placeStatusLabel, _("Looking for a Python"))
            self._update()
            self._search.start()

    def _onFound(self, base: BasePython | None) -> None:
        self._search = None
        if base is None:
            sentence = _(
                "No Python {least} or newer was found that can make environments; install one from {source}, or "
                "choose another Python above."
            )
            # On a Mac python.org's, which is for both kinds, would run as Slicer does: as Intel's.
            source = "Homebrew" if sys.platform == "darwin" else "python.org"
            self._finish(sentence.format(least=PYTHON, source=source))
            return
        question = _(
            "Make a Python environment from Python {version} in {folder}, and install {packages} into it? Several "
            "gigabytes are downloaded with a PyTorch for CUDA, which pip takes on Linux by default, and a few hundred "
            "megabytes with any other. Slicer's own packages stay as they are."
        )
        environment = self._backend.environment
        values = {"version": base.version, "folder": environment.folder, "packages": ", ".join(PACKAGES)}
        if not slicer.util.confirmOkCancelDisplay(question.format(**values)):
            self._finish("", isError=False)
            return
        try:
            options = shlex.split(self._ui.torchOptionsEdit.text)
        except ValueError:
            self._finish(_("The options for PyTorch have a quotation mark without its partner."))
            return
        self._maker = EnvironmentMaker(environment, base, options, self._onMakerLine, self._onMade)
        say(self._ui.placeStatusLabel, _("Making the environment"))
        self._update()
        self._maker.start()

    def _onMakerLine(self, line: str) -> None:
        self._log(line)
        # The status says no more than what pip is at; the rest is in the log.
        if line.lstrip().startswith(("Collecting", "Downloading", "Installing", ">")):
            say(self._ui.placeStatusLabel, _("Making the environment: {line}").format(line=line.strip()[:90]))

    def _onMade(self, problem: str) -> None:
        self._maker = None
        self._finish(problem)
        if not problem:
            self._onTest()

    def _finish(self, sentence: str, isError: bool = True) -> None:
        say(self._ui.placeStatusLabel, sentence, isError=isError and bool(sentence))
        self._update()
        self._onChanged()

    # Testing

    def _onTest(self) -> None:
        launch, launchModule = self._backend.launch, self._backend.launchModule
        self._test.run(
            lambda: launchModule("conresnet_training.cli.needs"),
            _("Looking for what training needs"),
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
    """What ``conresnet_training.cli.needs`` has answered: (a sentence that says what is wrong, or that all is well)."""
    try:
        found = json.loads(lastLine(output))
    except ValueError:
        return _("This does not run as a Python; choose another."), ""
    if not found["python_is_enough"]:
        sentence = _("This is Python {found}, and training needs {least} or newer; choose another.")
        return sentence.format(found=found["python"], least=PYTHON), ""
    if found["problems"]:
        wanted = " ".join(f'"{name}>={PACKAGES[name]}"' for name in found["problems"])
        name, reason = next(iter(found["problems"].items()))
        sentence = _("It lacks {names} ({first}: {reason}). Install them there: python -m pip install {wanted}")
        values = {"names": ", ".join(found["problems"]), "first": name, "reason": reason, "wanted": wanted}
        return sentence.format(**values), ""
    devices = ", ".join(found["devices"]) or _("no graphics card, it computes on the processor")
    sentence = _("Python {python}, PyTorch {torch}: {devices}.")
    return "", sentence.format(python=found["python"], torch=found["packages"]["torch"], devices=devices)
