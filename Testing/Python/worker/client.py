"""A plain client of the worker for tests: real processes, no Qt."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

ENGINE = Path(__file__).resolve().parents[3] / "ConResSegmentation"
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)
# Runs the program that follows as on a full disk: it can create files, but not write to them.
NO_FILES = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
REAL = ("-m", "conresnet", "worker")


def engine_environment(temporary: Path | str | None = None) -> dict[str, str]:
    """Environment of an engine started from the sources: one thread, temporary files in ``temporary``."""
    environment = {**os.environ, "PYTHONPATH": str(ENGINE), "OMP_NUM_THREADS": "1"}
    if temporary:
        environment["TMPDIR"] = str(temporary)
    return environment


class Client:
    """Talks to a worker.

    Args:
        arguments: arguments of Python that start the worker.
        temporary: the worker's temporary folder.
        environment: additional variables.
    """

    def __init__(self, *arguments: str, temporary: Path, environment: dict[str, str] | None = None):
        self.temporary = temporary
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**engine_environment(temporary), **(environment or {})},
        )
        self.events: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self.log = bytearray()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_log)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        for line in filter(bytes.strip, self.process.stdout):
            self.events.put(json.loads(line.decode("utf-8")))
        self.events.put(None)

    def _read_log(self) -> None:
        for line in self.process.stderr:
            self.log += line

    def expect(self, event: str, seconds: float = 30.0) -> dict:
        """Return the next event with this name; skip others before it, and fail on an unexpected error."""
        deadline = time.monotonic() + seconds
        while True:
            message = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            assert message is not None, f"the worker ended before {event}: {self.log.decode()}"
            assert event == "error" or message["event"] != "error", message
            if message["event"] == event:
                return message

    def ready(self) -> dict:
        """Wait until the worker accepts requests; returns its hello message."""
        hello = self.expect("hello")
        self.devices: list[dict] = self.expect("ready", 60)["devices"]
        return hello

    def send(self, **message: object) -> None:
        """Send a request."""
        self.process.stdin.write(json.dumps(message, ensure_ascii=False).encode("utf-8") + b"\n")
        self.process.stdin.flush()

    def segment(
        self,
        number: int,
        model: str,
        array: np.ndarray,
        channels: int = 1,
        digest: str | None = None,
        **options: object,
    ) -> None:
        """Request the segmentation of an array with 1 mm voxels, which is used for every channel."""
        folder = self.temporary / "inputs of ä"
        folder.mkdir(exist_ok=True)
        path = folder / f"{number}.npy"
        np.save(path, array)
        grid = {"shape": array.shape, "ijk_to_ras": np.eye(4).tolist()}
        channel = {"npy": str(path), "grid": grid, "name": "Bild ä"}
        message = {"model": model, "channels": [channel] * channels, "options": options, "digest": digest}
        self.send(request="segment", id=number, **message)

    def close(self, seconds: float = 120.0) -> int:
        """Close the worker's standard input and wait until it exits; returns the exit status."""
        self.process.stdin.close()
        return self.wait(seconds)

    def wait(self, seconds: float = 120.0) -> int:
        """Wait until the worker exits; returns the exit status."""
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return status

    def sessions(self) -> list[str]:
        """Names of the session folders that exist."""
        return sorted(path.name for path in self.temporary.glob("conresnet-*"))


@contextmanager
def running(*arguments: str, temporary: Path | None = None, **options: object) -> Iterator[Client]:
    """Yield a client, and stop its worker afterwards in any case."""
    with tempfile.TemporaryDirectory(prefix="ä b ") as folder:
        client = Client(*arguments, temporary=temporary or Path(folder), **options)
        try:
            yield client
        finally:
            client.process.kill()
            client.process.stdin.close()
            client.wait()
            client.process.stdout.close()
            client.process.stderr.close()


def is_alive(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds: float = 120.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)
