"""The module's own Python environment for training, created on request; Slicer's packages are never changed.

It is in the user's application data. A file in it marks it as complete; an environment without the file is incomplete
and is created again. It is based on a Python of this computer, or else on Slicer's own interpreter.
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
from ConResSegmentationLib import Messages
from ConResSegmentationLib.Processes import (
    ChildProcess,
    ProcessLaunch,
    ProcessSteps,
    callLater,
    lastLine,
    pythonEnvironment,
)

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
        isSlicers: whether it needs Slicer's environment variables.
    """

    program: str
    version: str
    isSlicers: bool = False


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
        """Begin, and return at once."""
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


_READY_FILE = "conresnet-ready.json"


class TrainingEnvironment:
    """The environment, which may not exist yet."""

    @property
    def folder(self) -> Path:
        """Its folder in the user's application data, which may not exist yet."""
        data = qt.QStandardPaths.writableLocation(qt.QStandardPaths.GenericDataLocation)
        return Path(data) / "conresnet" / "training-environment"

    @property
    def python(self) -> str:
        """Its python executable."""
        return str(self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

    @property
    def isReady(self) -> bool:
        """Whether it is complete and still exists."""
        return os.path.isfile(self.folder / _READY_FILE) and os.path.isfile(self.python)

    def variables(self) -> dict[str, str]:
        """The environment variables for its Python."""
        try:
            ready = json.loads((self.folder / _READY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ready = {}
        return pythonEnvironment(ready.get("needs_slicers_variables", False))

    @property
    def megabytes(self) -> float:
        """Its size on disk."""
        files = (os.path.join(folder, name) for folder, _folders, names in os.walk(self.folder) for name in names)
        return sum(os.lstat(file).st_size for file in files) / 1e6

    def remove(self) -> None:
        """Delete it, the mark first."""
        (self.folder / _READY_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def markReady(self, base: BasePython) -> None:
        """Mark it as complete."""
        content = {"base": base.program, "python": base.version, "needs_slicers_variables": base.isSlicers}
        with replacing(self.folder / _READY_FILE) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


class EnvironmentMaker:
    """Creates the environment in three processes: an empty environment, PyTorch, the other packages.

    Args:
        environment: what to create; an incomplete one is removed first.
        base: the Python it is based on.
        torchOptions: pip options for PyTorch, such as the index of builds for a GPU.
        onLine: called with each command, and with each line that it prints.
        onEnded: called with a sentence that says what went wrong; empty if nothing did.
    """

    def __init__(
        self,
        environment: TrainingEnvironment,
        base: BasePython,
        torchOptions: Sequence[str],
        onLine: Callable[[str], None],
        onEnded: Callable[[str], None],
    ):
        self._environment, self._base, self._onEnded = environment, base, onEnded
        wanted = {name: f"{name}>={least}" for name, least in PACKAGES.items()}
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
        self._steps = ProcessSteps([ProcessLaunch(*step, variables) for step in steps], onLine, self._onStepsEnded)

    def start(self) -> None:
        """Begin, and return at once."""
        shutil.rmtree(self._environment.folder, ignore_errors=True)
        try:
            self._environment.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sentence = Messages.sentence(write_error(error, self._environment.folder.parent))
            callLater(lambda: self._onEnded(sentence))
            return
        self._steps.start()

    def stop(self, wait: bool = False) -> None:
        """Stop, and remove the incomplete environment."""
        self._steps.stop(wait)
        if wait:
            shutil.rmtree(self._environment.folder, ignore_errors=True)

    def _onStepsEnded(self, exitCode: int | None, reason: str) -> None:
        problem = ""
        if self._steps.isStopped:
            problem = _("Canceled; no environment was created.")
        elif exitCode != 0:
            problem = _("The environment could not be created: {reason}").format(reason=reason)
        if problem:
            shutil.rmtree(self._environment.folder, ignore_errors=True)
        else:
            self._environment.markReady(self._base)
        self._onEnded(problem)
