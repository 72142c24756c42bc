"""The runs of a row: their folders, whether they match the row, and how their training went."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from system_rows import Row

from conresnet.errors import UserError
from conresnet.networks import network_class
from conresnet_training.planning.plan import Plan
from conresnet_training.runs.run import PLAN_FILE, Run, open_run, start_run
from conresnet_training.runs.state import PROGRESS_FILE, Progress, read_progress
from conresnet_training.training.network import steps_of_run

LAST_QUARTER = 0.75


def runs_of(row: Row, output: Path, folds: Sequence[int]) -> list[Run]:
    """The runs of a row, each in ``OUTPUT/<name>/fold_<k>``; missing ones are created.

    Raises:
        UserError: ``plan-differs`` if a run was started with a plan that trains something else, or ``fold-unknown``.
    """
    return [_run(plan, output / name / f"fold_{fold}", fold) for name, plan in row.plans.items() for fold in folds]


def started_runs_of(row: Row, output: Path) -> list[Run]:
    """The existing runs of the row, in any fold."""
    folders = [(plan, folder) for name, plan in row.plans.items() for folder in sorted((output / name).glob("fold_*"))]
    return [_run(plan, folder, int(folder.name.removeprefix("fold_"))) for plan, folder in folders]


def _run(plan: Plan, folder: Path, fold: int) -> Run:
    if not (folder / PLAN_FILE).exists():
        return start_run(plan, folder, fold)
    run = open_run(folder, plan.data)
    if run.fold != fold or what_trains(run.plan) != what_trains(plan):
        sentence = f"{folder} was started with another plan; choose a new folder for this plan, or move that one away."
        raise UserError("plan-differs", sentence, path=str(folder))
    return run


def what_trains(plan: Plan) -> dict[str, Any]:
    """Everything a plan's result depends on, which excludes the location of the data and the model's name and texts.

    Network arguments that a plan omits are filled in with their defaults.
    """
    description = plan.model
    networks = [_with_defaults(network.type, network.arguments) for network in description.system.networks]
    return {
        "targets": plan.targets,
        "training": plan.training.model_dump(exclude={"workers"}),
        "augmentation": plan.augmentation.model_dump(),
        "inputs": description.inputs,
        "preparation": description.preparation,
        "inference": description.inference,
        "output": description.output,
        "system": (description.system.type, description.system.arguments, networks),
    }


def _with_defaults(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(network_class(kind)).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    return {"type": kind, **defaults, **arguments}


def is_trained(run: Run) -> bool:
    """Whether the run is finished."""
    return _progress(run).state == "finished"


def late_rise(run: Run) -> float | None:
    """Rise of the validation Dice in the last quarter of the run's last stage; None without an earlier validation.

    A network that is trained in stages starts anew in each stage.
    """
    progress, steps = _progress(run), run.plan.training.steps
    first = steps_of_run(run.plan) - steps
    dice = {event["step"] - first: event["dice"] for event in progress.validations if event["step"] > first}
    before = [step for step in dice if step <= LAST_QUARTER * steps]
    return dice[max(dice)] - dice[max(before)] if before else None


def _progress(run: Run) -> Progress:
    return read_progress(run.folder / PROGRESS_FILE)
