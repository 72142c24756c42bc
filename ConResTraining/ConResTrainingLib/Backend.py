"""Where the training backend runs, and how its commands are started there.

backend = Backend()
backend.place, backend.python = Place.python, "/path/to/python"
launch = backend.launch("train", plan, "--output", run)     # a ProcessLaunch: program, arguments, environment

The folders that hold the packages conresnet and conresnet_training are handed over in PYTHONPATH, so that nothing of
ours is installed anywhere. No command goes through a shell of this computer.

A command of the backend that a button starts, and stops while it runs.
"""

import enum
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import slicer
from slicer.i18n import tr as _

import conresnet
import conresnet_training
from conresnet.errors import UserError
from ConResSegmentationLib import Messages
from ConResSegmentationLib.EnginePanel import say
from ConResSegmentationLib.Processes import ChildProcess, ProcessLaunch, lastLine, variablesOfPython

from .TrainingEnvironment import TrainingEnvironment

# These hand what they are given to a shell on the other side, which would divide a path at its blanks.
_HAND_TO_A_SHELL = {"ssh", "autossh", "plink"}


class Place(enum.Enum):
    """Which Python runs the backend."""

    environment = "environment"
    python = "python"
    command = "command"


@dataclass
class Backend:
    """The training backend, wherever it runs.

    Args:
        place: in the module's own environment, in another Python, or behind a command.
        python: the executable of another Python; with a command, the Python as the other side names it.
        command: what is put before the Python, such as ``ssh host`` or ``srun -c 8``.
        environment: the module's own environment.
    """

    place: Place = Place.environment
    python: str = ""
    command: str = ""
    environment: TrainingEnvironment = field(default_factory=TrainingEnvironment)

    @property
    def problem(self) -> str:
        """Why nothing can be started as it is set, as a sentence; empty when it can be tried."""
        try:
            self.launch("--version")
        except UserError as error:
            return error.message
        return ""

    def launch(self, *arguments: str) -> ProcessLaunch:
        """How a command of the backend is started.

        Raises:
            UserError: ``training-environment-missing``, ``training-python-not-found`` or ``training-command-invalid``.
        """
        return self.launchModule("conresnet_training", *arguments)

    def launchModule(self, module: str, *arguments: str) -> ProcessLaunch:
        """As `launch`, for any module of the two packages."""
        words = ("-m", module, *map(str, arguments))
        if self.place is Place.command:
            return self._behindCommand(words)
        if self.place is Place.environment:
            if not self.environment.isReady:
                sentence = _("There is no training environment yet; make it, or choose another Python.")
                raise UserError("training-environment-missing", sentence)
            return ProcessLaunch(self.environment.python, words, {**self.environment.variables(), **_ours()})
        if not self.python or not (os.path.isfile(self.python) or shutil.which(self.python)):
            sentence = _("The Python that shall train, {program}, does not exist; choose another.")
            if not self.python:
                sentence = _("Choose the python executable that shall train.")
            raise UserError("training-python-not-found", sentence.format(program=self.python), program=self.python)
        return ProcessLaunch(self.python, words, {**variablesOfPython(isSlicers=False), **_ours()})

    def _behindCommand(self, words: tuple[str, ...]) -> ProcessLaunch:
        try:
            # On Windows a backslash divides folders.
            prefix = shlex.split(self.command.replace("\\", "\\\\") if os.name == "nt" else self.command)
        except ValueError:
            prefix = []
        program = shutil.which(prefix[0]) if prefix else None
        if program is None:
            sentence = _("The command {command} cannot be started; check its spelling.")
            if not self.command.strip():
                sentence = _("Name the command that goes before the Python, such as: ssh host")
            raise UserError("training-command-invalid", sentence.format(command=self.command), command=self.command)
        # The variables of this process do not reach the other side: they go along as words.
        inner = ["env", *(f"{name}={value}" for name, value in _ours().items()), self.python or "python3", *words]
        # Behind others too, as in nice ssh host; where one leads to another, each shell takes its quotes away.
        for word in prefix:
            if Path(word).stem.lower() in _HAND_TO_A_SHELL:
                inner = [shlex.quote(given) for given in inner]
        return ProcessLaunch(program, (*prefix[1:], *inner), slicer.util.startupEnvironment())


def packageFolders() -> list[str]:
    """The folders that hold the backend's two packages: two in a source tree, one and the same once installed."""
    return list(
        dict.fromkeys(str(Path(package.__file__).resolve().parents[1]) for package in (conresnet, conresnet_training))
    )


def _ours() -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join(packageFolders()),
        "PYTHONUTF8": "1",
        # Or else a file of the working directory, such as random.py, is taken for the module of that name.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


class BackendTask:
    """The button, the label that says how it goes, and the process.

    Args:
        button: started by a click; while the command runs it is called Cancel.
        label: says what goes on, and the sentence with which a command has failed.
        onClicked: called by a click that shall start something.
        onLine: called with each line that the command prints.
    """

    def __init__(self, button, label, onClicked: Callable[[], None], onLine: Callable[[str], None]):
        self._button, self._label, self._onClicked, self._onLine = button, label, onClicked, onLine
        self._text = button.text
        self._process: ChildProcess | None = None
        button.connect("clicked(bool)", self._onButton)

    @property
    def isRunning(self) -> bool:
        """Whether the command is at work."""
        return self._process is not None

    def run(
        self,
        launch: Callable[[], ProcessLaunch],
        text: str,
        onDone: Callable[[str], None],
        doneCodes: tuple[int, ...] = (0,),
    ) -> None:
        """Start a command. When it has ended, the label shows its closing sentence.

        Args:
            launch: says how; may raise UserError, which is shown.
            text: what goes on, for the label.
            onDone: called with the standard output when it ended with one of ``doneCodes``.
        """
        try:
            how = launch()
        except UserError as error:
            say(self._label, Messages.sentence(error), isError=True)
            return
        self._onLine(f"> {how.program} {' '.join(how.arguments)}")
        self._process = ChildProcess(how, lambda *ended: self._onEnded(onDone, doneCodes, *ended), self._onLine)
        self._button.text = _("Cancel")
        say(self._label, text)
        self._process.start()

    def stop(self) -> None:
        """Stop the command and wait until it has gone, without telling anybody; the module is about to end."""
        if self._process:
            self._process.stop(wait=True)

    def _onButton(self) -> None:
        if self._process:
            self._process.stop()
        else:
            self._onClicked()

    def _onEnded(
        self, onDone: Callable[[str], None], doneCodes: tuple[int, ...], exitCode: int | None, output: str, errors: str
    ) -> None:
        wasStopped = self._process.isStopped
        self._process = None
        self._button.text = self._text
        if wasStopped:
            say(self._label, _("Cancelled."))
            return
        sentence = lastLine(errors, output) or _("The command ended without a word; see the log.")
        say(self._label, sentence, isError=exitCode != 0)
        if exitCode in doneCodes:
            onDone(output)
