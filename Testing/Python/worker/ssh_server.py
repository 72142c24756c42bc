"""A real OpenSSH server on this computer, for the current user, with its own keys; and ssh configured to reach it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from worker.client import ENGINE, wait_until

NAME = "gpu-server"
_SSH, _SSHD = shutil.which("ssh"), shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class SshServer:
    """A running server. Skips the test if OpenSSH is not installed.

    Args:
        folder: folder for keys and settings, and for the temporary files of the programs that run there.
    """

    def __init__(self, folder: Path):
        if not _SSH or not _SSHD:
            pytest.skip("ssh or sshd is not installed (openssh-client, openssh-server)")
        self.folder, self.temporary, self.bin = folder, folder / "temporary", folder / "bin"
        for made in (self.temporary, self.bin, folder / "models"):
            made.mkdir()
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "user.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "Banner": folder / "banner",
        }
        (folder / "banner").write_text("Unauthorized use is prohibited.\n", encoding="utf-8")
        config = folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.process = subprocess.Popen([_SSHD, "-D", "-e", "-f", config], stderr=subprocess.PIPE)
        # Its log must be read: once the pipe is full, the server would wait forever.
        self.log: list[bytes] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        wait_until(lambda: b"listening" in b"".join(self.log) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        key = (folder / "host.pub").read_text(encoding="utf-8")
        (folder / "known").write_text(f"[127.0.0.1]:{port} {key}", encoding="utf-8")
        (folder / "empty").touch()
        stranger = (folder / "stranger.pub").read_text(encoding="utf-8")
        (folder / "changed").write_text(f"[127.0.0.1]:{port} {stranger}", encoding="utf-8")
        self.configure()

    def configure(self, **changes: object) -> None:
        """Configure ssh to reach the server by its name, with other settings if given."""
        options = {
            "HostName": "127.0.0.1",
            "Port": self._port(),
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "user",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known",
            **changes,
        }
        config = self.folder / "ssh_config"
        lines = [f"Host {NAME}", *(f"  {name} {value}" for name, value in options.items())]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # ssh finds its settings through the user's entry in the system, not through HOME.
        self._script(self.bin / "ssh", f'exec {_SSH} -F {config} "$@"')

    def python(self, *fake: str, limits: str = "", **environment: object) -> str:
        """A Python on the server that runs the engine of this source tree.

        Args:
            fake: arguments of Python to use instead of those it is given.
            limits: A shell command to run first.
        """
        variables = {
            "PYTHONPATH": ENGINE,
            "OMP_NUM_THREADS": 1,
            "TMPDIR": self.temporary,
            "CONRESNET_MODELS": self.folder / "models",
            **environment,
        }
        exports = [f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()]
        arguments = shlex.join(fake) if fake else '"$@"'
        return self._script(self.bin / "python", *exports, limits, f"exec {shlex.quote(sys.executable)} {arguments}")

    def cut(self) -> None:
        """Kill every session, which breaks the connections."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("sshd"):
                    child.kill()

    def sessions(self) -> list[Path]:
        """Contents of the workers' temporary folder."""
        return sorted(self.temporary.iterdir())

    def stop(self) -> None:
        """Stop the server and all its sessions."""
        self.cut()
        self.process.terminate()
        self.process.wait(30)

    def _port(self) -> str:
        return (self.folder / "sshd_config").read_text(encoding="utf-8").split()[1]

    def _script(self, path: Path, *lines: str) -> str:
        # Written under another name first: the system does not run a file that is open for writing.
        new = path.with_suffix(".new")
        new.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
        new.chmod(0o755)
        os.replace(new, path)
        return str(path)
