"""The section Where to run: the module's own environment, another Python, or a command prefix.

The environment is created on request, from a Python of this computer or else from Slicer's own interpreter.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import write_error
from conresnet.needs import PYTHON, TRAINING_PACKAGES, is_enough, problem_of, read_report
from ConResSegmentationLib.Processes import (
    ChildProcess,
    ProcessLaunch,
    ProcessSteps,
    callLater,
    lastLine,
    pythonEnvironment,
)
from ConResSegmentationLib.Widgets import errorSentence, megabytesOf, plain, say, whenPathChanges

from .Backend import Backend, BackendTask, Place, TrainingEnvironment

# Every candidate runs this, on any Python 3. Debian's comes without ensurepip and cannot create environments; there is
# no PyTorch for a Python that runs for Intel on a Mac.
_QUESTION = """
import json, platform, sys, importlib.util as u
able = all(u.find_spec(name) for name in ("venv", "ensurepip"))
able = able and (sys.platform, platform.machine()) != ("darwin", "x86_64")
print(json.dumps({"program": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3], "able": able}))
"""


@dataclass(frozen=True)
class BasePython:
    """A Python that can create environments.

    Args:
        program: its executable.
        version: such as "3.12.4".
        isSlicers: whether it is Slicer's own, which needs Slicer's variables.
    """

    program: str
    version: str
    isSlicers: bool = False


class PlacePanel:
    """The widgets of the place.

    Args:
        onChanged: called when the settings have changed, or the environment is ready.
        isTraining: whether a training that may use the environment is running.
    """

    def __init__(self, section, backend: Backend, onChanged: Callable[[], None], isTraining: Callable[[], bool]):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._onChanged, self._isTraining = backend, onChanged, isTraining
        self._search: BasePythonSearch | None = None
        self._maker: EnvironmentMaker | None = None
        self._makeText = ui.makeEnvironmentButton.text
        # Keys are the names of the settings.
        self._edits = {
            "Command": ui.commandEdit,
            "CommandPython": ui.commandPythonEdit,
            "TorchOptions": ui.torchOptionsEdit,
        }
        self._test = BackendTask(
            backend,
            ui.testPlaceButton,
            ui.placeStatusLabel,
            self._onTest,
            about=lambda: (backend.place, backend.python, backend.command),
        )
        titles = {
            Place.environment: _("Environment of this module"),
            Place.python: _("Another Python"),
            Place.command: _("Command prefix (ssh, srun)"),
        }
        for place, title in titles.items():
            ui.placeSelector.addItem(title, place.value)
        backend.environment.recover()
        self._load()
        ui.placeSelector.connect("currentIndexChanged(int)", self._onEdited)
        whenPathChanges(ui.trainingPythonPathEdit, self._onEdited)
        for edit in self._edits.values():
            edit.connect("textChanged(QString)", self._onEdited)
        ui.makeEnvironmentButton.connect("clicked(bool)", self._onMake)
        ui.removeEnvironmentButton.connect("clicked(bool)", self._onRemove)
        # Open it if something still has to be set up.
        section.collapsed = not backend.problem
        self._update()

    @property
    def isMaking(self) -> bool:
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
        for name, edit in self._edits.items():
            edit.text = slicer.util.settingsValue(f"ConResTraining/{name}", "")
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
        for name, edit in self._edits.items():
            slicer.app.userSettings().setValue(f"ConResTraining/{name}", edit.text)
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
        tip = _("Start the backend with these settings and check that the required packages are installed.")
        self._test.offer(problem, tip)
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
            self._finish(_canceled(), isError=False)
        else:
            self._search = BasePythonSearch(self._onFound)
            say(self._ui.placeStatusLabel, _("Looking for a Python interpreter"))
            self._update()
            self._search.start()

    def _onFound(self, base: BasePython | None) -> None:
        self._search = None
        if self._isInUse():
            return
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
        values = {"version": base.version, "folder": environment.folder, "packages": ", ".join(TRAINING_PACKAGES)}
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
        self._backend.log(line)
        # The status shows only the current step of pip; the rest is in the log.
        if line.lstrip().startswith(("Collecting", "Downloading", "Installing", ">")):
            say(self._ui.placeStatusLabel, _("Creating the environment: {line}").format(line=line.strip()[:90]))

    def _onMade(self, problem: str) -> None:
        self._maker = None
        self._finish(problem)
        if not problem:
            self._onTest()

    def _onRemove(self) -> None:
        if self._isInUse():
            return
        environment = self._backend.environment
        question = _("Delete the training environment in {folder} ({megabytes:.0f} MB)?")
        text = question.format(folder=environment.folder, megabytes=megabytesOf(environment.folder))
        if slicer.util.confirmYesNoDisplay(plain(text)):
            with slicer.util.WaitCursor():
                environment.remove()
            self._finish("", isError=False)

    def _isInUse(self) -> bool:
        """Whether deleting the environment could break what is running, which is then said."""
        isInUse = self._backend.environment.isReady and (bool(self._backend.tasks) or self._isTraining())
        if isInUse:
            self._finish(_("The environment may be in use. First stop the training run or command."))
        return isInUse

    def _finish(self, sentence: str, isError: bool = True) -> None:
        say(self._ui.placeStatusLabel, sentence, isError=isError and bool(sentence))
        self._update()
        self._onChanged()

    # Testing

    def _onTest(self) -> None:
        text = _("Checking the required packages")
        self._test.run(("training",), text, self._onNeeds, module="conresnet.needs")

    def _onNeeds(self, output: str) -> None:
        found = read_report(output)
        problem = problem_of(found, TRAINING_PACKAGES, self._backend.program)
        if problem:
            say(self._ui.placeStatusLabel, problem)
            return
        devices = ", ".join(found["devices"]) or _("no GPU, trains on the CPU")
        sentence = _("Python {python}, PyTorch {torch}: {devices}.")
        summary = sentence.format(python=found["python"], torch=found["packages"]["torch"], devices=devices)
        self._test.run(
            ("--version",),
            _("Starting the backend"),
            lambda version: say(self._ui.placeStatusLabel, f"{lastLine(version)}; {summary}"),
        )


class BasePythonSearch:
    """Tries the Pythons of this computer one after another until one can create an environment.

    The user's own come first. On Windows Slicer's cannot be used: environments look for an executable of another name.

    Args:
        onFound: called once with a BasePython, or None if there is none.
    """

    def __init__(self, onFound: Callable[[BasePython | None], None]):
        self._onFound = onFound
        self._process: ChildProcess | None = None
        self._candidates = _candidates()

    def start(self) -> None:
        self._next()

    def stop(self) -> None:
        """Stop without calling `onFound`."""
        self._onFound = lambda _found: None
        self._candidates = []
        if self._process:
            self._process.stop(wait=True)

    def _next(self) -> None:
        if not self._candidates:
            self._onFound(None)
            return
        words, isSlicers = self._candidates.pop(0)
        variables = pythonEnvironment(isSlicers)
        variables["PYTHONUTF8"] = variables["PYTHONSAFEPATH"] = "1"
        launch = ProcessLaunch(words[0], (*words[1:], "-c", _QUESTION), variables)
        self._process = ChildProcess(launch, lambda code, output, _errors: self._onAnswer(code, output, isSlicers))
        self._process.start()

    def _onAnswer(self, exitCode: int | None, output: str, isSlicers: bool) -> None:
        try:
            answer = json.loads(lastLine(output)) if exitCode == 0 else {}
        except ValueError:
            answer = {}
        if answer.get("able") and is_enough(answer["version"], PYTHON):
            self._onFound(BasePython(answer["program"], answer["version"], isSlicers))
        else:
            self._next()


def _candidates() -> list[tuple[list[str], bool]]:
    """(program and first arguments, whether it is Slicer's), best first."""
    paths = [slicer.util.startupEnvironment().get("PATH")]
    if sys.platform == "darwin":
        # Homebrew and python.org, which are not in the PATH of a Slicer that was started from the Finder.
        paths.append("/opt/homebrew/bin:/usr/local/bin")
    names = [["python3.12"], ["python3.11"], ["python3.13"], ["python3"], ["python"]]
    if os.name == "nt":
        names = [["py", "-3.12"], ["py", "-3.11"], ["py", "-3"], ["python"]]
    found = [([shutil.which(name, path=path), *options], False) for path in paths for name, *options in names]
    found = [(words, isSlicers) for words, isSlicers in found if words[0]]
    slicers = os.path.join(slicer.app.slicerHome, "bin", "python-real")
    if os.name != "nt" and os.path.isfile(slicers):
        found.append(([slicers], True))
    return found


def _canceled() -> str:
    return _("Canceled; no environment was created.")


class EnvironmentMaker(ProcessSteps):
    """Creates the environment in three processes: an empty environment, PyTorch, the other packages.

    Args:
        environment: what to create; it replaces an earlier one only when it is complete.
        base: the Python it is based on.
        torchOptions: pip options for PyTorch, such as the index of builds for a GPU.
        onLine, onEnded: see `ProcessSteps`.
    """

    def __init__(
        self,
        environment: TrainingEnvironment,
        base: BasePython,
        torchOptions: Sequence[str],
        onLine: Callable[[str], None],
        onEnded: Callable[[str], None],
    ):
        self._environment, self._base, self._onMade = environment, base, onEnded
        wanted = {name: f"{name}>={least}" for name, least in TRAINING_PACKAGES.items()}
        torch = wanted.pop("torch")
        pip = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input")
        # PyTorch comes first and alone, so that its options apply to nothing else.
        steps = [
            (base.program, ("-m", "venv", str(environment.folder))),
            (environment.python, (*pip, *torchOptions, torch)),
            *([(environment.python, (*pip, *wanted.values()))] if wanted else []),
        ]
        variables = pythonEnvironment(base.isSlicers)
        variables.pop("PYTHONPATH", None)
        variables["PYTHONUTF8"] = variables["PYTHONSAFEPATH"] = "1"
        launches = [ProcessLaunch(*step, variables) for step in steps]
        failed = _("The environment could not be created: {reason}")
        super().__init__(launches, onLine, self._onStepsEnded, _canceled(), failed)

    def start(self) -> None:
        try:
            self._environment.folder.parent.mkdir(parents=True, exist_ok=True)
            self._environment.setAside()
        except OSError as error:
            sentence = errorSentence(write_error(error, self._environment.folder.parent))
            callLater(lambda: self._onMade(sentence))
            return
        super().start()

    def stop(self, wait: bool = False) -> None:
        """Stop; the incomplete environment is removed, and an earlier one is used again."""
        super().stop(wait)
        if wait:
            self._environment.putBack()

    def _onStepsEnded(self, problem: str) -> None:
        try:
            if not problem:
                self._environment.markReady(self._base.program, self._base.version, self._base.isSlicers)
        except UserError as error:
            problem = errorSentence(error)
        if problem:
            self._environment.putBack()
        self._onMade(problem)
