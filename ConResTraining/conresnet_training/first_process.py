"""What the first of several processes does alone while the others wait, however long it takes."""

import time
from collections.abc import Callable

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

_DONE, _HEARD = "done", "heard"
_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_HEAR = 0.5, 20.0


def first_does(work: Callable[[], bool]) -> bool:
    """What ``work`` returns in the first process, told to all; False to the others where it raises there.

    May be called once in a process, after those that share a training have met. They look into the store by which they
    met: a collective call would fail after the half hour that is granted to steps, in which a process that hangs is to
    be noticed. Where the first process dies, so does the store, and the look raises.
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
        # The store goes with this process, which may end now.
        end = time.monotonic() + _SECONDS_TO_HEAR
        while store.add(_HEARD, 0) + 1 < torch.distributed.get_world_size() and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS / 10)
    return is_done
