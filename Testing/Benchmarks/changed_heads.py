"""How robust a brain-tissue model is to other scanners, protocols and preprocessing: a table of Dice.

    python Testing/Benchmarks/changed_heads.py [--model brain-tissue] [--image HEAD --labels LABELS]

One head is altered to imitate other scanners, protocols and programs and segmented by the engine, and the result is
compared with the labels on their own grid. The default is the head of the test data, which the shipped model never saw.
These are only simulations: scans from real other scanners may be harder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import SimpleITK as sitk
from measures import dice

HEAD = Path(__file__).resolve().parents[1] / "Data" / "IXI_T1_2mm"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--model", default="brain-tissue", show_default=True, help="A model's name or package.")
@click.option("--image", type=FILE, default=HEAD / "IXI034.nii.gz", help="T1 MR of a head with its skull.")
@click.option(
    "--labels", type=FILE, default=HEAD / "IXI034_tissue.nii.gz", help="Its labels, with the model's label values."
)
def measure(model: str, image: Path, labels: Path) -> None:
    """Segment a head unchanged and altered, and print the Dice of each segment."""
    from conresnet.inference.segmentation import load_model

    loaded = load_model(model)
    segments = loaded.description.output.segments
    click.echo("| head | " + " | ".join(segment.name for segment in segments) + " |")
    click.echo("|---" * (1 + len(segments)) + "|")
    head, truth = sitk.ReadImage(str(image), sitk.sitkFloat32), sitk.ReadImage(str(labels), sitk.sitkUInt8)
    for name, changed, reference in changes(head, truth):
        found = on_grid_of(reference, segmented(loaded, changed))
        seen = on_grid_of(reference, sitk.Cast(changed * 0 + 1, sitk.sitkUInt8)) > 0
        found, expected = found[seen], sitk.GetArrayFromImage(reference)[seen]
        cells = [f"{dice(found == segment.label, expected == segment.label):.3f}" for segment in segments]
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


def changes(head: sitk.Image, truth: sitk.Image) -> Iterator[tuple[str, sitk.Image, sitk.Image]]:
    """Yield (name of the change, altered head, labels to compare with)."""
    array, brain = sitk.GetArrayFromImage(head), truth > 0
    rng = np.random.default_rng(0)
    noise = 0.05 * np.percentile(array, 99)
    place = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, side) for side in array.shape), indexing="ij"))
    coil = np.exp(np.tensordot([1.0, 0.8, -0.6], place, 1))
    supine = sitk.DICOMOrient(head, "LPS")
    tilt = sitk.Euler3DTransform()
    tilt.SetCenter(head.TransformContinuousIndexToPhysicalPoint([side / 2 for side in head.GetSize()]))
    tilt.SetRotation(0.35, 0.1, 0.2)

    yield "unchanged", head, truth
    yield "1 mm", resampled(head, (1, 1, 1)), truth
    yield "3 mm slices in LPS order, 1 mm in plane", resampled(supine, (1, 1, 3)), truth
    yield "skull stripped, with a margin of one voxel", sitk.Mask(head, sitk.BinaryDilate(brain, (1, 1, 1))), truth
    yield "skull stripped closely", sitk.Mask(head, brain), truth
    rician = np.hypot(array + rng.normal(0, noise, array.shape), rng.normal(0, noise, array.shape))
    yield "Rician noise of 5%", like(head, rician), truth
    yield "uneven coil sensitivity", like(head, array * coil), truth
    yield "different contrast (gamma 0.6)", like(head, (array / array.max()) ** 0.6), truth
    yield "without neck and lower face", supine[:, :, int(0.35 * supine.GetSize()[2]) :], truth
    turned = sitk.Resample(head, head, tilt, sitk.sitkLinear)
    yield "tilted by 20 degrees", turned, sitk.Resample(truth, head, tilt, sitk.sitkNearestNeighbor)


def segmented(model, head: sitk.Image) -> sitk.Image:
    """The engine's label map, on the head's grid."""
    from conresnet.images.files import read_volume
    from conresnet.inference.segmentation import segment

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.nii.gz"
        sitk.WriteImage(head, str(path))
        labels = segment(model, [read_volume(path)]).labels.array
    return like(head, labels.astype(np.uint8))


def resampled(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    """``image`` resampled to ``spacing`` (mm) over the same physical box, with cubic B-splines."""
    ratio = np.array(spacing) / image.GetSpacing()
    size = [round(side / step) for side, step in zip(image.GetSize(), ratio, strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint(((ratio - 1) / 2).tolist())
    return sitk.Resample(image, size, sitk.Transform(), sitk.sitkBSpline, origin, spacing, image.GetDirection())


def like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    """``array`` as an image on the grid of ``image``."""
    made = sitk.GetImageFromArray(array if array.dtype == np.uint8 else array.astype(np.float32))
    made.CopyInformation(image)
    return made


def on_grid_of(reference: sitk.Image, labels: sitk.Image) -> np.ndarray:
    """The label with the largest share of each voxel of ``reference``.

    Nearest-neighbor interpolation would be biased to one side: centers of 2 mm voxels are halfway between centers of
    1 mm voxels.
    """
    shares = [
        sitk.Resample(sitk.Cast(labels == value, sitk.sitkFloat32), reference, sitk.Transform(), sitk.sitkLinear)
        for value in range(int(sitk.GetArrayViewFromImage(labels).max()) + 1)
    ]
    return np.argmax([sitk.GetArrayViewFromImage(share) for share in shares], axis=0)


if __name__ == "__main__":
    measure()
