"""A Python that an environment can be made from: one of this computer, or Slicer's own interpreter.

A Python environment of the training backend's own, made on request: Slicer's packages stay as they are.

It lies in the user's application data. A file in it says that it is whole; one that lacks the file was left half-made
and is made anew.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.files import replacing, write_error
from conresnet.needs import PYTHON, is_enough
from conresnet_training.cli.needs import PACKAGES
from ConResSegmentationLib.Processes import ChildProcess, ProcessLaunch, lastLine, variablesOfPython

# What every candidate is asked; runs on any Python 3. Debian's comes without ensurepip, and makes no environment; for
# one that runs as on an Intel Mac there is no PyTorch.
_QUESTION = """
import json, platform, sys, importlib.util as u
able = all(u.find_spec(name) for name in ("venv", "ensurepip"))
able = able and (sys.platform, platform.machine()) != ("darwin", "x86_64")
print(json.dumps({"program": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3], "able": able}))
"""


@dataclass(frozen=True)
class BasePython:
    """A Python that has answered.

    Args:
        program: its executable.
        version: such as "3.12.4".
        isSlicers: whether it needs the variables of Slicer's own process to run.
    """

    program: str
    version: str
    isSlicers: bool = False


class BasePythonSearch:
    """Asks the Pythons of this computer, one after the other, for the first that can make an environment.

    The user's own come first: on Windows nothing can be made from Slicer's, whose executable has another name than the
    one that an environment looks for.

    Args:
        onFound: called once with a BasePython, or with None where there is none.
    """

    def __init__(self, onFound: Callable[[BasePython | None], None]):
        self._onFound = onFound
        self._process: ChildProcess | None = None
        self._candidates = _candidates()

    def start(self) -> None:
        """Begin; the answer is heard later."""
        self._next()

    def stop(self) -> None:
        """End without an answer."""
        self._onFound = lambda _found: None
        self._candidates = []
        if self._process:
            self._process.stop(wait=True)

    def _next(self) -> None:
        if not self._candidates:
            self._onFound(None)
            return
        words, isSlicers = self._candidates.pop(0)
        variables = variablesOfPython(isSlicers)
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
    """(program and first arguments, whether it is Slicer's), the best first."""
    paths = [slicer.util.startupEnvironment().get("PATH")]
    if sys.platform == "darwin":
        # Homebrew's and python.org's, which a Slicer that was started from the Finder does not have on its path.
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
