"""Checkpoints of a run: whole or not there, plain tensors and numbers alone, so that loading one runs no code.

A checkpoint holds "state_dict" (the weights that validation and export use, their names after "network."),
"training_state_dict" where those are a moving average, "optimizer", "precision", "global_step" (steps made),
"validated" (the step that was validated last), "best_dice" and "steps" (the plan's, of each stage).

The folder of a training run: its plan, its fold, its checkpoints.
"""

import io
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.files import make_folder, replacing
from conresnet_training.planning.plan import Plan, read_plan, write_plan

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


PLAN_FILE = "plan.yaml"
FOLD_FILE = "fold.txt"


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was started with."""

    folder: Path
    plan: Plan
    fold: int

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoint_named("last")

    def checkpoint_named(self, name: str) -> Path:
        """The checkpoint "last" or "best" (by validation Dice)."""
        return self.folder / "checkpoints" / f"{name}.ckpt"


def start_run(plan: Plan, folder: Path, fold: int) -> Run:
    """Make the folder of a new run.

    Raises:
        UserError: ``run-exists``, ``fold-unknown``, ``disk-full`` or ``cannot-write``.
    """
    if not 0 <= fold < plan.training.folds:
        raise UserError("fold-unknown", f"There is no fold {fold}; the plan has folds 0 to {plan.training.folds - 1}.")
    if folder.exists() and any(folder.iterdir()):
        sentence = f"{folder} is not empty; resume the run in it, or name a new folder."
        raise UserError("run-exists", sentence, path=str(folder))
    make_folder(folder)
    write_plan(plan, folder / PLAN_FILE)
    (folder / FOLD_FILE).write_text(f"{fold}\n", encoding="utf-8")
    return Run(folder, plan, fold)


def open_run(folder: Path, data: Path | None = None) -> Run:
    """Open the folder of a run that was started before.

    Raises:
        UserError: ``run-not-found`` where it is none, ``fold-unknown`` where it does not say which of the plan's folds
            it holds out, or those of ``read_plan``.
    """
    if not (folder / PLAN_FILE).is_file() or not (folder / FOLD_FILE).is_file():
        raise UserError("run-not-found", f"{folder} is not the folder of a training run.", path=str(folder))
    plan = read_plan(folder / PLAN_FILE, data)
    return Run(folder, plan, _read_fold(folder / FOLD_FILE, plan.training.folds))


def _read_fold(path: Path, folds: int) -> int:
    try:
        fold = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fold = -1
    if not 0 <= fold < folds:
        sentence = f"{path} does not hold the number of a fold, 0 to {folds - 1}; write that of the run into it."
        raise UserError("fold-unknown", sentence, path=str(path))
    return fold
