"""The models of brain-structures and hippocampus on whole heads: four of the tables in docs/models.md.

    python Testing/Benchmarks/brain_structures.py IXI_T1_2mm_tissue UPENN-GBM_pat2

- hippocampi by the locator, against those in an ROI around the label, both measured against DLMUSE's labels
- hippocampi of all heads in ROIs with several margins
- the tissues that the structures add up to, against the silver labels of the tissues
- one head in several contrasts, against its T1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measures import dice

import conresnet
from conresnet.images import Volume
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.package import ModelDescription

# Neither model was trained on them.
HEADS = ("IXI012", "IXI034")
# DLMUSE's values.
HIPPOCAMPI = {"Left": 48, "Right": 47}
MARGIN = 8.0  # mm, as the locator has
MARGINS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
TISSUES = {
    "gray matter": (2, ("cortex", "thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "area")),
    "white matter": (3, ("white matter", "Brain stem", "ventral diencephalon")),
}
PARTS = ("cerebral white matter", "cerebral cortex", "thalamus", "putamen", "hippocampus", "Brain stem")


def found(image: Path, model: str, **options: object) -> np.ndarray:
    """The labels of an image."""
    return sitk.GetArrayFromImage(conresnet.segment(image, model, **options).labels)


def labels_ending(description: ModelDescription, endings: tuple[str, ...]) -> list[int]:
    """The labels of the segments whose names end so."""
    return [segment.label for segment in description.output.segments if segment.name.endswith(endings)]


def box_around(labels: Volume, value: int, margin: float) -> BoxROI:
    """The box along the patient's axes around a label, with a margin in mm on all sides."""
    points = labels.grid.to_ras(np.argwhere(labels.array == value).astype(float))
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    return BoxROI((low + high) / 2, np.eye(3), high - low)


def hippocampi(heads: Path) -> None:
    """Print a row per head and side."""
    print("| head | side | ROI found by the locator | ROI around the reference label |\n|---|---|---|---|")
    step = max(segment.label for segment in conresnet.read_model("hippocampus").description.output.segments)
    for head in HEADS:
        image = heads / "imagesTr" / f"{head}.nii.gz"
        truth = read_volume(heads / "dlmuse" / f"{head}.nii.gz")
        located = found(image, "hippocampus", roi="auto")
        for side, (name, value) in enumerate(HIPPOCAMPI.items()):
            mask = truth.array == value
            around = found(image, "hippocampus", roi=box_around(truth, value, MARGIN))
            mine = (located > side * step) & (located <= (side + 1) * step)
            print(f"| {head} | {name.lower()} | {dice(mine, mask):.3f} | {dice(around > 0, mask):.3f} |", flush=True)


def margins(heads: Path) -> None:
    """Print a row per margin: means over both sides of all heads. No hippocampus of them was trained on."""
    print("| margin, mm | Dice | anterior part, mean (standard deviation) |\n|---|---|---|")
    for margin in MARGINS:
        scores, shares = [], []
        for path in sorted((heads / "dlmuse").glob("*.nii.gz")):
            truth = read_volume(path)
            for value in HIPPOCAMPI.values():
                labels = found(heads / "imagesTr" / path.name, "hippocampus", roi=box_around(truth, value, margin))
                scores.append(dice(labels > 0, truth.array == value))
                shares.append(np.count_nonzero(labels == 1) / max(1, np.count_nonzero(labels)))
        print(f"| {margin:g} | {np.mean(scores):.3f} | {np.mean(shares):.2f} ({np.std(shares):.2f}) |", flush=True)


def tissues(heads: Path) -> None:
    """Print a row per head."""
    print(f"| head | {' | '.join(TISSUES)} |\n|---|---|---|")
    description = conresnet.read_model("brain-structures").description
    for head in HEADS:
        labels = found(heads / "imagesTr" / f"{head}.nii.gz", "brain-structures")
        truth = read_volume(heads / "labelsTr" / f"{head}.nii.gz").array
        cells = [
            f"{dice(np.isin(labels, labels_ending(description, endings)), truth == value):.3f}"
            for value, endings in TISSUES.values()
        ]
        print(f"| {head} | {' | '.join(cells)} |", flush=True)


def contrasts(patient: Path) -> None:
    """Print a row per contrast: the mean over both sides."""
    print(f"| Dice with the result in T1 | {' | '.join(PARTS)} |\n|{'---|' * (len(PARTS) + 1)}")
    description = conresnet.read_model("brain-structures").description
    (reference,) = patient.glob("*_T1.nii.gz")
    expected = found(reference, "brain-structures")
    for image in sorted(set(patient.glob("*.nii.gz")) - {reference}):
        labels = found(image, "brain-structures")
        means = [
            np.mean([dice(labels == value, expected == value) for value in labels_ending(description, (part,))])
            for part in PARTS
        ]
        print(f"| {image.name} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, help="heads with imagesTr, labelsTr and dlmuse")
    parser.add_argument("patient", type=Path, help="one head in several contrasts, registered to each other")
    arguments = parser.parse_args()
    hippocampi(arguments.heads)
    margins(arguments.heads)
    tissues(arguments.heads)
    contrasts(arguments.patient)
