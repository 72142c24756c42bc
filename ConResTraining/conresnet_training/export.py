"""A finished run as a model package, with figures that the engine itself measured on the cases the run never saw."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from conresnet.errors import UserError
from conresnet.image_files import read_channels, read_volume
from conresnet.package import write_package
from conresnet.package.description import ModelDescription
from conresnet.segmentation import SegmentOptions, load_model, segment
from conresnet_training.data_sets import Case, read_data_set
from conresnet_training.folds import split
from conresnet_training.plan import Plan
from conresnet_training.run import Run

METRICS_FILE = "metrics.json"


def export_run(run: Run, output: Path, checkpoint: str = "last", overwrite: bool = False) -> str:
    """Write the package ``output`` and return one sentence about it.

    Weights are kept in half precision, which changes no label that matters and halves the download.

    Args:
        checkpoint: "last", or "best" by validation Dice; figures of "best" are optimistic, because the held-out cases
            chose it, and ``metrics.json`` says so.

    Raises:
        UserError: ``checkpoint-not-found``, or any of reading the data and writing the package.
    """
    path = run.checkpoint_named(checkpoint)
    if not path.is_file():
        raise UserError(
            "checkpoint-not-found", f"The run {run.folder} has no checkpoint {path.name} yet.", path=str(path)
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "network."
    weights = {
        name.removeprefix(prefix): tensor.half().contiguous()
        for name, tensor in state["state_dict"].items()
        if name.startswith(prefix)
    }
    description = run.plan.description
    network = description.system.networks[0]
    files = {network.weights: safetensors.torch.save(weights)}
    with tempfile.TemporaryDirectory() as folder:
        trial = write_package(description, files, Path(folder) / description.name)
        cases = split(read_data_set(run.plan.data), run.plan, run.fold)[1]
        metrics = _metrics(trial.path, description, run, cases)
    metrics |= {"checkpoint": checkpoint, "steps": int(state["global_step"])}
    files[METRICS_FILE] = json.dumps(metrics, indent=1).encode()
    write_package(description, files, output, overwrite)
    return f"{output} is written: mean Dice {metrics['mean_dice']:.3f} on {len(cases)} cases it never saw."


def _metrics(package: Path, description: ModelDescription, run: Run, cases: list[Case]) -> dict:
    names = [segment.name for segment in description.output.segments]
    a_case = {case.name: dict(zip(names, dice, strict=True)) for case, dice in _dice(package, run.plan, cases)}
    table = np.array([list(values.values()) for values in a_case.values()])
    return {
        "what": "Dice of whole cases, segmented by the exported package through the engine, on the images' own grids",
        "data": read_data_set(run.plan.data).name,
        "split": f"fold {run.fold} of {run.plan.training.folds}: the cases below were held out of training",
        "mean_dice": round(float(table.mean()), 4),
        "mean_dice_a_segment": {name: round(float(mean), 4) for name, mean in zip(names, table.mean(0), strict=True)},
        "lowest_dice_a_segment": {name: round(float(low), 4) for name, low in zip(names, table.min(0), strict=True)},
        "dice_a_case": {
            case: {name: round(float(dice), 4) for name, dice in row.items()} for case, row in a_case.items()
        },
    }


def _dice(package: Path, plan: Plan, cases: list[Case]) -> Iterator[tuple[Case, list[float]]]:
    """Each case with the Dice of its segments, 1 where a segment is in neither label map."""
    model = load_model(package, "auto", "auto")
    channels = [item.name for item in plan.description.inputs]
    for case in cases:
        found = segment(model, read_channels(list(case.images), channels), SegmentOptions()).labels.array
        truth = read_volume(case.label).array
        dice = []
        for item in plan.description.output.segments:
            ours, theirs = found == item.label, np.isin(truth, plan.targets[item.name])
            total = ours.sum() + theirs.sum()
            dice.append(float(2 * (ours & theirs).sum() / total) if total else 1.0)
        yield case, dice
