"""Which Python runs the engine, whether it has what the engine needs, and getting what is missing.

enginePython = EnginePython()                # Slicer's own Python; EnginePython("/path/to/python") another
engine = EngineProcess(enginePython.launch)
enginePython.check(onChecked)                # later: onChecked(EngineCheck)
if enginePython.install(check.missing):      # asks; Slicer's own packages stay as they are
    ...
"""

import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

import conresnet
from conresnet.errors import UserError
from conresnet.needs import PACKAGES, PYTHON, find_packages, missing_packages

from .Processes import ChildProcess, ProcessLaunch, variablesOfPython

SECONDS_TO_CHECK = 60
# Slicer itself is built on these, and another version of them may break it.
_SLICERS_OWN = ("numpy", "SimpleITK")


@dataclass(frozen=True)
class EngineCheck:
    """What a look at the engine's Python has found.

    Args:
        missing: names of the packages that are missing or too old.
        problem: a sentence that says what is wrong and what to do; empty when the engine can run.
        canInstall: whether `EnginePython.install` can get what is missing.
    """

    missing: tuple[str, ...] = ()
    problem: str = ""
    canInstall: bool = False


class EnginePython:
    """The Python that runs the engine.

    Args:
        program: its executable. Defaults to Slicer's own Python. May be changed at any time; a running engine stays.
    """

    def __init__(self, program: str = ""):
        self.program = program
        self._inquiry: ChildProcess | None = None

    @property
    def isSlicers(self) -> bool:
        """Whether it is Slicer's own Python."""
        return not self.program

    def launch(self) -> ProcessLaunch:
        """How the engine's process is started.

        Raises:
            UserError: "engine-python-not-found".
        """
        return self._launchModule("conresnet.worker")

    def check(self, onChecked: Callable[[EngineCheck], None]) -> None:
        """Look what is there, in a process of its own; a check that is still going on is dropped.

        Raises:
            UserError: "engine-python-not-found".
        """
        self.dropCheck()
        launch, isSlicers = self._launchModule("conresnet.needs"), self.isSlicers

        def onEnded(exitCode: int | None, output: str, _errors: str) -> None:
            onChecked(_evaluated(output if exitCode == 0 else "", launch.program, isSlicers))

        self._inquiry = ChildProcess(launch, onEnded, secondsToEnd=SECONDS_TO_CHECK)
        self._inquiry.start()

    def dropCheck(self) -> None:
        """End a check that is going on; nothing is heard of it."""
        if self._inquiry:
            self._inquiry.drop()
            self._inquiry = None

    def install(self, missing: Sequence[str]) -> bool:
        """Install into Slicer's own Python what is missing there, each after asking.

        Returns:
            whether all of it is there now. If not, the user has declined, or has been told what to do.
        """
        rest = [name for name in missing if name not in ("torch", *_SLICERS_OWN)]
        if not self.isSlicers or set(missing) & set(_SLICERS_OWN):
            return False
        if "torch" in missing and not _installTorch():
            return False
        return not rest or _installRest([f"{name}>={PACKAGES[name]}" for name in rest])

    def _launchModule(self, module: str) -> ProcessLaunch:
        program = self.program or shutil.which("PythonSlicer") or ""
        if not program or not (os.path.isfile(program) or shutil.which(program)):
            sentence = _(
                "The Python that shall run the engine, {program}, does not exist; choose another under Advanced."
            )
            raise UserError("engine-python-not-found", sentence.format(program=program or "PythonSlicer"))
        environment = variablesOfPython(self.isSlicers)
        folders = [str(Path(conresnet.__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        environment["PYTHONUTF8"] = "1"
        # Or else a file of the working directory, such as random.py, is taken for the module of that name.
        environment["PYTHONSAFEPATH"] = "1"
        environment["PYTHONFAULTHANDLER"] = "1"
        return ProcessLaunch(program, ("-m", module), environment)


def _evaluated(output: str, program: str, isSlicers: bool) -> EngineCheck:
    lines = output.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        problem = _("{program} does not run as a Python; choose another for the engine.").format(program=program)
        return EngineCheck(problem=problem)
    if not found["python_is_enough"]:
        problem = _("{program} is Python {found}, and the engine needs {least} or newer; choose another.")
        return EngineCheck(problem=problem.format(program=program, found=found["python"], least=PYTHON))
    missing = tuple(found["missing"])
    wanted = " ".join(f'"{name}>={PACKAGES[name]}"' for name in missing)
    if not missing:
        return EngineCheck()
    canInstall = False
    if "torch" in missing and (found.get("platform"), found.get("machine")) == ("darwin", "x86_64"):
        # Slicer for macOS is built for Intel, and PyTorch for Intel Macs ends with 2.2.2. A Python for both kinds of
        # Macs would run as Slicer does.
        wanted = " ".join(f'"{name}>={least}"' for name, least in PACKAGES.items())
        problem = _(
            "PyTorch no longer exists for the Intel Python that Slicer has on a Mac; make a Python for Apple silicon "
            "that has {wanted}, and name it in Engine Python under Advanced."
        )
    elif not isSlicers:
        problem = _("The engine's Python lacks packages. Install them with: {program} -m pip install {wanted}")
    elif set(missing) & set(_SLICERS_OWN):
        problem = _(
            "This Slicer is too old for the engine, which needs {wanted}; use a newer Slicer or another Python."
        )
    else:
        problem = _("The engine needs {wanted}, which can be installed into Slicer's Python now.")
        canInstall = True
    return EngineCheck(missing, problem.format(program=program, wanted=wanted), canInstall)


def _installTorch() -> bool:
    """Through the PyTorch extension, which chooses the build for this computer's graphics card."""
    try:
        import PyTorchUtils
    except ImportError:
        _offerTorchExtension()
        return False
    requirement = f">={PACKAGES['torch']}"
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=requirement)
    except Exception:
        # It ends with an import of PyTorch in Slicer, which may fail where the engine's own process can import it.
        importlib.invalidate_caches()
        if "torch" in missing_packages(find_packages()):
            raise
        logging.exception("Slicer itself cannot import PyTorch.")
        return True
    return torch is not None


def _offerTorchExtension() -> None:
    # It asks by itself, and would offer to restart at once, in front of our own sentence.
    if slicer.app.extensionsManagerModel().installExtensionFromServer("PyTorch", False):
        text = _("The PyTorch extension is installed. Restart Slicer, then segment again.")
    else:
        text = _("The PyTorch extension is not installed. Install it in the Extensions Manager, and restart Slicer.")
    slicer.util.infoDisplay(text)


def _installRest(requirements: Sequence[str]) -> bool:
    question = _("Install {requirements} into Slicer's Python? Nothing else in it is changed.")
    if not slicer.util.confirmOkCancelDisplay(question.format(requirements=", ".join(requirements))):
        return False
    slicer.util.pip_install(f"--no-deps {' '.join(requirements)}")
    return True
