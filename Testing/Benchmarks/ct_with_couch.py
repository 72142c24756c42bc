"""Whether a CT model ignores the couch, the mask and the noisy air of a real scan: a table of Dice.

    python Testing/Benchmarks/ct_with_couch.py HN_OAR_OpenKBP --model PACKAGE [--pictures FOLDER]

The data set has everything outside the body removed. Each case that the model never saw (those in its metrics.json) is
segmented unchanged, and again the way a scanner delivers it: on a finer grid, with a couch top, a head rest, a
thermoplastic mask and noise, all simulated in HU. The simulation shares no code with the one used in training. Both
results are compared with the labels on the labels' own grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import SimpleITK as sitk
from changed_heads import like, on_grid_of, segmented
from measures import dice
from scipy.ndimage import binary_fill_holes

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
AIR = -1024
FINE_SPACING = (1.5, 1.5, 3.0)


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--model", required=True, help="A model's name or package.")
@click.option("--most", type=int, default=1000, help="Number of cases to measure at most.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for one picture per case.")
def measure(data: Path, model: str, most: int, pictures: Path | None) -> None:
    """Segment the held-out cases of the data set DATA with and without a couch, and print the Dice of each segment."""
    from conresnet.inference.segmentation import load_model
    from conresnet.package.reader import held_out_cases

    loaded = load_model(model)
    held_out = sorted(held_out_cases(loaded.package))
    if not held_out:
        raise click.UsageError(f"The package {model} does not say which cases it never saw.")
    segments = loaded.description.output.segments
    click.echo("| case | scan | " + " | ".join(segment.name for segment in segments) + " | mean | outside the body |")
    click.echo("|---" * (4 + len(segments)) + "|")
    rows: dict[str, list[list[float]]] = {}
    for case in held_out[:most]:
        image = sitk.ReadImage(str(data / "imagesTr" / f"{case}.nii.gz"), sitk.sitkFloat32)
        truth = sitk.ReadImage(str(data / "labelsTr" / f"{case}.nii.gz"), sitk.sitkUInt8)
        expected, body = sitk.GetArrayFromImage(truth), sitk.GetArrayFromImage(image) > AIR
        for name, scan in scans(image):
            labels = segmented(loaded, scan)
            found = on_grid_of(truth, labels)
            scores = [dice(found == segment.label, expected == segment.label) for segment in segments]
            outside = np.count_nonzero(found[~body]) / np.count_nonzero(found)
            rows.setdefault(name, []).append([*scores, np.mean(scores), outside])
            click.echo(f"| {case} | {name} | " + " | ".join(f"{value:.3f}" for value in rows[name][-1]) + " |")
            if pictures and scan is not image:
                save_picture(scan, labels, pictures / f"{case}.png")
    for name, values in rows.items():
        click.echo(f"| mean | {name} | " + " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0)) + " |")


def scans(image: sitk.Image) -> Iterator[tuple[str, sitk.Image]]:
    """(name, scan): the case as published, and with what surrounds a patient."""
    yield "as published", image
    yield "couch, mask, noise", with_surroundings(image, np.random.default_rng(0))


def with_surroundings(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    """A CT (L, P, S axes, air at -1024 HU) on a finer grid with couch, head rest, mask and noise, in HU."""
    ratio = np.array(FINE_SPACING) / image.GetSpacing()
    margin = [0, round(120 / FINE_SPACING[1]), 0]
    size = [round(side / step) + extra for side, step, extra in zip(image.GetSize(), ratio, margin, strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint(((ratio - 1) / 2).tolist())
    fine = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, origin, FINE_SPACING, image.GetDirection(), AIR
    )
    # Lungs and windpipe belong to the body.
    body = like(fine, np.stack([binary_fill_holes(plane) for plane in sitk.GetArrayFromImage(fine) > AIR + 300]) * 1)
    body = sitk.Cast(body > 0, sitk.sitkUInt8)
    skin = sitk.SignedMaurerDistanceMap(body, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    distance, scan = sitk.GetArrayFromImage(skin), sitk.GetArrayFromImage(fine)
    is_air = distance > 0
    air = random.normal(-1000, 15, scan.shape)
    scan = np.where(is_air, np.maximum(scan, air), scan)
    rows = np.arange(scan.shape[1])[None, :, None] * FINE_SPACING[1]
    columns = np.arange(scan.shape[2])[None, None, :] * FINE_SPACING[0]
    slices = np.arange(scan.shape[0])[:, None, None]
    occupied = np.argwhere(body_array := sitk.GetArrayFromImage(body).astype(bool))
    back, middle = occupied[:, 1].max() * FINE_SPACING[1], occupied[:, 2].mean() * FINE_SPACING[0]
    # The couch: two plates of carbon fiber with foam between them, 530 mm wide.
    below, aside = rows - back - 5, np.abs(columns - middle)
    is_couch = is_air & (aside < 265)
    scan = np.where(is_couch & (below > 0) & (below < 50), random.normal(-950, 15, scan.shape), scan)
    for top in (0, 50):
        scan = np.where(is_couch & (below > top) & (below < top + 3), random.normal(-80, 30, scan.shape), scan)
    # The head rest: a block of foam with a rim as dense as plastic, under the upper half of the scan.
    upper = slices > scan.shape[0] / 2
    head_back = np.argwhere(body_array[scan.shape[0] // 2 :])[:, 1].max() * FINE_SPACING[1]
    is_rest = is_air & upper & (aside < 110) & (rows > head_back - 60) & (below <= 0)
    scan = np.where(is_rest, random.normal(-900, 20, scan.shape), scan)
    rim = is_rest & ((distance < 5) | (aside > 107))
    scan = np.where(rim, random.normal(20, 40, scan.shape), scan)
    # The mask: 3 mm of plastic over the front of head and shoulders, 0 to 3 mm off the skin.
    front = rows < occupied[:, 1].mean() * FINE_SPACING[1]
    scan = np.where(is_air & front & (distance > 1) & (distance < 4), random.normal(80, 40, scan.shape), scan)
    return like(fine, np.round(scan + random.normal(0, 8, scan.shape)))


def save_picture(scan: sitk.Image, labels: sitk.Image, path: Path) -> None:
    """Outlines of the segments on four axial slices and the middle coronal slice."""
    from matplotlib.figure import Figure

    from conresnet_training.reporting import outline

    values, found = sitk.GetArrayFromImage(scan), sitk.GetArrayFromImage(labels)
    occupied = np.flatnonzero(found.any((1, 2)))
    places = np.linspace(occupied[0], occupied[-1], 6)[1:-1].astype(int) if occupied.size else [len(values) // 2]
    row = int(np.argwhere(found)[:, 1].mean()) if occupied.size else values.shape[1] // 2
    planes = [(values[place], found[place]) for place in places]
    planes.append((values[::-1, row], found[::-1, row]))
    figure = Figure(figsize=(4 * len(planes), 4), layout="tight")
    for axes, (plane, shown) in zip(np.ravel(figure.subplots(1, len(planes))), planes, strict=True):
        axes.imshow(plane, cmap="gray", vmin=-200, vmax=300, aspect="auto")
        for value in range(1, int(found.max()) + 1):
            outline(axes, shown == value, colors=[f"C{value}"], linewidths=0.8)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    measure()
