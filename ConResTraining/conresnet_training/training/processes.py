"""The processes of a training: their devices, and work that the first does while the others wait."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence

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
from conresnet_training.runs.run import Run
from conresnet_training.training import coarsest_step, stages_of
from conresnet_training.training.stopping import JOBS_VARIABLE, signals_held_back

# Lightning's names of the engine's precisions.
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
_DONE, _HEARD = "done", "heard"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_HEAR = 0.5, 20.0
# More than any GPU needed in tests; each loads the libraries and keeps two batches in shared memory.
MOST_SAMPLE_PROCESSES = 8


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


def sample_processes(planned: int | None, fabric: Fabric) -> int:
    """Number of processes that make samples for each training process; it does not change the samples.

    None on a CPU, where they would compete with the network for its cores. With a GPU, each gets a core of its own, and
    so does the training process.

    All processes must call this at the same point. Without a planned number, it is what suits the computer.
    """
    if planned is not None:
        return planned
    if fabric.device.type == "cpu":
        return 0
    cores = _cores()
    sharing = _processes_on(cores, fabric) * int(os.environ.get(JOBS_VARIABLE, 1))
    return min(MOST_SAMPLE_PROCESSES, max(1, len(cores) // sharing - 1))


def _cores() -> tuple[int, ...]:
    """The cores that this process may use; a queue may grant fewer than the computer has."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _processes_on(cores: tuple[int, ...], fabric: Fabric) -> int:
    """How many of the processes that train together share these cores, as those of one computer's GPUs may."""
    if fabric.world_size == 1:
        return 1
    own, places = (socket.gethostname(), cores), [None] * fabric.world_size
    torch.distributed.all_gather_object(places, own)
    return places.count(own)


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
