"""Locks on open files, which the operating system lets go of however their owner ends. The standard library alone."""

import os

if os.name == "nt":
    import msvcrt
else:
    import fcntl


def lock(descriptor: int, *, inherited: bool) -> None:
    """Lock an open file against everybody else, without waiting.

    Args:
        descriptor: of the file, open for writing.
        inherited: whether processes that this one forks hold the lock too, for as long as they live. Without, this
            process lets go of it as soon as it closes the file once, however often it has opened it. Windows has but
            one kind, of the open file, which no process inherits.

    Raises:
        OSError: somebody has it, or the file system knows no locks.
    """
    if os.name == "nt":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    elif inherited:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
