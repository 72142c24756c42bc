"""The networks of one or several runs as the parts of a model package: its description and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import safetensors.torch

from conresnet.errors import UserError
from conresnet.package import ModelDescription
from conresnet.package.description import System
from conresnet_training.checkpoints import read_checkpoint, without_prefix
from conresnet_training.run import Run


@dataclass(frozen=True)
class PackedRuns:
    """What ``conresnet.package.write_package`` takes, and how many steps each run had made."""

    description: ModelDescription
    files: dict[str, bytes]
    steps: tuple[int, ...]


def pack_runs(runs: Sequence[Run], checkpoint: str = "last") -> PackedRuns:
    """Take the networks of runs: of one as it is, of several as an ensemble described by the first one's plan.

    Where training averaged the weights, they are the averages, by which the run was validated. They are kept in half
    precision, which changes no label that matters and halves the download.

    Args:
        checkpoint: "last", or "best" by validation Dice.

    Raises:
        UserError: ``checkpoint-not-found``, ``checkpoint-damaged``, or any of ``check_agreement``.
    """
    check_agreement(runs)
    networks, files, steps = [], {}, []
    for index, run in enumerate(runs):
        weights, made = _weights(run, checkpoint)
        network = run.plan.description.system.networks[0]
        name = network.weights if len(runs) == 1 else f"network_{index}.safetensors"
        networks.append(replace(network, weights=name))
        files[name] = weights
        steps.append(made)
    description = runs[0].plan.description
    system = replace(description.system, networks=tuple(networks))
    if len(networks) > 1:
        system = System("ensemble", tuple(networks), {})
    return PackedRuns(replace(description, system=system), files, tuple(steps))


def _weights(run: Run, checkpoint: str) -> tuple[bytes, int]:
    """A safetensors file, and the number of steps made."""
    path = run.checkpoint_named(checkpoint)
    state = read_checkpoint(path)
    if state is None:
        raise UserError(
            "checkpoint-not-found",
            f"The run {run.folder} has no checkpoint {path.name} yet; train it further, or name another checkpoint.",
            path=str(path),
        )
    weights = {name: tensor.half().contiguous() for name, tensor in without_prefix(state["state_dict"]).items()}
    return safetensors.torch.save(weights), int(state["global_step"])


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
