"""Where the training backend runs, how its commands are started there, and the buttons that run them.

backend = Backend()
backend.place, backend.python = Place.python, "/path/to/python"
launch = backend.launch("train", plan, "--output", run)     # a ProcessLaunch: program, arguments, environment

PYTHONPATH names the folders of the packages conresnet and conresnet_training, so that nothing has to be installed. No
command goes through a shell of this computer.
"""

import contextlib
import enum
import json
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import qt
import slicer
from slicer.i18n import tr as _

import conresnet
import conresnet_training
from conresnet.errors import UserError
from conresnet.files import lock, move, write_text
from ConResSegmentationLib.Processes import ChildProcess, ProcessLaunch, lastLine, packageVariables, pythonEnvironment
from ConResSegmentationLib.Widgets import errorSentence, offer, say

_READY_FILE = "conresnet-ready.json"
# These pass their arguments to a shell on the remote machine, which would split a path at spaces.
_HAND_TO_A_SHELL = {"ssh", "autossh", "plink"}


class TrainingEnvironment:
    """The module's own Python environment for training, which may not exist yet; Slicer's packages are never changed.

    It is in the user's application data. A file in it marks it as complete; an environment without the file is
    incomplete and is created again.
    """

    def __init__(self) -> None:
        self._owner: BinaryIO | None = None

    @property
    def folder(self) -> Path:
        """Its folder in the user's application data, which may not exist yet."""
        data = qt.QStandardPaths.writableLocation(qt.QStandardPaths.GenericDataLocation)
        return Path(data) / "conresnet" / "training-environment"

    @property
    def python(self) -> str:
        return str(self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

    @property
    def isReady(self) -> bool:
        """Whether it is complete and still exists."""
        return os.path.isfile(self.folder / _READY_FILE) and os.path.isfile(self.python)

    def variables(self) -> dict[str, str]:
        try:
            ready = json.loads((self.folder / _READY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ready = {}
        return pythonEnvironment(ready.get("needs_slicers_variables", False))

    def remove(self) -> None:
        """Delete it, the mark first."""
        (self.folder / _READY_FILE).unlink(missing_ok=True)
        for folder in (self.folder, self._earlier):
            shutil.rmtree(folder, ignore_errors=True)

    def setAside(self) -> None:
        """Make room for a new one: a complete one is kept under another name, and an incomplete one is deleted.

        The new one cannot be made under that name, because an environment contains its own path.

        Raises:
            OSError: on Windows, it is in use.
        """
        self._own()
        if self.isReady:
            shutil.rmtree(self._earlier, ignore_errors=True)
            move(self.folder, self._earlier)
        shutil.rmtree(self.folder, ignore_errors=True)

    def putBack(self) -> None:
        """If the new one is incomplete, delete it, and use the one that was set aside again, if any."""
        if not self.isReady:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                move(self._earlier, self.folder)
        self._disown()

    def recover(self) -> None:
        """Put back what was set aside by a Slicer that was killed, unless another Slicer is creating a new one."""
        if self._owner is None and os.path.isdir(self._earlier) and self._own():
            self.putBack()

    def markReady(self, base: str, version: str, isSlicers: bool) -> None:
        """Mark it as complete, based on a Python, which may be Slicer's; the one that was set aside is deleted.

        Raises:
            UserError: the mark cannot be written.
        """
        content = {"base": base, "python": version, "needs_slicers_variables": isSlicers}
        write_text(self.folder / _READY_FILE, json.dumps(content))
        shutil.rmtree(self._earlier, ignore_errors=True)
        self._disown()

    def _own(self) -> bool:
        """Lock a file next to it, so that other Slicers leave it alone; returns whether that was possible."""
        try:
            owner = open(self._ownerFile, "ab")
            lock(owner.fileno(), inherited=False)
        except OSError:
            return False
        self._owner = owner
        return True

    def _disown(self) -> None:
        if self._owner:
            self._owner.close()
            self._owner = None
            self._ownerFile.unlink(missing_ok=True)

    @property
    def _ownerFile(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-owner")

    @property
    def _earlier(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-earlier")


class Place(enum.Enum):
    """Which Python runs the backend."""

    environment = "environment"
    python = "python"
    command = "command"


@dataclass
class Backend:
    """The training backend.

    Args:
        place: the module's own environment, another Python, or a command prefix.
        python: executable of another Python; with a command prefix, path to python on the remote machine.
        command: the command prefix, such as ``ssh host`` or ``srun -c 8``.
        environment: the module's own environment.
        log: called with each line that a command prints.
        tasks: the tasks that are running.
    """

    place: Place = Place.environment
    python: str = ""
    command: str = ""
    environment: TrainingEnvironment = field(default_factory=TrainingEnvironment)
    log: Callable[[str], None] = logging.info
    tasks: set = field(default_factory=set)

    @property
    def problem(self) -> str:
        """Why nothing can be started with these settings, as a sentence; empty if it can be tried."""
        try:
            self.launch("--version")
        except UserError as error:
            return errorSentence(error)
        return ""

    @property
    def program(self) -> str:
        """The Python executable, as it is called on the computer that runs the backend."""
        if self.place is Place.environment:
            return self.environment.python
        return self.python or ("python3" if self.place is Place.command else "")

    def launch(self, *arguments: str) -> ProcessLaunch:
        """How a command of the backend is started.

        Raises:
            UserError: ``training-environment-missing``, ``training-python-missing``, ``training-python-not-found``,
                ``training-command-missing`` or ``training-command-invalid``.
        """
        return self.launchModule("conresnet_training", *arguments)

    def launchModule(self, module: str, *arguments: str) -> ProcessLaunch:
        """As `launch`, for any module of the two packages."""
        words = ("-m", module, *map(str, arguments))
        if self.place is Place.command:
            return self._behindCommand(words)
        if self.place is Place.environment:
            if not self.environment.isReady:
                raise UserError("training-environment-missing")
            return ProcessLaunch(self.program, words, {**self.environment.variables(), **_ours()})
        if not self.python:
            raise UserError("training-python-missing")
        if not (os.path.isfile(self.python) or shutil.which(self.python)):
            raise UserError("training-python-not-found", program=self.python)
        return ProcessLaunch(self.python, words, {**pythonEnvironment(isSlicers=False), **_ours()})

    def _behindCommand(self, words: tuple[str, ...]) -> ProcessLaunch:
        if not self.command.strip():
            raise UserError("training-command-missing")
        try:
            # On Windows a backslash separates folders.
            prefix = shlex.split(self.command.replace("\\", "\\\\") if os.name == "nt" else self.command)
        except ValueError:
            prefix = []
        program = shutil.which(prefix[0]) if prefix else None
        if program is None:
            raise UserError("training-command-invalid", command=self.command)
        # Environment variables of this process do not reach the remote machine: they are passed as arguments.
        inner = ["env", *(f"{name}={value}" for name, value in _ours().items()), self.program, *words]
        # Also within a prefix, as in "nice ssh host". Each shell in a chain removes one level of quotes.
        for word in prefix:
            if Path(word).stem.lower() in _HAND_TO_A_SHELL:
                inner = [shlex.quote(given) for given in inner]
        return ProcessLaunch(program, (*prefix[1:], *inner), slicer.util.startupEnvironment())


def _ours() -> dict[str, str]:
    """The variables for the backend's two packages, in two folders of a source tree or in one after installation."""
    folders = [str(Path(package.__file__).resolve().parents[1]) for package in (conresnet, conresnet_training)]
    return {**packageVariables(dict.fromkeys(folders)), "PYTHONUNBUFFERED": "1"}


class BackendTask:
    """A command of the backend that a button starts, and cancels while it runs.

    Args:
        backend: where the command runs.
        button: its text is "Cancel" while the command runs.
        label: shows what is being done, and the command's closing sentence.
        onClicked: called by a click when no command is running.
        onIdle: called when a command has ended, failed and canceled ones included.
        about: returns what a command is about, such as a folder; if this has changed when the command ends, its result
            and closing sentence are not shown.
    """

    def __init__(
        self,
        backend: Backend,
        button,
        label,
        onClicked: Callable[[], None],
        onIdle: Callable[[], None] = lambda: None,
        about: Callable[[], object] = lambda: None,
    ):
        self._backend, self._button, self._label = backend, button, label
        self._onClicked, self._onIdle, self._text = onClicked, onIdle, button.text
        self._about = about
        self._subject: object = None
        self._said = ""
        self._process: ChildProcess | None = None
        button.connect("clicked(bool)", self._onButton)

    @property
    def isRunning(self) -> bool:
        return self._process is not None

    def offer(self, problem: str, tip: str) -> None:
        """Enable the button if there is no problem, or to cancel, and explain it in its tooltip."""
        # A button that is disabled even for a moment loses the focus, and the click that has begun on it.
        offer(self._button, "" if self.isRunning else problem, problem or tip)

    def run(
        self,
        arguments: Sequence[str],
        text: str,
        onDone: Callable[[str], None],
        doneCodes: tuple[int, ...] = (0,),
        module: str = "conresnet_training",
        name: str = "",
    ) -> None:
        """Start a command. When it has ended, the label shows its closing sentence.

        Args:
            arguments: the command and its arguments.
            text: what is being done, for the label.
            onDone: called with the standard output if the exit code is one of ``doneCodes``.
            name: what the command is about. If something else is chosen when it ends, its result is used all the same,
                and its closing sentence starts with this name.
        """
        try:
            launch = self._backend.launchModule(module, *arguments)
        except UserError as error:
            say(self._label, error)
            return
        self._backend.log(f"> {launch}")
        self._subject, self._said = self._about(), text
        onEnded = partial(self._onEnded, onDone, doneCodes, name)
        self._process = ChildProcess(launch, onEnded, self._backend.log)
        self._backend.tasks.add(self)
        self._button.text = _("Cancel")
        say(self._label, text)
        self._process.start()

    def stop(self) -> None:
        """Stop the command and wait until it has ended; for when the module is about to end."""
        if self._process:
            self._process.stop(wait=True)

    def _onButton(self) -> None:
        if self._process:
            self._process.stop()
        else:
            self._onClicked()

    def _onEnded(
        self,
        onDone: Callable[[str], None],
        doneCodes: tuple[int, ...],
        name: str,
        exitCode: int | None,
        output: str,
        errors: str,
    ) -> None:
        wasStopped = self._process.isStopped
        self._process = None
        self._backend.tasks.discard(self)
        self._button.text = self._text
        self._onIdle()
        if wasStopped:
            say(self._label, _("Canceled."))
            return
        isOther = self._about() != self._subject
        if isOther and not name:
            if self._label.text == self._said:
                say(self._label, "")
            return
        sentence = lastLine(errors, output) or _("The command exited without a message; see the log.")
        say(self._label, f"{name}: {sentence}" if isOther else sentence, isError=exitCode != 0)
        if exitCode in doneCodes:
            onDone(output)
