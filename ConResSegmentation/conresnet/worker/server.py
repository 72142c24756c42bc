"""The worker's main loop: send hello, serve requests one after another, and clean up at the end.

If the client is on another computer, the worker has its session folder to itself, and files are sent through the pipe
in blocks. Importing this module does not import torch, which takes seconds: the worker says hello first.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import platform
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from conresnet import __version__
from conresnet.errors import Cancelled, UserError, as_user_error
from conresnet.files import write_error
from conresnet.package.store import add_models_folder, digest_with_locator, list_models, read_model
from conresnet.request import Progress, SegmentRequest
from conresnet.worker import (
    MODELS_FOLDER,
    PROTOCOL,
    EventWriter,
    ResultArrays,
    SentArrays,
    SessionFolder,
    lead_process_group,
    read_requests,
    remove_abandoned_sessions,
    take_standard_streams,
    write_block,
)

# Grace period for running work after the client has disconnected; then the process ends in any case.
SECONDS_OF_GRACE = 2.0
_LARGEST_ID = 2**53


class Job(Progress):
    """A request that has not been answered yet, as seen by the engine.

    ``writer`` is for its events, ``session`` for its arrays, and ``arrays`` how these reach the client.
    """

    def __init__(
        self, message: dict, writer: EventWriter, session: SessionFolder, arrays: type[ResultArrays] = ResultArrays
    ):
        self.id: int = message["id"]
        self.message = message
        self._writer = writer
        self._session = session
        self._kind, self._arrays = arrays, None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask it to stop. May be called from any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        self.send("progress", phase=phase, fraction=float(fraction), seconds_left=seconds_left)
        if self._arrays:
            self._arrays.show()

    def allocate(self, name: str, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A result array of zeros that the client can watch; errors as `ResultArrays.allocate`."""
        if self._arrays is None:
            self._arrays = self._kind(self._session.request_folder(self.id), self.send)
        return self._arrays.allocate(name, shape, dtype)

    def complete(self) -> dict[str, str]:
        """Hand over the results, and return their files by name; raises Cancelled if the client asked to stop."""
        self._arrays.complete(self.check)
        return self._arrays.paths()

    def send(self, event: str, **values: object) -> None:
        """Send an event in answer to the request."""
        self._writer.send(event, id=self.id, **values)


class Engine:
    """Segments with torch, and keeps the last model ready for the next request."""

    def __init__(self):
        from conresnet.inference.segmentation import WarmModel

        self._warm = WarmModel()

    def segment(self, request: SegmentRequest, job: Job) -> dict:
        """Segment into arrays that the job allocates: "labels", uint8 [k, j, i], "regions" where segments overlap, and
        one per map. Returns the report. An exception other than UserError, Cancelled and MemoryError is a bug.
        """
        from conresnet.inference.segmentation import segment

        package = read_model(request.model, verify=False)
        if request.digest not in (None, digest_with_locator(package)):
            raise UserError("model-changed", model=package.description.title)
        model = self._warm.get(package, job)
        job.check()
        return segment(model, request.channels, request.options, job, job.allocate).report

    def devices(self) -> list[dict]:
        """The available devices: each a dict with ``name`` and ``title``."""
        from conresnet.inference.devices import available_devices

        return available_devices()

    def forget(self) -> None:
        """Free memory that is kept for the next request."""
        import torch

        self._warm.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def serve(load: Callable[[], Engine] | None = None, remote: bool = False) -> int:
    """Serve one client until it leaves, and return the exit status.

    Args:
        load: makes the engine, after the hello; it may be slow. Defaults to the real one.
        remote: whether the client is on another computer, so that arrays and models go through the pipe.
    """
    lead_process_group()
    requests, events = take_standard_streams()
    if remote:
        # Ends a line that the remote shell may have printed at the start, such as a greeting.
        with contextlib.suppress(OSError):
            os.write(events, b"\n")
    try:
        session = SessionFolder()
    except OSError as error:
        refusal = as_user_error(error) or write_error(error, tempfile.gettempdir())
        EventWriter(events, lambda: None).send_error(refusal)
        return 1
    if remote:
        add_models_folder(session.path / MODELS_FOLDER)
    server = _Server(requests, events, session, remote)
    try:
        return server.run(load or Engine)
    finally:
        session.remove()


class _Server:
    def __init__(self, requests: int, events: int, session: SessionFolder, remote: bool = False):
        self._requests = requests
        self._session = session
        self._remote = remote
        # Requests with a block that could not be written, which have been answered with that error.
        self._failed: set[int] = set()
        self._writer = EventWriter(events, self.stop)
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._stopping = False
        threading.Thread(target=self._stop_when_asked, name="end", daemon=True).start()

    def run(self, load: Callable[[], Engine]) -> int:
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: self.stop())
        self._say_hello()
        remove_abandoned_sessions()
        engine = self._load(load)
        if engine is None:
            self._wait_for_the_client_to_leave()
            return 1
        self._writer.send("ready", devices=engine.devices())
        # Only now, see take_standard_streams; until here requests have waited in the pipe.
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while job := self._queue.get():
            self._answer(job, engine)
        return 0

    def _wait_for_the_client_to_leave(self) -> None:
        """Wait, but not for long: the client may not know yet, and still be writing into the session folder."""
        threading.Thread(target=self._leave_by_force, name="expiry", daemon=True).start()
        read_requests(self._requests, lambda message: None, lambda reason: None)

    def stop(self) -> None:
        """Leave as soon as possible. May be called from any thread, and from a signal handler.

        A handler interrupts the main thread, which may hold the lock or be starting a thread, so it must neither take
        a lock nor start one; putting into a SimpleQueue is safe.
        """
        self._stops.put(None)

    def _stop_when_asked(self) -> None:
        self._stops.get()
        with self._lock:
            self._stopping = True
            for job in self._jobs.values():
                job.cancel()
        self._queue.put(None)
        self._leave_by_force()

    def _leave_by_force(self) -> None:
        """Leave after the grace period in any case."""
        time.sleep(SECONDS_OF_GRACE)
        self._session.remove()
        os._exit(1)

    def _say_hello(self) -> None:
        self._writer.send(
            "hello",
            protocol=PROTOCOL,
            version=__version__,
            pid=os.getpid(),
            python=platform.python_version(),
            torch=_torch_version(),
            session=None if self._remote else str(self._session.path),
            models=_model_digests() if self._remote else None,
        )

    def _load(self, load: Callable[[], Engine]) -> Engine | None:
        try:
            return load()
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError):
                refusal = UserError("engine-incomplete", python=sys.executable, package=error.name)
            elif not (refusal := as_user_error(error)):
                refusal = UserError("engine-broken", python=sys.executable, reason=" ".join(str(error).split()))
            self._writer.send_error(refusal, log=traceback.format_exc())
        except Exception:
            self._writer.send_error(*_fault())
        return None

    def _read(self) -> None:
        # Always stop at the end: without this thread, nothing would notice that the client has left.
        try:
            read_requests(self._requests, self._receive, self._refuse)
        finally:
            self.stop()

    def _receive(self, message: dict) -> None:
        request, number = message.get("request"), message.get("id")
        if request == "shutdown":
            self.stop()
        elif request == "cancel" and number is None:
            self._cancel(None)
        elif type(number) is not int or not 0 <= number <= _LARGEST_ID:
            self._refuse(f"{request!r} without a whole number as id")
        elif request == "cancel":
            self._cancel(number)
        elif request == "release":
            self._release(number)
        elif request == "block" and self._remote:
            self._take_block(message, number)
        elif request == "segment":
            if number not in self._failed:
                self._enqueue(message)
        else:
            self._refuse(f"unknown request {request!r}", id=number)

    def _enqueue(self, message: dict) -> None:
        job = Job(message, self._writer, self._session, SentArrays if self._remote else ResultArrays)
        with self._lock:
            known = job.id in self._jobs
            if not known:
                self._jobs[job.id] = job
            if self._stopping:
                job.cancel()
        if known:
            self._refuse(f"the id {job.id} is in use")
        else:
            self._queue.put(job)

    def _cancel(self, number: int | None) -> None:
        with self._lock:
            for job in self._jobs.values():
                if number in (None, job.id):
                    job.cancel()

    def _release(self, number: int) -> None:
        with self._lock:
            if number in self._jobs:
                return
        self._session.release(number)

    def _take_block(self, message: dict, number: int) -> None:
        """Write part of an input or a model. If that fails, the request fails, and its files are removed."""
        if number in self._failed:
            return
        try:
            write_block(self._session.path, message)
        except UserError as error:
            # Without its folder, this process cannot continue; the client starts another one.
            ids = {} if error.code == "engine-folder-gone" else {"id": number}
            self._writer.send_error(error, **ids)
        else:
            return
        self._failed.add(number)
        self._session.release(number)

    def _refuse(self, reason: str, **ids: int) -> None:
        self._writer.send_error(UserError("bad-request", reason=reason), **ids)

    def _answer(self, job: Job, engine: Engine) -> None:
        """Handle a request. Errors are reported, and the worker continues."""
        done = failure = None
        try:
            job.check()
            done = self._segment(job, engine)
        except Cancelled:
            pass
        except MemoryError:
            failure = (UserError("out-of-memory", name="this case"), False, traceback.format_exc())
            engine.forget()
        except Exception as error:
            # A copy, since the error's traceback holds the arrays.
            mistake = as_user_error(error)
            failure = (UserError(mistake.code, mistake.message, **mistake.values),) if mistake else _fault()
            if not mistake or mistake.code == "out-of-memory":
                engine.forget()
        if not done:
            # The error, which held the arrays, no longer exists here.
            gc.collect()
            self._session.release(job.id)
        with self._lock:
            del self._jobs[job.id]
        if failure:
            self._writer.send_error(*failure, id=job.id)
        elif done:
            job.send("done", **done)
        else:
            job.send("cancelled")

    def _segment(self, job: Job, engine: Engine) -> dict:
        report = engine.segment(SegmentRequest.from_dict(job.message, self._session.path), job)
        files = job.complete()
        labels, regions = files.pop("labels"), files.pop("regions", None)
        return {"labels": labels, "regions": regions, "maps": files, "report": report}


def _model_digests() -> dict[str, str]:
    usable = (entry for entry in list_models() if entry.description and not entry.hidden_by)
    return {entry.name: entry.description.digest for entry in usable}


def _torch_version() -> str | None:
    """The version of torch that is installed, read without importing torch."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _fault() -> tuple[UserError, bool, str]:
    """Arguments of ``EventWriter.send_error`` for the exception being handled, which is a bug in the engine."""
    what = traceback.format_exception_only(*sys.exc_info()[:2])[-1].strip()
    print(traceback.format_exc(), file=sys.stderr)
    return UserError("engine-fault", reason=what), True, traceback.format_exc()
