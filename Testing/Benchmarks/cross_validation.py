"""ConResNet against its baseline by cross-validation: the same plan twice, with and without its two mappings.

    python Testing/Benchmarks/cross_validation.py --data Task04_Hippocampus --output FOLDER [--jobs 2]

Trained by the recipe of the shipped model, 3 folds of 2000 steps if nothing else is said. Every case is measured by the
fold that never saw it; then the two are compared case by case, and the differences drawn. Run again with the same
folder, it goes on where it was. It is no more than these commands and a picture:

    python -m conresnet_training crossval RECIPE --output FOLDER/conresnet --set training.steps=2000 ...
    python -m conresnet_training crossval RECIPE --output FOLDER/baseline ... --set ...residual_mapping=false ...
    python -m conresnet_training compare FOLDER/conresnet/evaluation FOLDER/baseline/evaluation
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / "ConResSegmentation"), str(ROOT / "ConResTraining")]
sys.path[:0] = SOURCES

RECIPE = ROOT / "ConResTraining" / "conresnet_training" / "recipes" / "hippocampus.yaml"
ARGUMENTS = "model.system.networks.0.arguments"
VARIANTS = {
    "conresnet": (),
    "baseline": (f"{ARGUMENTS}.attention_mapping=false", f"{ARGUMENTS}.residual_mapping=false"),
}
FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("plan", type=FILE, default=RECIPE)
@click.option("--data", type=FOLDER, help="The data, if not where the plan says.")
@click.option("--output", type=FOLDER, required=True, help="Where both cross-validations are kept.")
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Of each fold.")
@click.option("--folds", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Folds trained side by side.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the plan, for both alike.")
def compare(plan, data, output, steps, folds, jobs, settings) -> None:
    """Cross-validate PLAN's network and its baseline, and compare them case by case.  [default: the shipped recipe]"""
    from conresnet_training.evaluation import read_evaluation
    from conresnet_training.evaluation.compare import compare_evaluations, comparison_table

    output.mkdir(parents=True, exist_ok=True)
    common = [f"training.steps={steps}", f"training.folds={folds}", *settings]
    for name, own in VARIANTS.items():
        _cross_validate(plan, data, output / name, jobs, [*common, *own])
    first, second = (read_evaluation(output / name) for name in ("conresnet/evaluation", "baseline/evaluation"))
    click.echo(f"\nA: ConResNet. B: its baseline. {steps} steps, {folds} folds, {len(first.cases)} cases.\n")
    click.echo(comparison_table(compare_evaluations(first, second)))
    picture = output / "differences.png"
    draw_differences(first, second, picture)
    click.echo(f"The differences of the cases are drawn in {picture}.", err=True)


def _cross_validate(plan: Path, data: Path | None, folder: Path, jobs: int, settings: list[str]) -> None:
    command = [sys.executable, "-m", "conresnet_training", "crossval", plan, "--output", folder, "--jobs", str(jobs)]
    command += ["--data", data] if data else []
    for setting in settings:
        command += ["--set", setting]
    path = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    if status:
        # It has said why.
        sys.exit(status)
    if not (folder / "evaluation" / "evaluation.json").exists():
        sys.exit(f"{folder} was stopped; the same command goes on with it.")


def draw_differences(first, second, picture: Path) -> None:
    """Draw each case's difference in Dice, the first evaluation less the second, with the mean's 95 % interval.

    Args:
        first, second: evaluations with cases in common.
        picture: the PNG to write.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from conresnet_training.evaluation.summary import OVERALL, mean_interval, per_case

    rows = [*first.segments, OVERALL] if len(first.segments) > 1 else list(first.segments)
    figure = Figure(figsize=(4.5 * len(rows), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for panel, segment in zip(panels, rows, strict=True):
        ours, theirs = (per_case(evaluation.cases, segment, "dice") for evaluation in (first, second))
        differences = np.array([ours[case] - theirs[case] for case in ours if case in theirs])
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.plot(np.sort(differences), ".", markersize=4)
        title = f"{'Mean of segments' if segment == OVERALL else segment}\n{differences.mean():+.4f}"
        if interval := mean_interval(differences):
            panel.axhspan(*interval, alpha=0.3, color="tab:orange")
            title += f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("cases, by their difference")
    panels[0].set_ylabel("Dice, ConResNet less baseline")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    from conresnet.command_line import main

    sys.exit(main(None, compare, "python Testing/Benchmarks/cross_validation.py"))
