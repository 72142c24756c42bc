"""The engine on another computer, reached with the system's own ssh: how it is started, and what is sent to it.

There is no service on the server. ssh authenticates the user, and the engine runs with that user's permissions. The
worker is the same program as on this computer, but files are sent through its pipe (`conresnet.worker.blocks`). Voxels,
grids, options and, unless the server has the same version, the model are sent; names and paths are not.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.needs import PYTHON
from conresnet.package import ModelDescription, ModelPackage, read_package
from conresnet.package.description import DESCRIPTION_FILE
from conresnet.package.store import find_model
from conresnet.request import SegmentRequest
from conresnet.worker.blocks import BlockWriter
from conresnet.worker.protocol import MODELS_FOLDER, PROTOCOL

from .Processes import ProcessLaunch, lastLine, pythonEnvironment

# A user and a host, or a name from ssh's configuration, but nothing that ssh would parse as an option.
_NAME = re.compile(r"([^\W-][\w.+\\-]*@)?[\w\[:][\w.:%\]-]*")
# Never ask for a password, which nobody could type, and detect a lost connection within half a minute.
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
)
_FAILED_BY_ITSELF = 255


@dataclass(frozen=True)
class EngineServer:
    """A server that the engine can run on.

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
        if not _NAME.fullmatch(self.name):
            raise UserError("engine-server-invalid", server=self.name)
        ssh = shutil.which("ssh")
        if not ssh:
            raise UserError("engine-ssh-missing", server=self.name)
        options = [word for option in _OPTIONS for word in ("-o", option)]
        # ssh runs commands in the home directory, and a quoted tilde is not expanded. With -P, Python does not import
        # files in that directory, such as a random.py.
        python = re.sub(r"^~/", "./", self.python or "python3")
        command = shlex.join([python, "-P", "-X", "utf8", "-X", "faulthandler", "-m", "conresnet.worker", "--remote"])
        arguments = ("-T", *options, "--", self.name, command)
        return ProcessLaunch(ssh, arguments, pythonEnvironment(isSlicers=False), self.name)

    def checkVersion(self, hello: dict) -> None:
        """Raise an error if the server has a different version of the engine.

        Raises:
            UserError: "engine-server-version".
        """
        versions = ((hello.get("version"), hello.get("protocol")), (__version__, PROTOCOL))
        theirs, ours = (f"{version} (protocol {protocol})" for version, protocol in versions)
        if theirs != ours:
            raise UserError("engine-server-version", server=self.name, version=theirs, ours=ours)

    def whyEnded(self, exitCode: int | None, log: str, wasReady: bool) -> UserError | None:
        """Why the connection ended; None if the engine on the server stopped by itself.

        Args:
            exitCode: exit code of ssh.
            log: output of ssh and the engine.
            wasReady: whether the engine had sent its hello message.
        """
        server, reason = self.name, lastLine(log) or str(exitCode)
        if exitCode != _FAILED_BY_ITSELF:
            return None if wasReady else UserError("engine-server-failed", server=server, python=PYTHON, reason=reason)
        if wasReady:
            return UserError("engine-server-lost", server=server)
        if "Host key verification failed" in log:
            return UserError("engine-server-unknown", server=server)
        if "Permission denied" in log:
            return UserError("engine-server-login", server=server)
        return UserError("engine-server-unreachable", server=server, reason=reason)


def withoutNames(request: SegmentRequest, description: ModelDescription) -> SegmentRequest:
    """The request as it is sent to a server: images have the names of the model's channels."""
    channels = [
        replace(volume, name=wanted.name) for volume, wanted in zip(request.channels, description.inputs, strict=True)
    ]
    return SegmentRequest(description.name, tuple(channels), replace(request.options, report_name=None))


def sendModels(package: ModelPackage, known: dict[str, str], send: Callable[[dict], None]) -> Iterator[None]:
    """Send a model and its locator block by block, unless the server has the same version.

    Args:
        package: the package of the model.
        known: the digest of each model that the server has, by name; updated here.
        send: sends the fields of a block.
    """
    packages = [package]
    if package.description.locator:
        packages.append(read_package(find_model(package.description.locator.model), verify=False))
    for each in packages:
        name, digest = each.description.name, each.description.digest
        if known.get(name) == digest:
            continue
        for file in each.description.files:
            writer = BlockWriter(send, f"{MODELS_FOLDER}/{name}/{file}")
            for block in each.blocks(file):
                writer.write(block)
                yield
        # model.json is sent last, because a folder with this file counts as a model.
        description = each.description.to_json().encode("utf-8")
        BlockWriter(send, f"{MODELS_FOLDER}/{name}/{DESCRIPTION_FILE}").write(description)
        known[name] = digest
