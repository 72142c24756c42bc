"""The worker leaves no process and no file behind, however it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from conresnet.worker.server import SECONDS_OF_GRACE
from worker.client import FAKE, Client, engine_environment, is_alive, running, wait_until


def test_worker_exits_when_input_is_closed(client: Client) -> None:
    assert client.close() == 0
    assert client.sessions() == []


def test_worker_exits_on_shutdown(client: Client) -> None:
    client.send(request="shutdown")
    assert client.wait() == 0
    assert client.sessions() == []


def test_closing_input_stops_running_requests(client: Client, image: np.ndarray) -> None:
    client.segment(1, "patient", image)
    client.segment(2, "patient", image)
    client.expect("progress")
    # The status would be 1 if it had not stopped by itself within the grace period.
    assert client.close() == 0
    assert client.sessions() == []


def test_closing_input_ends_unresponsive_request(client: Client, image: np.ndarray) -> None:
    client.segment(1, "deaf", image)
    client.expect("progress")
    assert client.close() == 1
    assert client.sessions() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_worker(client: Client, image: np.ndarray, number: int) -> None:
    client.segment(1, "patient", image)
    client.expect("progress")
    client.process.send_signal(number)
    assert client.wait() == 0
    assert client.sessions() == []


HOLDING_THE_LOCK = """
import os, signal, sys, threading, time
from conresnet.worker import server
from conresnet.worker import SessionFolder
from conresnet.worker.server import Job

session = SessionFolder(sys.argv[1])
worker = server._Server(*os.pipe(), session)
signal.signal(signal.SIGTERM, lambda *_: worker.stop())

class Lock:
    \"\"\"The worker's lock, except that the first signal arrives while the main thread holds it.\"\"\"

    def __init__(self, lock):
        self.lock, self.done = lock, False

    def __enter__(self):
        self.lock.acquire()
        if threading.current_thread() is threading.main_thread() and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_):
        self.lock.release()

class Engine:
    segment = None

worker._lock = Lock(worker._lock)
job = Job({"request": "segment", "id": 1}, worker._writer, session)
worker._jobs[1] = job
worker._answer(job, Engine())
print("answered", flush=True)
time.sleep(600)
"""


def test_signal_while_lock_is_held_ends_worker_within_grace_period(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING_THE_LOCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=engine_environment(tmp_path),
        text=True,
    )
    try:
        assert process.wait(SECONDS_OF_GRACE + 30) == 1
        assert process.stdout.read() == "answered\n"
    finally:
        process.kill()
    assert list(tmp_path.glob("conresnet-*")) == []


def test_closed_output_ends_worker(client: Client, image: np.ndarray) -> None:
    """The other end of its output is closed while its input stays open."""
    process = subprocess.Popen(
        [sys.executable, *FAKE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=engine_environment(client.temporary),
    )
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(b"garbage\n")
    process.stdin.flush()
    process.wait(20)
    process.stdin.close()
    assert len(client.sessions()) == 1


def test_folder_left_by_crash_is_removed_by_next_worker(tmp_path: Path, image: np.ndarray) -> None:
    with running(*FAKE, temporary=tmp_path) as client:
        client.ready()
        client.segment(1, "crashing", image)
        assert client.wait() == -signal.SIGSEGV
        assert len(client.sessions()) == 1
    with running(*FAKE, temporary=tmp_path) as client:
        hello = client.ready()
        assert client.sessions() == [Path(hello["session"]).name]
        client.close()
        assert client.sessions() == []


def test_worker_exits_when_client_is_killed(tmp_path: Path, image: np.ndarray) -> None:
    """A client is killed while its worker computes: the worker exits and cleans up within the grace period."""
    np.save(tmp_path / "image.npy", image)
    code = """
import sys, time
from pathlib import Path
import numpy as np
from worker.client import FAKE, Client
client = Client(*FAKE, temporary=Path(sys.argv[1]))
client.ready()
client.segment(1, sys.argv[2], np.load(Path(sys.argv[1]) / "image.npy"))
client.expect("progress")
print(client.process.pid, flush=True)
time.sleep(60)
"""
    tests = Path(__file__).resolve().parents[1]
    for model in ("patient", "deaf"):
        environment = engine_environment(tmp_path)
        environment["PYTHONPATH"] += os.pathsep + str(tests)
        parent = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), model], stdout=subprocess.PIPE, env=environment
        )
        with parent:
            worker = int(parent.stdout.readline())
            assert psutil.Process(worker).ppid() == parent.pid
            parent.kill()
        wait_until(lambda worker=worker: not is_alive(worker))
        assert list(tmp_path.glob("conresnet-*")) == []


def test_full_disk_is_an_error_and_not_a_crash(image: np.ndarray) -> None:
    with running(*FAKE) as client:
        client.ready()
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        client.segment(1, "any", np.tile(image, (10, 1, 1)))
        error = client.expect("error")
        assert error["code"] == "disk-full" and not error["ours"]
        client.segment(2, "any", image[:2])
        assert client.expect("done")["id"] == 2
