"""The processes of a training: their devices, work that the first does while the others wait, and requests to stop.

A run is asked to stop by Ctrl-C, by a signal of the system or of a queue, or by the file ``stop``. It also stops if the
process that started it is gone, see ``PARENT_VARIABLE``.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch.distributed.distributed_c10d import _get_default_store

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.inference import MULTIPLE
from conresnet.inference.devices import Backend, choose_backend
from conresnet_training.reporting import product
from conresnet_training.runs import STOP_FILE
from conresnet_training.runs.run import Run
from conresnet_training.training import coarsest_step, stages_of

# Lightning's names of the engine's precisions.
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
_DONE, _HEARD = "done", "heard"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_HEAR = 0.5, 20.0
# Exit status of a run that was stopped early with a checkpoint: this plus the number of the signal, or of SIGINT where
# the file ``stop`` asked for it.
STOPPED = 128
# Exit status if another process of the same training was asked to stop.
STOPPED_ELSEWHERE = STOPPED + signal.SIGTERM
# Environment variable of a training: the id of a process that it must not outlive, such as a cross-validation.
PARENT_VARIABLE = "CONRESNET_PARENT"


def make_fabric(run: Run, devices: int, nodes: int, device: str) -> Fabric:
    """Lightning's Fabric for a run, not launched yet; for the arguments and errors see ``trainer.fit``."""
    # Lightning's remarks on devices and services do not concern the run.
    for name in ("lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    training, processes = run.plan.training, devices * nodes
    launched = os.environ.get("WORLD_SIZE", str(processes))
    if launched != str(processes):
        raise UserError("processes-differ", launched=launched, processes=processes)
    if training.batch % processes:
        raise UserError("batch-not-divisible", batch=training.batch, processes=processes)
    if processes == 1:
        # A single process is the first, even if a queue has left ranks in the environment.
        rank_zero_only.rank = 0
    backend = choose_backend(device)
    cores = os.cpu_count() or devices
    if backend.device.type == "cpu" and devices > cores:
        raise UserError("more-processes-than-cores", devices=devices, cores=cores)
    first = backend.device.index
    try:
        return Fabric(
            accelerator=backend.device.type,
            devices=devices if first is None else list(range(first, first + devices)),
            num_nodes=nodes,
            strategy=_strategy(run) if processes > 1 else "auto",
            plugins=[] if processes > 1 else [LightningEnvironment()],
            precision=_precision(backend, training.precision, run.plan.model.inference.window, coarsest_step(run.plan)),
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise _no_devices(error) from error


def _strategy(run: Run) -> DDPStrategy:
    # Parts that a stage does not train have no gradient, for which the processes would wait. On Windows, PyTorch has
    # no NCCL.
    return DDPStrategy(
        find_unused_parameters=stages_of(run.plan) > 1, process_group_backend="gloo" if os.name == "nt" else None
    )


def launch(fabric: Fabric) -> None:
    """Start the other processes, or meet them. Raises UserError ``devices-not-available``."""
    try:
        with signals_held_back():
            fabric.launch()
    except ValueError as error:
        raise _no_devices(error) from error


@contextlib.contextmanager
def reporting_lost_process(report: Callable[[], None]) -> Iterator[None]:
    """Call ``report`` if a process that this one started has died, just before Lightning kills this one as well.

    Lightning only logs it, in a thread of its own.
    """
    logger, handler = logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script"), logging.Handler()
    handler.emit = lambda _record: report()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def _no_devices(error: Exception) -> UserError:
    return UserError("devices-not-available", reason=" ".join(str(error).split()).rstrip("."))


def _precision(backend: Backend, wanted: str, window: Sequence[int], step: int = MULTIPLE) -> str:
    """Lightning's name of the precision; "auto" is the engine's choice, except for windows that bf16 gets wrong.

    Args:
        window: voxels (S, H, W) that the network sees at a time.
        step: voxels per voxel of the network's coarsest scale, along each side.

    Raises:
        UserError: ``bf16-window-too-small`` if bf16 is asked for by name and would get the window wrong.
    """
    # If a side has two voxels at the coarsest scale, bf16 on a CPU leaves parts of a gradient unwritten, so that
    # what was in memory before, sometimes NaN, becomes the gradient.
    is_wrong = backend.device.type == "cpu" and min(window) <= 2 * step
    # On a CPU, Lightning uses bf16 for 16-mixed too.
    if is_wrong and wanted in ("bf16-mixed", "16-mixed"):
        raise UserError("bf16-window-too-small", precision=wanted, window=product(window), smallest=2 * step)
    if wanted != "auto":
        return wanted
    return "32-true" if is_wrong else PRECISIONS[backend.precision]


def process_facts(fabric: Fabric) -> dict:
    """Fields of the event "started" that describe this process, see ``conresnet_training.runs``."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "device": name,
        "devices": fabric.world_size,
        "precision": str(fabric.strategy.precision.precision),
        "version": __version__,
    }


def first_does(work: Callable[[], bool]) -> bool:
    """Do ``work`` in the first process and return its result in all; False in the others if it raises there.

    May be called once per process, after the processes of a training have met. They watch the store through which they
    met, because a collective call would fail only after the half hour that steps may take, and a hanging process must
    be noticed earlier. If the first process dies, so does the store, and watching it raises.
    """
    if not torch.distributed.is_initialized():
        return work()
    store = torch.distributed.PrefixStore("conresnet-first-process", _get_default_store())
    if torch.distributed.get_rank() > 0:
        while not store.check([_DONE]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        is_done = store.get(_DONE) == b"yes"
        store.add(_HEARD, 1)
        return is_done
    is_done = False
    try:
        is_done = work()
    finally:
        store.set(_DONE, "yes" if is_done else "no")
        # The store goes away with this process, which may end now.
        end = time.monotonic() + _SECONDS_TO_HEAR
        while store.add(_HEARD, 0) + 1 < torch.distributed.get_world_size() and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS / 10)
    return is_done


# Ctrl-C; the end that a system or queue announces, and Ctrl-\; a closed terminal; what queues send before a time limit;
# the limit on processor time; and what Windows can send to a process in a group of its own.
_NAMES = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# These may come again by themselves: a shell and the system both signal a closed terminal, and the limit on processor
# time is signaled every second.
_REPEATED = {getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")}


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """A terminal or a queue signals every process; those that make samples must live until the run has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _has_ended(pid: int) -> bool:
    """Whether no process with this id runs; False if that cannot be known."""
    try:
        # One that has ended keeps its id until its parent has asked for its exit status.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Deliver signals after the block. A process started in it gets them when it enters its `StopWatch`.

    Otherwise Ctrl-C would end that process while it still imports packages, which looks like a failure.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopWatch:
    """Notices requests to stop. The first signal only sets ``reason``; a second Ctrl-C or SIGTERM ends the process.

    A context manager that restores the signal handlers. Signals that are ignored, as under nohup, stay ignored. Outside
    the main thread, which alone may set handlers, signals are not noticed.

    Args:
        folder: the run's, in which the file ``stop`` may appear.

    Attributes:
        reason: why to stop, for people; None while nobody has asked.
        status: exit status of a process that was stopped; 0 while nobody has asked.
    """

    def __init__(self, folder: Path):
        self.reason: str | None = None
        self.status = 0
        self._is_insisted_on = False
        self._file = folder / STOP_FILE
        self._parent = int(os.environ.get(PARENT_VARIABLE) or 0)
        self._handlers: dict = {}

    def __enter__(self) -> "StopWatch":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heard}
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        if self.reason is None and self._file.exists():
            self.reason, self.status = "requested with the stop command or in Slicer", STOPPED + signal.SIGINT
            self._is_insisted_on = True
        if self.reason is None and self._parent and _has_ended(self._parent):
            self.reason, self.status = "the process that started it has ended", STOPPED_ELSEWHERE
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number not in _REPEATED:
            if self._is_insisted_on:
                raise KeyboardInterrupt
            self._is_insisted_on = True
        if self.reason is None:
            self.reason, self.status = f"signal {signal.Signals(number).name}", STOPPED + number
