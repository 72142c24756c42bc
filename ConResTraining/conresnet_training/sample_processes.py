"""How many processes make samples beside those that train."""

import os
import socket

import torch.distributed
from lightning.fabric import Fabric

# More than a GPU was seen to need; each holds the libraries, and two batches in shared memory.
MOST = 8
# In the environment of a training, how many go on beside each other on this computer, itself among them.
JOBS_VARIABLE = "CONRESNET_JOBS"


def sample_processes(planned: int | None, fabric: Fabric) -> int:
    """How many there are for each process that trains. Samples depend on their number alone, so any give the same.

    On a processor there are none, since they would compete with the network for its cores. Beside a GPU each has a
    core of its own, and so has the process that trains.

    Args:
        planned: so many, or None for what suits the computer.
        fabric: Lightning's, launched; all processes must ask at the same place.
    """
    if planned is not None:
        return planned
    if fabric.device.type == "cpu":
        return 0
    cores = _cores()
    beside = _processes_on(cores, fabric) * int(os.environ.get(JOBS_VARIABLE, 1))
    return min(MOST, max(1, len(cores) // beside - 1))


def _cores() -> tuple[int, ...]:
    """Those that this process may use; a queue may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _processes_on(cores: tuple[int, ...], fabric: Fabric) -> int:
    """How many of those that train together share these cores: several GPUs of one computer may, unless a queue has
    given each its own."""
    if fabric.world_size == 1:
        return 1
    own, places = (socket.gethostname(), cores), [None] * fabric.world_size
    torch.distributed.all_gather_object(places, own)
    return places.count(own)
