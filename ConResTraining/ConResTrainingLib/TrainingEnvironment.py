"""A Python environment of the training backend's own, made on request: Slicer's packages stay as they are.

It lies in the user's application data. A file in it says that it is whole; one that lacks the file was left half-made
and is made anew.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import qt
from slicer.i18n import tr as _

from conresnet.atomic_file import replacing, write_error
from conresnet_training.needs import PACKAGES
from ConResSegmentationLib.ChildProcess import ChildProcess, lastLine
from ConResSegmentationLib.ProcessLaunch import ProcessLaunch, variablesOfPython

from .BasePython import BasePython

_READY_FILE = "conresnet-ready.json"


class TrainingEnvironment:
    """The environment, which may not be there yet.

    Args:
        folder: where it lies. Defaults to a folder of the user's application data.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        if self._folder:
            return self._folder
        data = qt.QStandardPaths.writableLocation(qt.QStandardPaths.GenericDataLocation)
        return Path(data) / "conresnet" / "training-environment"

    @property
    def python(self) -> str:
        """Its python executable."""
        return str(self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

    @property
    def isReady(self) -> bool:
        """Whether it was made to its end and is still there."""
        return (self.folder / _READY_FILE).is_file() and os.path.isfile(self.python)

    def variables(self) -> dict[str, str]:
        """The environment variables that its Python starts with."""
        try:
            ready = json.loads((self.folder / _READY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ready = {}
        return variablesOfPython(ready.get("needs_slicers_variables", False))

    def markReady(self, base: BasePython) -> None:
        """Say that it is whole."""
        content = {"base": base.program, "python": base.version, "needs_slicers_variables": base.isSlicers}
        with replacing(self.folder / _READY_FILE) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


class EnvironmentMaker:
    """Makes the environment: an empty one, then PyTorch, then the rest, each in a process of its own.

    Args:
        environment: what to make; a half-made one is removed first.
        base: the Python that it is made from.
        torchOptions: options of pip for PyTorch, such as the address of builds for a graphics card.
        onLine: called with each line that the tools print, and with what they are called by.
        onEnded: called with a sentence that says what went wrong; empty when all is well.
        packages: what is installed, by name with the least version. Defaults to what the backend needs.
    """

    def __init__(
        self,
        environment: TrainingEnvironment,
        base: BasePython,
        torchOptions: Sequence[str],
        onLine: Callable[[str], None],
        onEnded: Callable[[str], None],
        packages: dict[str, str] = PACKAGES,
    ):
        self._environment, self._base = environment, base
        self._onLine, self._onEnded = onLine, onEnded
        wanted = {name: f"{name}>={least}" for name, least in packages.items()}
        torch = [wanted.pop("torch")] if "torch" in wanted else []
        self._isStopped = False
        self._process: ChildProcess | None = None
        pip = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input")
        # PyTorch comes first and by itself, so that its options count for nothing else.
        self._steps = [
            (base.program, ("-m", "venv", str(environment.folder))),
            *([(environment.python, (*pip, *torchOptions, *torch))] if torch else []),
            *([(environment.python, (*pip, *wanted.values()))] if wanted else []),
        ]

    def start(self) -> None:
        """Begin; what becomes of it is heard later."""
        shutil.rmtree(self._environment.folder, ignore_errors=True)
        try:
            self._environment.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sentence = write_error(error, self._environment.folder.parent).message
            qt.QTimer.singleShot(0, lambda: self._onEnded(sentence))
            return
        self._next()

    def stop(self, wait: bool = False) -> None:
        """End what runs; nothing that could pass for an environment stays."""
        self._isStopped = True
        if self._process:
            self._process.stop(wait)
        if wait:
            shutil.rmtree(self._environment.folder, ignore_errors=True)

    def _next(self) -> None:
        program, arguments = self._steps.pop(0)
        variables = variablesOfPython(self._base.isSlicers)
        variables.pop("PYTHONPATH", None)
        variables["PYTHONUTF8"] = variables["PYTHONSAFEPATH"] = "1"
        self._onLine(f"> {program} {' '.join(arguments)}")
        self._process = ChildProcess(ProcessLaunch(program, arguments, variables), self._onStepEnded, self._onLine)
        self._process.start()

    def _onStepEnded(self, exitCode: int | None, output: str, errors: str) -> None:
        if exitCode == 0 and self._steps and not self._isStopped:
            self._next()
            return
        problem = ""
        if self._isStopped:
            problem = _("Cancelled; no environment was made.")
        elif exitCode != 0:
            reason = lastLine(errors, output)
            problem = _("The environment could not be made: {reason}").format(reason=reason)
        if problem:
            shutil.rmtree(self._environment.folder, ignore_errors=True)
        else:
            self._environment.markReady(self._base)
        self._onEnded(problem)
