"""What averaging over scaled copies of an image would add to a model's accuracy: a table of mean Dice.

    python Testing/Benchmarks/scaled_copies.py Task04_Hippocampus [--model hippocampus] [--scales 0.92,1.08]

The cases are those that the model's own metrics.json names as held out. A copy is the image with its voxel size
multiplied by a scale, so the network sees it larger or smaller. The engine resamples it and brings its probabilities
back to the image's grid, where those of all copies and of the image itself are averaged. For models whose segments
exclude each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import SimpleITK as sitk


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="hippocampus", show_default=True, help="A model's name or package.")
@click.option("--scales", default="0.92,1.08", show_default=True, help="The scales of the copies.")
def measure(data: Path, model: str, scales: str) -> None:
    """Segment the cases of DATA that the model never saw, without and with scaled copies."""
    from measures import dice

    from conresnet import read_model
    from conresnet.package.reader import held_out_cases
    from conresnet_training.data.layouts import read_data_set

    package = read_model(model)
    held_out = held_out_cases(package)
    if not held_out:
        raise click.UsageError(f"The package {model} does not say which cases it never saw.")
    values = [segment.label for segment in package.description.output.segments]
    cases = [case for case in read_data_set(data).cases if case.name in held_out]
    means = {"image alone": [], "with scaled copies": []}
    for case in cases:
        scan, expected = (sitk.ReadImage(str(path)) for path in (case.images[0], case.label))
        expected = sitk.GetArrayFromImage(expected)
        copies = [probabilities(scan, model, float(scale)) for scale in ("1", *scales.split(","))]
        for name, averaged in zip(means, (copies[:1], copies), strict=True):
            labels = most_probable(averaged, values)
            means[name].append(statistics.fmean(dice(labels == value, expected == value) for value in values))
    click.echo(f"| {len(cases)} cases | mean Dice | difference (standard error) |\n|---|---|---|")
    for name, found in means.items():
        differences = np.subtract(found, means["image alone"])
        error = differences.std(ddof=1) / len(cases) ** 0.5 if len(cases) > 1 else float("nan")
        click.echo(f"| {name} | {statistics.fmean(found):.4f} | {differences.mean():+.4f} ({error:.4f}) |")


def probabilities(scan: sitk.Image, model: str, scale: float) -> np.ndarray:
    """The model's probabilities (S, H, W, segment) in an image whose voxels are taken as ``scale`` times as large."""
    from conresnet import segment

    copy = sitk.Image(scan)
    copy.SetSpacing([side * scale for side in scan.GetSpacing()])
    found = sitk.GetArrayFromImage(segment(copy, model, roi="all", maps=["probability"]).maps["probability"])
    return found if found.ndim == 4 else found[..., None]


def most_probable(copies: Sequence[np.ndarray], values: Sequence[int]) -> np.ndarray:
    """The label values of the segments that are most probable, on average over the copies."""
    segments = np.mean(copies, axis=0)
    background = 1 - segments.sum(axis=-1, keepdims=True)
    return np.array([0, *values])[np.concatenate([background, segments], axis=-1).argmax(axis=-1)]


if __name__ == "__main__":
    measure()
