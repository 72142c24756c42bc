"""The networks of one or several runs as the parts of a model package: its description and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import safetensors.torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.package import ModelDescription
from conresnet.package.description import System
from conresnet.systems import declared_system
from conresnet_training.runs.run import Run, read_checkpoint, without_prefix
from conresnet_training.training.network import stages_of


@dataclass(frozen=True)
class PackedRuns:
    """What ``conresnet.package.write_package`` takes, and how many steps each run had made."""

    description: ModelDescription
    files: dict[str, bytes]
    steps: tuple[int, ...]


def pack_runs(runs: Sequence[Run], checkpoint: str = "last") -> PackedRuns:
    """Take the networks of runs: of one as it is, of several as an ensemble described by the first one's plan.

    Where training averaged the weights, they are the averages, by which the run was validated. Convolutions are kept in
    half precision, which changes no label that matters and halves the download.

    Args:
        checkpoint: "last", or "best" by validation Dice.

    Raises:
        UserError: ``checkpoint-not-found``, ``checkpoint-damaged``, ``stage-not-reached``, ``runs-not-joined``, or any
            of ``check_agreement``.
    """
    check_agreement(runs)
    description = runs[0].plan.description
    ensemble = declared_system(description.system.type).ensemble
    if len(runs) > 1 and not ensemble:
        raise UserError("runs-not-joined", first=str(runs[0].folder), second=str(runs[1].folder))
    trained = [_trained(run, checkpoint) for run in runs]
    if len(runs) == 1:
        system, states = description.system, _of_networks(description.system, trained[0].weights)
    else:
        networks = [
            replace(run.plan.description.system.networks[0], weights=f"network_{index}.safetensors")
            for index, run in enumerate(runs)
        ]
        system, states = System(ensemble, tuple(networks), {}), [each.weights for each in trained]
    files = {
        network.weights: safetensors.torch.save({name: _as_kept(tensor) for name, tensor in state.items()})
        for network, state in zip(system.networks, states, strict=True)
    }
    return PackedRuns(replace(description, system=system), files, tuple(each.steps for each in trained))


@dataclass(frozen=True)
class _Trained:
    """A run's weights by name, and the steps that were made for them."""

    weights: dict[str, Tensor]
    steps: int


def _trained(run: Run, checkpoint: str) -> _Trained:
    path = run.checkpoint_named(checkpoint)
    state = read_checkpoint(path)
    if state is None:
        raise UserError(
            "checkpoint-not-found",
            f"The run {run.folder} has no checkpoint {path.name} yet; train it further, or name another checkpoint.",
            path=str(path),
        )
    made, stages = int(state["global_step"]), stages_of(run.plan)
    if made <= (stages - 1) * run.plan.training.steps:
        raise UserError(
            "stage-not-reached",
            f"The checkpoint {path} is of the first {made} steps, in which the last of the {stages} parts that are "
            "trained one after the other was not; train the run further.",
            path=str(path),
        )
    return _Trained(without_prefix(state["state_dict"]), made)


def _of_networks(system: System, weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each network's own tensors; several are trained as the parts 0, 1, ... of one."""
    if len(system.networks) == 1:
        return [weights]
    return [
        {name.removeprefix(f"{place}."): tensor for name, tensor in weights.items() if name.startswith(f"{place}.")}
        for place in range(len(system.networks))
    ]


def _as_kept(tensor: Tensor) -> Tensor:
    """Norms, few as their numbers are, keep their precision: variances may be too small or large for half of it."""
    # A copy, since what a network holds by two names must not share memory in the file.
    return (tensor.half() if tensor.ndim > 1 else tensor.clone()).contiguous()


def check_agreement(runs: Sequence[Run]) -> None:
    """Refuse runs whose networks cannot answer together, or were not trained on the same data.

    Raises:
        UserError: ``runs-differ``, naming the first thing in which two of them differ, or ``run-repeated``.
    """
    first = runs[0]
    for index, run in enumerate(runs):
        if run.folder.resolve() in [other.folder.resolve() for other in runs[:index]]:
            raise UserError("run-repeated", f"The run {run.folder} is named twice; name it once.", path=str(run.folder))
    for run in runs[1:]:
        ours, theirs = first.plan.description, run.plan.description
        parts = {
            "the inputs": (ours.inputs, theirs.inputs),
            "the preparation": (ours.preparation, theirs.preparation),
            "the outputs": (ours.output, theirs.output),
            "the windows of inference": (ours.inference, theirs.inference),
            "the system": (ours.system.type, theirs.system.type),
            "the residual axis": (ours.residual_axis, theirs.residual_axis),
            "the targets": (first.plan.targets, run.plan.targets),
            "the data set": (first.plan.data, run.plan.data),
        }
        for part, (one, other) in parts.items():
            if one != other:
                raise UserError(
                    "runs-differ",
                    f"The runs {first.folder} and {run.folder} differ in {part} of their plans ({_shown(one)} and "
                    f"{_shown(other)}); only runs that agree in it make one model.",
                    part=part,
                )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
