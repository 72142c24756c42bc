"""Synthesize the example CT of head-neck-organs from a label map of SynthSeg, and the labels of what it shows.

    .venv/bin/python Utilities/make_example_ct.py training_seg_02.nii.gz

No CT of a head was at hand whose license allows redistribution. Each tissue gets one mean value in HU with noise, so
glands cannot be told from muscle: where the parotid glands are found, the model goes by their surroundings. The CT is
written to the examples of ConRes Segmentation, the labels (1 brainstem, 2 spinal cord) to the test data.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

REPOSITORY = Path(__file__).resolve().parents[1]
CT = REPOSITORY / "ConResSegmentation" / "Resources" / "Examples" / "head_neck_ct.nii.gz"
LABELS = REPOSITORY / "Testing" / "Data" / "Synthetic_CT" / "labels.nii.gz"
# Mean HU of FreeSurfer's values on the left, which those on the right share, of the midline, and of SynthSeg's values.
HU = {
    0: -1000, 2: 28, 3: 37, 4: 6, 5: 6, 7: 30, 8: 38, 10: 36, 11: 37, 12: 37, 13: 36, 17: 37, 18: 36, 25: 25, 26: 36,
    28: 32, 30: 45, 14: 6, 15: 6, 16: 30, 24: 8, 72: 6, 85: 32, 136: 8, 137: 8,
    502: 50, 506: 10, 507: 50, 508: 90, 509: -200, 511: -40, 512: 32, 514: 45, 515: 1000, 516: 350, 530: 40,
}  # fmt: skip
RIGHT = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 57: 25, 58: 26,
         60: 28, 62: 30, 163: 136, 164: 137}  # fmt: skip
BRAIN_STEM, SPINAL_CORD = 16, 512
SPACING = (2.0, 2.0, 3.0)
BLUR, NOISE = 0.7, 12.0  # mm, HU
MARGIN = 10.0  # mm around the head
ABOVE = 35.0  # mm above the brain stem
STEP = 4  # HU; finer steps would only be noise to compress


def make(path: Path) -> tuple[sitk.Image, sitk.Image]:
    """The CT in HU and its labels, both on the same grid."""
    labels = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkInt32), "LPS")
    values = sitk.GetArrayFromImage(labels)
    table = np.full(values.max() + 1, HU[507], np.float32)
    for value in np.unique(values):
        table[value] = HU[RIGHT.get(int(value), int(value))]
    sharp = sitk.GetImageFromArray(table[values])
    sharp.CopyInformation(labels)
    head, stem = np.argwhere(values > 0), np.argwhere(values == BRAIN_STEM)
    first, last = head.min(0), head.max(0)
    last[0] = min(last[0], stem[:, 0].max() + ABOVE)
    margin = np.array([0, MARGIN, MARGIN])
    begin = (first - margin)[::-1]
    size = np.ceil((last - first + 2 * margin + 1)[::-1] / SPACING).astype(int).tolist()
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetOrigin(labels.TransformContinuousIndexToPhysicalPoint(begin.tolist()))
    grid.SetSpacing(SPACING)
    grid.SetDirection(labels.GetDirection())
    blurred = sitk.SmoothingRecursiveGaussian(sharp, BLUR)
    ct = sitk.Resample(blurred, grid, sitk.Transform(), sitk.sitkLinear, HU[0])
    array = sitk.GetArrayFromImage(ct)
    array += np.random.default_rng(0).normal(0, NOISE, array.shape)
    rounded = sitk.GetImageFromArray((np.maximum(array, HU[0]) / STEP).round().astype(np.int16) * np.int16(STEP))
    rounded.CopyInformation(grid)
    known = sitk.GetImageFromArray(np.select([values == BRAIN_STEM, values == SPINAL_CORD], [1, 2]).astype(np.uint8))
    known.CopyInformation(labels)
    return rounded, sitk.Resample(known, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


if __name__ == "__main__":
    for image, target in zip(make(Path(sys.argv[1])), (CT, LABELS), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(target), useCompression=True, compressionLevel=9)
