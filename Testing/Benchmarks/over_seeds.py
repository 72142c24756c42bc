"""Summarize a comparison of systems that was trained with several seeds.

    for seed in 0 1 2; do
        python Testing/Benchmarks/compare_systems.py PLAN.yaml --output FOLDER/seed_$seed --set training.seed=$seed \\
            --rows conresnet,conresnet-baseline,dynunet
    done
    python Testing/Benchmarks/over_seeds.py FOLDER/seed_*

Prints a table: the mean Dice and Hausdorff distance of each seed, and the difference of each row to ConResNet, paired
by case and seed. The interval is a bootstrap over both cases and seeds. With only three seeds it is a rough estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

DECIMALS = {"dice": 4, "hd95": 2}
RESAMPLES = 9999


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--reference", default="conresnet", show_default=True, help="Row to compare the others with.")
def summarize(folders: Sequence[Path], reference: str) -> None:
    """Summarize the comparisons in FOLDERS, one per seed."""
    values = {metric: figures(folders, metric) for metric in DECIMALS}
    rows = list(values["dice"])
    if reference not in rows:
        raise click.UsageError(f"no row {reference} is evaluated in every folder; found: {', '.join(rows) or 'none'}")
    headings = ["system", "Dice per seed", "mean", "minus the reference"]
    headings += ["Hausdorff 95% per seed, mm", "mean", "minus the reference"]
    lines = [headings, ["---"] * len(headings)]
    for row in rows:
        line = [row]
        for metric, decimals in DECIMALS.items():
            table = values[metric][row]
            line.append(", ".join(f"{value:.{decimals - 1}f}" for value in np.nanmean(table, axis=1)))
            line.append(f"{np.nanmean(table):.{decimals - 1}f}")
            line.append("" if row == reference else difference(table - values[metric][reference], decimals))
        lines.append(line)
    cases = values["dice"][reference].shape[1]
    click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
    click.echo(f"\n{len(folders)} seeds, {cases} held-out cases; interval over cases and seeds.")


def figures(folders: Sequence[Path], metric: str) -> dict[str, np.ndarray]:
    """Values (seeds, cases) of each row that was evaluated in all folders; NaN where a case has no value."""
    from compare_systems import EVALUATION

    from conresnet_training.evaluation import JSON_FILE, read_evaluation
    from conresnet_training.evaluation.metrics import OVERALL, per_case

    rows = [{path.parts[-3]: path for path in folder.glob(f"*/{EVALUATION}/{JSON_FILE}")} for folder in folders]
    evaluated = {
        row: [read_evaluation(paths[row]).cases for paths in rows] for row in sorted(set.intersection(*map(set, rows)))
    }
    cases = sorted({case for seeds in evaluated.values() for seed in seeds for case in seed})
    found = {row: [per_case(seed, OVERALL, metric) for seed in seeds] for row, seeds in evaluated.items()}
    return {
        row: np.array([[seed.get(case, np.nan) for case in cases] for seed in seeds]) for row, seeds in found.items()
    }


def difference(table: np.ndarray, decimals: int) -> str:
    """Mean of the paired differences (seeds, cases), and its 95% interval from a bootstrap over both."""
    generator = np.random.default_rng(0)
    seeds, cases = (generator.integers(size, size=(RESAMPLES, size)) for size in table.shape)
    means = [np.nanmean(table[np.ix_(*picked)]) for picked in zip(seeds, cases, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{np.nanmean(table):+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"


if __name__ == "__main__":
    summarize()
