"""Failures below the training loop that the user can put right, in a sentence each."""

from conresnet.errors import UserError
from conresnet.inference.devices import is_out_of_memory


def as_user_error(error: Exception, folder: object) -> UserError | None:
    """What a failure of a run means to its user; None for a fault of ours.

    Args:
        folder: the run's.
    """
    text = " ".join(str(error).split())
    # It may die for want of memory too, and says so; but what it lacks is not what the network takes.
    if "DataLoader worker" in text:
        sentence = (
            f"A process that makes samples for {folder} ended ({text.rstrip('.')}); it may have lacked memory, or "
            "shared memory in a container: plan fewer training.workers, or give it more, and resume."
        )
        return UserError("workers-died", sentence)
    if is_out_of_memory(error):
        sentence = (
            f"There is not enough memory to train {folder}; end other programs on the device and resume, or start "
            "a run with a smaller training.batch, inference.window or base_width."
        )
        return UserError("out-of-memory", sentence)
    return None
