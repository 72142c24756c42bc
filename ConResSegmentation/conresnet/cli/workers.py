"""The worker processes that segment many cases at once: on this computer, or those of a Dask scheduler."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from conresnet import __version__
from conresnet.cli.main import say
from conresnet.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

# How many workers may die on a case. If one more dies, the case is given up.
_ALLOWED_DEATHS = 1
_SECONDS_TO_CONNECT = 30
# A Ctrl-C in a terminal reaches the workers, too, which would print a traceback. This process ends them.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@contextlib.contextmanager
def connected(jobs: int, scheduler: str) -> Iterator[Client]:
    """Connect to the workers of a scheduler, or start workers on this computer, which end with the connection."""
    try:
        import distributed
    except ImportError as error:
        raise UserError("cohort-needs-package") from error
    # Silence Dask's messages about lost workers and connections, which we report ourselves. Some of its loggers set
    # their own levels.
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not scheduler:
        # If its start or its end were interrupted halfway, Dask would wait for workers that do not exist.
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
        versions = {version for version in client.run(_version).values() if version != __version__}
        if versions:
            raise UserError("cohort-versions-differ", theirs=", ".join(sorted(versions)), ours=__version__)
        if not client.nthreads():
            say(f"No worker is connected to {scheduler} yet; waiting for one.", err=True)
        yield client


def _check_address(scheduler: str) -> None:
    """Raise UserError("cohort-no-scheduler") for an address that does not answer. Dask would try for a minute."""
    try:
        url = urlsplit(scheduler)
        if url.scheme not in ("tcp", "tls"):
            raise ValueError(url.scheme)
        socket.create_connection((url.hostname, url.port), _SECONDS_TO_CONNECT).close()
    except (OSError, TypeError, ValueError) as error:
        raise UserError("cohort-no-scheduler", address=scheduler) from error


@contextlib.contextmanager
def _workers_here(jobs: int) -> Iterator[Client]:
    """Start workers on this computer, and end them, whatever they are doing."""
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
        tempfile.TemporaryDirectory(prefix="conresnet-cohort-", ignore_cleanup_errors=True) as folder,
        dask.config.set({"distributed.scheduler.allowed-failures": _ALLOWED_DEATHS}),
        # Encrypted, because otherwise any user of this computer could run code in the workers. The engine handles lack
        # of memory itself, so Dask must not end its processes.
        LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            memory_limit=None,
            security=True,
            local_directory=folder,
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
            with contextlib.suppress(psutil.Error, TypeError):
                psutil.Process(nanny.pid).kill()


def in_one_piece(work: Callable[[], T]) -> T:
    """Do work, in a thread. If it is interrupted, the interruption is raised when the work is finished."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result()
    except KeyboardInterrupt:
        concurrent.futures.wait([future])
        raise


def _has_dashboard() -> bool:
    # Like Dask, which has no dashboard if bokeh is installed but fails to load.
    try:
        import bokeh  # noqa: F401
    except ImportError:
        return False
    return True


def _version() -> str:
    return __version__
