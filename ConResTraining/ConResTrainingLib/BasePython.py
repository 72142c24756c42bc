"""A Python that an environment can be made from: one of this computer, or Slicer's own interpreter."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import slicer

from conresnet.needs import PYTHON, is_enough
from ConResSegmentationLib.ChildProcess import ChildProcess, lastLine
from ConResSegmentationLib.ProcessLaunch import ProcessLaunch, variablesOfPython

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
