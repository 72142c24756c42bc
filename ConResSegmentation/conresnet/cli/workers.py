"""The worker processes that segment many cases at once: on this computer, or those of a Dask scheduler.

Nothing here knows about cases. A worker is known by its address, such as tcp://10.0.0.7:40123.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from conresnet import __version__
from conresnet.cli import ENDING, say
from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders
from conresnet.package.store import digest_with_locator

if TYPE_CHECKING:
    from types import FrameType

    from distributed import Client, Future, as_completed

T = TypeVar("T")

# How many workers may die on a case. If one more dies, the case is given up.
_ALLOWED_DEATHS = 1
_SECONDS_TO_CONNECT = 30
# Long enough for a worker that has to import ConResNet first or is busy with something else.
_SECONDS_TO_ANSWER = 60.0
# Prefix of the temporary folders.
_PREFIX = "conresnet-cohort-"
# Time to wait for a case to finish before checking the workers, and between polls for a finished case.
_SECONDS_BETWEEN_CHECKS, _SECONDS_BETWEEN_POLLS = 5.0, 0.05
# On another computer, a new folder may become visible a moment after it was made.
_SECONDS_TO_SEE = 5.0
# Ctrl-C in a terminal also reaches the workers, which would print a traceback. This process ends them.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@contextlib.contextmanager
def connected(jobs: int, scheduler: str) -> Iterator[Client]:
    """Connect to the workers of a scheduler, or start workers on this computer, which end with the connection.

    Raises UserError "cohort-needs-package", "cohort-no-scheduler" or "cohort-no-certificate".
    """
    try:
        import distributed
    except ImportError as error:
        raise UserError("cohort-needs-package") from error
    # Silence Dask's messages about lost workers and connections, which we report ourselves. Some of its loggers set
    # their own levels.
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not scheduler:
        # If starting or stopping were interrupted halfway, Dask would wait for workers that do not exist.
        workers = contextlib.ExitStack()
        try:
            yield in_one_piece(lambda: workers.enter_context(_workers_here(jobs)))
        finally:
            in_one_piece(workers.close)
        return
    _check_address(scheduler)
    try:
        client = distributed.Client(scheduler, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError("cohort-no-scheduler", address=scheduler) from error
    with client:
        yield client


def _check_address(scheduler: str) -> None:
    """Raise UserError "cohort-no-scheduler" or "cohort-no-certificate" for an address that cannot be used.

    Dask's client would keep trying for a minute, or misread the answer of another program, such as its own dashboard.
    """
    try:
        url = urlsplit(scheduler)
        if url.scheme not in ("tcp", "tls"):
            raise ValueError(url.scheme)
        socket.create_connection((url.hostname, url.port), _SECONDS_TO_CONNECT).close()
        asyncio.run(_shake_hands(scheduler))
    except Exception as error:
        is_tls = isinstance(error, TypeError) and "TLS" in str(error)
        raise UserError("cohort-no-certificate" if is_tls else "cohort-no-scheduler", address=scheduler) from error


async def _shake_hands(scheduler: str) -> None:
    from distributed.comm import connect
    from distributed.security import Security

    options = Security().get_connection_args("client")
    connection = await asyncio.wait_for(connect(scheduler, **options), _SECONDS_TO_CONNECT)
    await connection.close()


@contextlib.contextmanager
def _workers_here(jobs: int) -> Iterator[Client]:
    """Start workers on this computer, and terminate them at the end, even in the middle of a case."""
    import dask
    import psutil
    from distributed import Client, LocalCluster

    if hasattr(signal, "pthread_sigmask"):
        # Inherited by the workers, which would print a traceback if a Ctrl-C reached them before they ignore it. When
        # Python starts its resource tracker, it no longer blocks the signal.
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with (
        _temporary_folder() as folder,
        dask.config.set({"distributed.scheduler.allowed-failures": _ALLOWED_DEATHS, "temporary-directory": folder}),
        # Encrypted, because otherwise any user of this computer could run code in the workers. The engine handles lack
        # of memory itself, so Dask must not end its processes.
        LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            memory_limit=None,
            security=True,
            preload=_IGNORE_INTERRUPTS,
            silence_logs=logging.CRITICAL,
            # Without an address, Dask takes port 8787 even if there is no dashboard, and warns if that is in use.
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        if _has_dashboard():
            say(f"Dashboard: {cluster.dashboard_link}", err=True)
        yield client
        # Dask would let each finish its case. Results are written completely or not at all.
        for nanny in cluster.workers.values():
            nanny.close_gracefully()  # so that it does not start another worker
            # Without an id, as while a dead worker is replaced, this would be the process of the command itself.
            if (pid := nanny.pid) is not None:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for Dask's files, removed at the end. Folders left by killed commands are removed first."""
    for owned in abandoned_folders(tempfile.gettempdir(), _PREFIX):
        owned.remove()
    owned = OwnedFolder.make(_PREFIX, needs_lock=False)
    try:
        yield str(owned.path)
    finally:
        owned.remove()


def in_one_piece(work: Callable[[], T]) -> T:
    """Do work in a thread and return its result. Ctrl-C, or another signal that ends the command, takes effect only
    after the work is finished; if there is a second one, at once.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    # Starting a thread may be interrupted when it already runs, so catching KeyboardInterrupt would not be enough.
    with signals_later():
        threading.Thread(target=run, daemon=True).start()
        return future.result()


@contextlib.contextmanager
def signals_later() -> Iterator[Callable[[], None]]:
    """Let the first signal that ends the command take effect at the end of the block, or when the function is called
    that this yields. Only Python's main thread receives signals, and those that are ignored stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    received: list[tuple[int, FrameType | None]] = []
    is_over = False

    def handle_signal(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))
        if is_over or len(received) > 1:
            pass_on()

    def pass_on() -> None:
        while received:
            number, frame = received.pop(0)
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, handle_signal)
        yield pass_on
    finally:
        is_over = True
        for number, handler in handlers.items():
            signal.signal(number, handler)
        pass_on()


def _has_dashboard() -> bool:
    # Like Dask, which has no dashboard if bokeh is installed but fails to load.
    try:
        import bokeh  # noqa: F401
    except ImportError:
        return False
    return True


def numbered_by_computer(addresses: Iterable[str]) -> dict[str, int]:
    """Number the workers of each computer from 0, by their addresses."""
    seen: Counter[str | None] = Counter()
    numbers = {}
    for address in sorted(addresses):
        computer = urlsplit(address).hostname
        numbers[address] = seen[computer]
        seen[computer] += 1
    return numbers


def device_of_worker(name: str, workers: Mapping[str, int]) -> str:
    """Resolve the requested device for this worker: its own GPU, if its computer has several.

    Args:
        workers: numbers from ``numbered_by_computer``; empty in the command's own process, which is not a worker.
    """
    if not workers:
        return name
    import torch
    from distributed import get_worker

    from conresnet.inference.devices import device_of_process

    if torch.cuda.device_count() < 2:
        return name
    worker = get_worker()
    # Workers that we started have a number as their name, which they keep if restarted.
    number = worker.name if isinstance(worker.name, int) else workers.get(worker.address)
    return name if number is None else device_of_process(name, number)


class Workers:
    """The workers of a client, to which cases are submitted.

    Args:
        scheduler: address of the scheduler if the workers belong to one; they may be on other computers.
        model, digest: path of the model package, and its `digest_with_locator` on this computer.
        place: folder for results that was just created on this computer.
        check: called repeatedly while waiting; may raise KeyboardInterrupt.
    """

    def __init__(
        self,
        client: Client,
        scheduler: str,
        model: Path,
        digest: str,
        place: Path,
        check: Callable[[], None] = lambda: None,
    ):
        self._client, self._scheduler = client, scheduler
        self._model, self._digest, self._place, self._check_signals = model, digest, place, check
        self._completed: as_completed | None = None
        self._known: set[str] = set()
        self._last_message = ""

    def addresses(self) -> list[str]:
        """Addresses of the connected workers. Those of a scheduler are checked when they first appear, at any time.

        Raises:
            UserError: "cohort-scheduler-lost", or why a worker cannot be used: "cohort-worker-silent",
                "cohort-worker-unusable", "cohort-versions-differ", "cohort-model-differs" or "cohort-folder-differs".
        """
        try:
            found = list(self._client.nthreads())
            if self._scheduler and (new := [worker for worker in found if worker not in self._known]):
                self._check(new)
                self._known.update(new)
        except OSError as error:
            raise UserError("cohort-scheduler-lost") from error
        if self._scheduler and not found:
            self._report(f"No worker is connected to {self._scheduler}; waiting for one.")
        return found

    def submit(self, function: Callable[[Any], Any], argument: object, key: str) -> str:
        """Submit a function call to a worker; returns the key of its future."""
        from distributed import as_completed

        if self._completed is None:
            self._completed = as_completed(loop=self._client.loop)
        future = self._client.submit(function, argument, key=key, pure=False)
        self._completed.add(future)
        return future.key

    def wait_for_any(self) -> Future | None:
        """Return the next completed future, or None after a few seconds, since workers may have connected or ended."""
        end = time.monotonic() + _SECONDS_BETWEEN_CHECKS
        while True:
            self._check_signals()
            if self._completed is not None and self._completed.has_ready():
                break
            if time.monotonic() >= end:
                self._report_if_paused()
                return None
            time.sleep(_SECONDS_BETWEEN_POLLS)
        future = next(self._completed)
        if future.status in ("lost", "pending"):
            # Its worker died before it handed over the result, and Dask computes it again.
            self._completed.add(future)
            return None
        return future

    def _check(self, workers: Collection[str]) -> None:
        call = facts_of_worker, self._model, self._place, _SECONDS_TO_SEE
        try:
            results = self._run(*call, workers=workers, seconds=_SECONDS_TO_ANSWER)
        except TimeoutError as error:
            silent = [worker for worker in workers if not self._answers(worker)]
            raise UserError("cohort-worker-silent", worker=", ".join(silent or workers)) from error
        for worker, result in results.items():
            if isinstance(result, OSError):
                continue  # it has just ended
            if not isinstance(result, tuple):
                reason = re.sub(r"""^\w+\(["'](.*?)["']\)$""", r"\1", " ".join(str(result).split()))
                raise UserError("cohort-worker-unusable", worker=worker, reason=reason, ours=__version__)
            version, theirs, sees_folder = result
            if version != __version__:
                raise UserError("cohort-versions-differ", theirs=version, ours=__version__)
            if not is_same_model(theirs, self._digest):
                raise UserError("cohort-model-differs", worker=worker, model=str(self._model))
            if not sees_folder:
                raise UserError("cohort-folder-differs", worker=worker, path=str(self._place.parent.parent))

    def _run(self, function: Callable, *arguments: object, workers: Collection[str], seconds: float) -> dict[str, Any]:
        """Call a function on workers; returns its results and exceptions. Raises TimeoutError."""
        # Dask passes the limit on to the method `sync` of its clients.
        how = {"on_error": "return", "callback_timeout": seconds}
        return self._client.run(function, *arguments, workers=list(workers), **how)

    def _answers(self, worker: str) -> bool:
        try:
            self._run(os.getpid, workers=[worker], seconds=_SECONDS_BETWEEN_CHECKS)
        except TimeoutError:
            return False
        return True

    def _report_if_paused(self) -> None:
        """Report that there is no progress because Dask has paused all workers, which it does silently."""
        if self._scheduler:
            # Some versions of Dask describe only five workers by default.
            known = self._client.scheduler_info(n_workers=-1)["workers"]
            states = [worker.get("status") for worker in known.values()]
            if states and all(state == "paused" for state in states):
                self._report(
                    "Dask has paused all workers because their memory is nearly full; waiting for others. Start "
                    "workers with --memory-limit 0."
                )

    def _report(self, text: str) -> None:
        if text != self._last_message:
            say(text, err=True)
        self._last_message = text


def facts_of_worker(model: Path, place: Path, seconds: float) -> tuple[str, str, bool]:
    """Called on a worker: returns its version of ConResNet, the digest of its model ("" if it has none), and whether it
    can see the folder within ``seconds``.
    """
    try:
        digest = digest_with_locator(model)
    except (UserError, OSError):
        # The caller would mistake an OSError for a lost connection.
        digest = ""
    end = time.monotonic() + seconds
    while not os.path.isdir(place) and time.monotonic() < end:
        time.sleep(0.2)
    return __version__, digest, os.path.isdir(place)


def is_same_model(digest: str, other: str) -> bool:
    """Whether two results of `digest_with_locator` are of the same model. One of them may be without the locator, which
    is an error only where it is needed.
    """
    return bool(digest) and all(mine == yours for mine, yours in zip(digest.split(), other.split(), strict=False))
