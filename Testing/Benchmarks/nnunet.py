"""nnU-Net itself on the same cases as ours: its own plan, network, augmentation, schedule and inference, our folds.

    python Testing/Benchmarks/nnunet.py PLAN.yaml --fold 0 --output FOLDER
    python -m conresnet_training compare OURS/evaluation FOLDER/evaluation

It trains by 3d_fullres for as many samples as PLAN makes in all its steps, in at most 50 epochs, at whose end its
schedule ends: by larger batches in fewer steps, and far from the 250,000 steps that it makes by default. Then it
segments the cases that the fold holds out, and they are measured as our runs are. nnU-Net gets an environment of its
own in .venv-nnunet/. Run again with the same folder, it goes on where it was.
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
sys.path[:0] = [str(HERE.parents[1] / part) for part in ("ConResSegmentation", "ConResTraining")] + [str(HERE)]

EPOCHS = 50
FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
@click.option("--output", type=FOLDER, required=True, help="Where it works.")
@click.option("--data", type=FOLDER, help="The data, if not where the plan says.")
@click.option("--samples", type=click.IntRange(min=1), help="To train on, in all.  [default: the plan's steps x batch]")
@click.option("--batch", type=click.IntRange(min=1), help="Samples a step.  [default: what nnU-Net plans]")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--workers", default=0, show_default=True, help="Processes that make samples.")
def compare(plan, fold, output, data, samples, batch, precision, workers) -> None:
    """Train nnU-Net on the cases of PLAN and measure it on the held-out ones, into FOLDER/evaluation."""
    from nnunet_tools import DATA_SET, Workplace

    from conresnet_training.data import read_data_set
    from conresnet_training.evaluation import evaluate_predictions, summary_table
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
    # Segments have the plan's names, so that the evaluation can be compared with those of runs.
    by_value = {value: name for name, values in our_plan.targets.items() for value in values}
    evaluation = evaluate_predictions(predictions, replace(data_set, labels=by_value), output / "evaluation")
    click.echo(summary_table(evaluation.summary))
    made = iterations * epochs
    click.echo(
        f"nnU-Net made {made} steps of {batch} windows of {' x '.join(map(str, planned['patch_size']))}, "
        f"{made * batch} samples, where the plan makes {our_plan.training.steps} steps of {our_plan.training.batch}; "
        f"{len(files)} cases are segmented in {predictions}.",
        err=True,
    )


if __name__ == "__main__":
    from conresnet.cli.main import main

    sys.exit(main(None, compare, "python Testing/Benchmarks/nnunet.py"))
