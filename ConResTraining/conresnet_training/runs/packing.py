"""The networks of one or several runs as the parts of a model package: its description and its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.package import ModelDescription, System
from conresnet.systems import declared_system
from conresnet_training.reporting import shortened
from conresnet_training.runs.run import Run, check_plan_unchanged, read_checkpoint, what_is_learned, without_prefix
from conresnet_training.training import stages_of

# Training settings in which two runs of one recipe may differ.
MAY_DIFFER = {"seed", "workers", "precision", "steps_between_checkpoints"}


@dataclass(frozen=True)
class PackedRuns:
    """What ``conresnet.package.store.write_package`` takes, and facts of each run.

    Args:
        made_by: for each run its "fold" (None if it learned from all cases), the "steps" made for the weights, the
            "checkpoint", and "unfinished", such as "2 of 4 steps", if its training was not finished.
    """

    description: ModelDescription
    files: dict[str, bytes]
    made_by: tuple[dict[str, Any], ...]


def pack_runs(runs: Sequence[Run], checkpoint: str = "last") -> PackedRuns:
    """Take the networks of runs: one unchanged, several as an ensemble described by the first run's plan.

    If training averaged the weights, they are the averages that were validated. Convolutions are stored in half
    precision, which changes no relevant label and halves the download. For ``checkpoint`` see ``Run.checkpoint_named``.

    Raises:
        UserError: ``checkpoint-not-found``, ``checkpoint-damaged``, ``plan-changed``, ``stage-not-reached``,
            ``runs-not-joined``, or any of ``check_agreement``.
    """
    check_agreement(runs)
    description = runs[0].plan.model
    ensemble = declared_system(description.system.type).ensemble
    if len(runs) > 1 and not ensemble:
        raise UserError("runs-not-joined", first=str(runs[0].folder), second=str(runs[1].folder))
    weights, made_by = zip(*(_trained(run, checkpoint) for run in runs), strict=True)
    if len(runs) == 1:
        system, states = description.system, _of_networks(description.system, weights[0])
    else:
        networks = [
            replace(run.plan.model.system.networks[0], weights=f"network_{index}.safetensors")
            for index, run in enumerate(runs)
        ]
        system, states = System(ensemble, tuple(networks), {}), weights
    files = {
        network.weights: safetensors.torch.save({name: _as_stored(tensor) for name, tensor in state.items()})
        for network, state in zip(system.networks, states, strict=True)
    }
    # What traded places in training does so at inference, too.
    output = replace(description.output, swapped_segments=tuple(runs[0].plan.augmentation.swapped_segments) or None)
    return PackedRuns(replace(description, system=system, output=output), files, made_by)


def _trained(run: Run, checkpoint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A run's weights by name, and the facts of it."""
    path = run.checkpoint_named(checkpoint)
    state = read_checkpoint(path)
    if state is None:
        raise UserError("checkpoint-not-found", run=str(run.folder), path=path.name)
    check_plan_unchanged(run, state)
    steps, stages = int(state["global_step"]), stages_of(run.plan)
    if steps <= (stages - 1) * run.plan.training.steps:
        raise UserError("stage-not-reached", path=str(path), steps=steps, stages=stages)
    latest = state if checkpoint == "last" else read_checkpoint(run.checkpoint) or state
    made, planned = int(latest["global_step"]), stages * run.plan.training.steps
    facts = {"fold": run.fold, "steps": steps, "checkpoint": checkpoint}
    if made < planned:
        facts["unfinished"] = f"{made} of {planned} steps"
    return without_prefix(state["state_dict"]), facts


def _of_networks(system: System, weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each network's own tensors; several are trained as the parts 0, 1, ... of one."""
    if len(system.networks) == 1:
        return [weights]
    return [
        {name.removeprefix(f"{place}."): tensor for name, tensor in weights.items() if name.startswith(f"{place}.")}
        for place in range(len(system.networks))
    ]


def _as_stored(tensor: Tensor) -> Tensor:
    """Norms, which have few numbers, keep full precision: variances may be too small or large for half precision."""
    # A copy, because a tensor that a network has under two names must not share memory in the file.
    return (tensor.half() if tensor.ndim > 1 else tensor.clone()).contiguous()


def check_agreement(runs: Sequence[Run]) -> None:
    """Refuse runs whose networks cannot be combined, or that were not trained on the same data.

    Raises:
        UserError: ``runs-differ``, naming the first thing in which two of them differ, or ``run-repeated``.
    """
    folders = [run.folder.resolve() for run in runs]
    for index, run in enumerate(runs):
        if folders[index] in folders[:index]:
            raise UserError("run-repeated", path=str(run.folder))
    for run in runs[1:]:
        _check_alike(_compared, runs[0], run)


def check_same_recipe(runs: Sequence[Run], measured_by: Sequence[Run]) -> None:
    """Refuse measurements of runs that were not trained like these.

    Raises:
        UserError: as ``check_agreement``, also for networks, training or augmentation that differ.
    """
    own = {run.folder.resolve() for run in runs}
    check_agreement([*runs, *(run for run in measured_by if run.folder.resolve() not in own)])
    for run in (*runs[1:], *measured_by):
        _check_alike(_recipe, runs[0], run)


def _check_alike(facts_of: Callable[[Run], dict[str, object]], first: Run, second: Run) -> None:
    theirs = facts_of(second)
    for part, ours in facts_of(first).items():
        if ours != theirs[part]:
            raise UserError(
                "runs-differ",
                first=str(first.folder),
                second=str(second.folder),
                part=part,
                one=shortened(str(ours)),
                other=shortened(str(theirs[part])),
            )


def _recipe(run: Run) -> dict[str, object]:
    """Settings that all runs of one recipe share; their cases and random numbers may differ."""
    plan = run.plan
    parts = {f"training.{key}": value for key, value in plan.training.model_dump(exclude=MAY_DIFFER).items()}
    return what_is_learned(plan) | parts | {"augmentation": plan.augmentation, "synthesis": plan.synthesis}


def _compared(run: Run) -> dict[str, object]:
    """Settings that must be equal in all runs of one model, by their names in messages."""
    model = run.plan.model
    return {
        "inputs": model.inputs,
        "preparation": model.preparation,
        "output": model.output,
        "inference windows": model.inference,
        "system": model.system.type,
        "residual axis": model.residual_axis,
        "targets": run.plan.targets,
        "data set": run.plan.data,
    }
