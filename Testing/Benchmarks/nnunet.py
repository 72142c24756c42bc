"""nnU-Net on the same cases and folds as ours, with its own plan, network, augmentation, schedule and inference.

    python Testing/Benchmarks/nnunet.py PLAN.yaml --fold 0 --output FOLDER
    python -m conresnet_training compare OURS/evaluation FOLDER/evaluation

It trains 3d_fullres for as many samples as PLAN does in all its steps, in at most 50 epochs, and its schedule ends with
them: larger batches in fewer steps, and far fewer than its default of 250,000 steps. Then it segments the held-out
cases of the fold, which are measured like those of our runs. nnU-Net has an environment of its own in .venv-nnunet/.
Run the command again with the same folder to continue where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click

HERE = Path(__file__).parent
EPOCHS = 50
FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="Fold to hold out.")
@click.option("--output", type=FOLDER, required=True, help="Working folder.")
@click.option("--data", type=FOLDER, help="Folder of the data, if not the one in the plan.")
@click.option(
    "--samples", type=click.IntRange(min=1), help="Total training samples.  [default: the plan's steps x batch]"
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples per step.  [default: nnU-Net's plan]")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--workers", default=0, show_default=True, help="Processes that prepare samples.")
def compare(plan, fold, output, data, samples, batch, precision, workers) -> None:
    """Train nnU-Net on the cases of PLAN and evaluate it on the held-out ones; results go to FOLDER/evaluation."""
    from nnunet_tools import DATA_SET, Workplace

    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.evaluation.metrics import summary_table
    from conresnet_training.evaluation.runs import evaluate_predictions
    from conresnet_training.planning.plan import read_plan

    our_plan = read_plan(plan, data)
    data_set = read_data_set(our_plan.data)
    place = Workplace(output)
    planned = place.prepare(data_set, our_plan)
    batch = batch or planned["batch_size"]
    place.change(batch_size=batch)
    steps = math.ceil((samples or our_plan.training.steps * our_plan.training.batch) / batch)
    iterations = math.ceil(steps / EPOCHS)
    epochs = math.ceil(steps / iterations)
    task = {
        "do": "train",
        "plans": str(place.plans_file),
        "fold": fold,
        "epochs": epochs,
        "iterations": iterations,
        "autocast": precision == "bf16",
        "seed": our_plan.training.seed,
    }
    place.run(HERE / "nnunet_side.py", json.dumps(task), workers=workers, stdout=sys.stderr)
    found = (
        place.folder / "nnunet_results" / DATA_SET / "Trainer__nnUNetPlans__3d_fullres" / f"fold_{fold}" / "validation"
    )
    predictions = output / "predictions"
    predictions.mkdir(exist_ok=True)
    files = sorted(found.glob("*.nii.gz"))
    for file in files:
        shutil.copyfile(file, predictions / file.name)
    # Use the plan's segment names, so that the evaluation can be compared with those of runs.
    by_value = {value: name for name, values in our_plan.targets.items() for value in values}
    evaluation = evaluate_predictions(predictions, replace(data_set, labels=by_value), output / "evaluation")
    click.echo(summary_table(evaluation.summary))
    made = iterations * epochs
    click.echo(
        f"nnU-Net made {made} steps of {batch} windows of {' x '.join(map(str, planned['patch_size']))}, "
        f"{made * batch} samples; the plan makes {our_plan.training.steps} steps of {our_plan.training.batch}. "
        f"{len(files)} segmented cases are in {predictions}.",
        err=True,
    )


if __name__ == "__main__":
    from conresnet.cli import main

    sys.exit(main(None, compare, "python Testing/Benchmarks/nnunet.py"))
