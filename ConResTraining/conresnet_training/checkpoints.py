"""Checkpoints of a run: whole or not there, plain tensors and numbers alone, so that loading one runs no code.

A checkpoint holds "state_dict" (the weights that validation and export use, their names after "network."),
"training_state_dict" where those are a moving average, "optimizer", "precision", "global_step" (steps made),
"validated" (the step that was validated last), "best_dice" and "steps" (the plan's, of each stage).
"""

import io
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conresnet.atomic_file import replacing
from conresnet.errors import UserError

PREFIX = "network."


def write_checkpoint(content: dict, paths: Iterable[Path]) -> None:
    """Write one checkpoint under several names, in this order; a name that had one keeps it until the new one is whole.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for path in paths:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            # A computer that loses power must not have renamed what is not on its disk yet.
            os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict | None:
    """A checkpoint's content in the computer's own memory, None where there is none.

    Raises:
        UserError: ``checkpoint-damaged``, for another program's checkpoint too.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        sentence = f"The checkpoint {path} cannot be read; put a good one in its place, or start a new run."
        raise UserError("checkpoint-damaged", sentence, path=str(path)) from error
    if not _is_of_a_run(content):
        sentence = f"The checkpoint {path} is not one of a run; put a good one in its place, or start a new run."
        raise UserError("checkpoint-damaged", sentence, path=str(path))
    return content


def _is_of_a_run(content: Any) -> bool:
    """Whether it has what is read of every checkpoint; the training loop looks at the rest."""
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        return False
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not weights:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())


def with_prefix(state: dict) -> dict:
    """A network's tensors by the names they have in a checkpoint."""
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}


def without_prefix(state: dict) -> dict:
    """The reverse of ``with_prefix``."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
