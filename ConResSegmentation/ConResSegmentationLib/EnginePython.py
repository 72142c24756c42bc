"""The Python that runs the engine, here or on a server: how it is started, whether it has the required packages, and
installing them."""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

import conresnet
from conresnet.errors import UserError
from conresnet.needs import ENGINE_PACKAGES, PYTHON, problem_of, read_report, requirements
from conresnet.worker import PROTOCOL

from .Processes import (
    ChildProcess,
    ProcessLaunch,
    ProcessSteps,
    endingOf,
    lastLine,
    packageVariables,
    pythonEnvironment,
)
from .Widgets import errorSentence

SECONDS_TO_CHECK = 60
_PYTHON_NAME = re.compile(r"python|pypy|^py(\.exe)?$", re.IGNORECASE)
# Slicer itself is built on these, and another version of them may break it.
_SLICERS_OWN = ("numpy", "SimpleITK")
# What Slicer's PyTorch extension uses to choose the build for this computer's graphics card.
_LIGHT_THE_TORCH = "light-the-torch>=0.5"
# A user and a host, or a name from ssh's configuration, but nothing that ssh would parse as an option.
_SERVER_NAME = re.compile(r"([^\W-][\w.+\\-]*@)?[\w\[:][\w.:%\]-]*")
# Never ask for a password, which nobody could type, and detect a lost connection within half a minute.
_SSH_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    # Otherwise, the server's banner would be reported as the reason for a failure.
    "LogLevel=ERROR",
)
# The exit code of ssh if ssh itself failed.
_SSH_FAILED = 255


@dataclass(frozen=True)
class EngineCheck:
    """The outcome of checking the engine's Python.

    Args:
        missing: names of the packages that are missing or too old.
        problem: a sentence that says what is wrong and what to do; empty if the engine can run.
        canInstall: whether `Installation` can install what is missing.
    """

    missing: tuple[str, ...] = ()
    problem: str = ""
    canInstall: bool = False


class EnginePython:
    """The Python that runs the engine.

    Attributes:
        program: its executable; empty for Slicer's own Python.
        server: where the engine runs, as user@host or a name from ssh's configuration; empty for this computer.
        serverProgram: the Python executable on the server.

    All three may be changed at any time; a running engine stays.
    """

    def __init__(self, program: str = ""):
        self.program, self.server, self.serverProgram = program, "", ""
        self._inquiry: ChildProcess | None = None

    @property
    def isSlicers(self) -> bool:
        return not self.program

    def launch(self) -> ProcessLaunch:
        """How the engine process is started.

        Raises:
            UserError: ``engine-python-not-found`` or ``engine-python-name``, or as ``EngineServer.launch``.
        """
        if self.server:
            return EngineServer(self.server, self.serverProgram).launch()
        return self.launchModule("conresnet.worker")

    def launchModule(self, module: str, *arguments: str) -> ProcessLaunch:
        """How a module is run by this Python, with the engine's package importable; errors as for `launch`."""
        program = self.program or shutil.which("PythonSlicer") or ""
        if not program or not (os.path.isfile(program) or shutil.which(program)):
            raise UserError("engine-python-not-found", program=program or "PythonSlicer")
        if not _PYTHON_NAME.search(os.path.basename(program)):
            # Any other program would be run too, with unknown consequences.
            raise UserError("engine-python-name", program=program)
        environment = pythonEnvironment(self.isSlicers)
        ours = str(Path(conresnet.__file__).resolve().parents[1])
        environment |= packageVariables([ours, environment.get("PYTHONPATH", "")])
        return ProcessLaunch(program, ("-m", module, *arguments), environment)

    def check(self, onChecked: Callable[[EngineCheck], None]) -> None:
        """Check which packages are there, in a process of its own; a check that is still running is dropped.

        What a server has is known only when the engine starts there.

        Raises:
            UserError: as for `launch`.
        """
        self.dropCheck()
        if self.server:
            self.launch()
            onChecked(EngineCheck())
            return
        launch, isSlicers = self.launchModule("conresnet.needs"), self.isSlicers

        def onEnded(exitCode: int | None, output: str, _errors: str) -> None:
            onChecked(_evaluated(output if exitCode == 0 else "", launch.program, isSlicers))

        self._inquiry = ChildProcess(launch, onEnded, secondsToEnd=SECONDS_TO_CHECK)
        self._inquiry.start()

    def dropCheck(self) -> None:
        """End a check that is running; its answer is not delivered."""
        if self._inquiry:
            self._inquiry.drop()
            self._inquiry = None


@dataclass(frozen=True)
class EngineServer:
    """A server that the engine can run on, reached with the system's own ssh.

    There is no service on the server: ssh authenticates the user, and the engine runs with that user's permissions. The
    worker is the same program as on this computer, but files are sent through its pipe (`conresnet.worker`).
    Voxels, grids, options and, unless the server has the same version, the model are sent; names and paths are not.

    Args:
        name: user@host, or a name from ssh's configuration.
        python: path of the Python executable on the server. Defaults to python3.
    """

    name: str
    python: str = ""

    def launch(self) -> ProcessLaunch:
        """The command that starts the engine on the server.

        Raises:
            UserError: "engine-server-invalid" or "engine-ssh-missing".
        """
        if not _SERVER_NAME.fullmatch(self.name):
            raise UserError("engine-server-invalid", server=self.name)
        ssh = shutil.which("ssh")
        if not ssh:
            raise UserError("engine-ssh-missing", server=self.name)
        options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
        # ssh runs commands in the home directory, and a quoted tilde is not expanded. With -P, Python does not import
        # files in that directory, such as a random.py.
        python = re.sub(r"^~/", "./", self.python or "python3")
        command = shlex.join([python, "-P", "-X", "utf8", "-X", "faulthandler", "-m", "conresnet.worker", "--remote"])
        arguments = ("-T", *options, "--", self.name, command)
        return ProcessLaunch(ssh, arguments, pythonEnvironment(isSlicers=False), self.name)

    def checkVersion(self, hello: dict) -> None:
        """Raises UserError ("engine-server-version") if the server has a different version of the engine."""
        versions = ((hello.get("version"), hello.get("protocol")), (conresnet.__version__, PROTOCOL))
        theirs, ours = (f"{version} (protocol {protocol})" for version, protocol in versions)
        if theirs != ours:
            raise UserError("engine-server-version", server=self.name, version=theirs, ours=ours)

    def whyEnded(self, exitCode: int | None, log: str, wasReady: bool) -> UserError | None:
        """Why ssh has ended with this log; None if the engine on the server stopped by itself.

        ``wasReady`` tells whether the engine had sent its hello message.
        """
        server, reason = self.name, lastLine(log) or endingOf(exitCode)
        if "Unknown option: -P" in log:
            reason = _("the Python there is too old")
        if exitCode != _SSH_FAILED:
            return None if wasReady else UserError("engine-server-failed", server=server, python=PYTHON, reason=reason)
        if wasReady:
            return UserError("engine-server-lost", server=server)
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in log:
            return UserError("engine-server-key-changed", server=server)
        if "Host key verification failed" in log:
            return UserError("engine-server-unknown", server=server)
        if "Permission denied" in log or "Too many authentication failures" in log:
            return UserError("engine-server-login", server=server)
        return UserError("engine-server-unreachable", server=server, reason=reason)


def torchProblem() -> str:
    """Why PyTorch cannot be installed into Slicer's Python, as a sentence; empty if it can.

    It is installed only where Slicer's PyTorch extension is loaded, which this extension depends on. An extension that
    was just installed is loaded at the next start, and one that is disabled never is.
    """
    try:
        import PyTorchUtils  # noqa: F401
    except ImportError:
        pass
    else:
        return ""
    manager = slicer.app.extensionsManagerModel()
    # installExtensionFromServer returns True at once for an extension that is installed but disabled.
    if manager.isExtensionInstalled("PyTorch"):
        return _(
            "The PyTorch extension is installed but not loaded. Restart Slicer and try again. If you see this message "
            "after a restart, the extension is disabled: enable it in the Extensions Manager, or choose another Engine "
            "Python under Advanced."
        )
    # The manager asks by itself. Without "False" it would also offer to restart, in front of our own sentence.
    if manager.installExtensionFromServer("PyTorch", False):
        return _("The PyTorch extension is now installed. Restart Slicer, then click Segment again.")
    return _("The PyTorch extension is not installed. Install it in the Extensions Manager and restart Slicer.")


class Installation(ProcessSteps):
    """Installs missing packages into Slicer's own Python, by processes that Slicer does not wait for.

    Args:
        python: the engine's Python, which must be Slicer's own.
        missing: names of the packages, none of them Slicer's own.
        onLine, onEnded: see `ProcessSteps`.
    """

    def __init__(
        self,
        python: EnginePython,
        missing: Sequence[str],
        onLine: Callable[[str], None],
        onEnded: Callable[[str], None],
    ):
        self.requirements = tuple(f"{name}>={ENGINE_PACKAGES[name]}" for name in missing)
        self._python = python
        failed = _("The installation failed ({reason}); see the log.")
        super().__init__((), onLine, onEnded, _("The installation was canceled."), failed)

    def start(self) -> None:
        torch = [requirement for requirement in self.requirements if requirement.startswith("torch>=")]
        others = [requirement for requirement in self.requirements if requirement not in torch]
        pip = ("pip", "install", "--disable-pip-version-check", "--no-input")
        steps: list[tuple[str, ...]] = []
        if torch:
            steps += [(*pip, _LIGHT_THE_TORCH), ("light_the_torch", "install", *torch)]
        if others:
            steps.append((*pip, "--no-deps", *others))
        try:
            self._launches += [self._python.launchModule(*words) for words in steps]
        except UserError as error:
            self._onEnded(error.message)
            return
        super().start()


def _evaluated(output: str, program: str, isSlicers: bool) -> EngineCheck:
    found = read_report(output)
    problem = problem_of(found, ENGINE_PACKAGES, program)
    if problem is None or problem.code != "python-packages-missing":
        return EngineCheck(problem=errorSentence(problem) if problem else "")
    missing, canInstall = tuple(found["problems"]), False
    if "torch" in missing and (found.get("platform"), found.get("machine")) == ("darwin", "x86_64"):
        # Slicer for macOS is built for Intel, and PyTorch for Intel Macs ended with 2.2.2. A universal Python would
        # run the way Slicer does.
        problem = UserError("engine-python-intel", wanted=requirements(ENGINE_PACKAGES, ENGINE_PACKAGES))
    elif isSlicers:
        canInstall = not set(missing) & set(_SLICERS_OWN)
        code = "engine-packages-missing" if canInstall else "engine-slicer-old"
        problem = UserError(code, wanted=requirements(ENGINE_PACKAGES, missing))
    return EngineCheck(missing, errorSentence(problem), canInstall)
