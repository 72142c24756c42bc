"""How robust a model is to scans of half the resolution: a table of Dice and of the shift between result and labels.

    python Testing/Benchmarks/coarse_scans.py Task04_Hippocampus [--model hippocampus]

The cases are those that the model's own metrics.json names as held out. Each scan is averaged over two voxels along
every axis and interpolated back without a shift, so that it is only blurred; the labels stay unchanged. A model whose
results are shifted has learned the shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import SimpleITK as sitk


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="hippocampus", show_default=True, help="A model's name or package.")
def measure(data: Path, model: str) -> None:
    """Segment the cases of DATA that the model never saw, unchanged and at half the resolution."""
    from conresnet.inference.segmentation import load_model
    from conresnet.package.reader import held_out_cases
    from conresnet_training.data.layouts import read_data_set

    loaded = load_model(model)
    held_out = held_out_cases(loaded.package)
    if not held_out:
        raise click.UsageError(f"The package {model} does not say which cases it never saw.")
    cases = [case for case in read_data_set(data).cases if case.name in held_out]
    segments = loaded.description.output.segments
    click.echo(" | ".join(["| scan", *(segment.name for segment in segments), "result minus label, mm (R, A, S) |"]))
    click.echo("|---" * (2 + len(segments)) + "|")
    for name, rows in figures(loaded, cases).items():
        *dice, right, front, up = np.mean(rows, axis=0)
        click.echo(
            f"| {name} | "
            + " | ".join(f"{value:.3f}" for value in dice)
            + f" | {right:+.2f}, {front:+.2f}, {up:+.2f} |"
        )


def figures(model, cases: Iterable) -> dict[str, list[list[float]]]:
    """For each kind of scan, one row per case: Dice of each segment, then the centroid's shift in mm (R, A, S)."""
    from changed_heads import segmented
    from measures import dice

    rows: dict[str, list[list[float]]] = {}
    for case in cases:
        scan, truth = sitk.ReadImage(str(case.images[0]), sitk.sitkFloat32), sitk.ReadImage(str(case.label))
        expected = sitk.GetArrayFromImage(truth)
        for name, image in scans(scan):
            found = sitk.GetArrayFromImage(segmented(model, image))
            labels = [segment.label for segment in model.description.output.segments]
            scores = [dice(found == label, expected == label) for label in labels]
            rows.setdefault(name, []).append([*scores, *(centroid(found, scan) - centroid(expected, scan))])
    return rows


def scans(scan: sitk.Image) -> Iterator[tuple[str, sitk.Image]]:
    """Yield (kind of scan, image on the grid of ``scan``)."""
    yield "unchanged", scan
    coarse = sitk.BinShrink(scan, [2, 2, 2])
    # Between the centers of the outermost coarse voxels and the faces, their values are repeated.
    yield "half the resolution", sitk.Resample(coarse, scan, useNearestNeighborExtrapolator=True)


def centroid(labels: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """Centroid of all labeled voxels, in mm (R, A, S)."""
    index = np.argwhere(labels > 0).mean(axis=0)[::-1]
    return np.array(grid.TransformContinuousIndexToPhysicalPoint(index.tolist())) * (-1, -1, 1)


if __name__ == "__main__":
    measure()
