"""Make the data set of brain-structures.yaml from SynthSeg's label maps and from IXI heads with labels from DLMUSE.

Usage: python make_brain_structures_data.py SynthSeg_labelmaps IXI_T1_2mm_tissue OUTPUT
"""

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt

# For each structure: FreeSurfer's values on the left and on the right, the main one first, then MUSE's on either side.
PAIRS = {
    "cerebral white matter": ([2, 25, 30], [41, 57, 62], [82, 84, 86, 88, 90, 92, 94], [81, 83, 85, 87, 89, 91, 93]),
    "cerebral cortex": ([3], [42], [], []),
    "lateral ventricle": ([4, 136, 137], [43, 163, 164], [52], [51]),
    "inferior lateral ventricle": ([5], [44], [50], [49]),
    "cerebellum white matter": ([7], [46], [41], [40]),
    "cerebellum cortex": ([8], [47], [39], [38]),
    "thalamus": ([10], [49], [60], [59]),
    "caudate": ([11], [50], [37], [36]),
    "putamen": ([12], [51], [58], [57]),
    "pallidum": ([13], [52], [56], [55]),
    "hippocampus": ([17], [53], [48], [47]),
    "amygdala": ([18], [54], [32], [31]),
    "accumbens area": ([26], [58], [30], [23]),
    "ventral diencephalon": ([28], [60], [62, 75], [61, 76]),
}
MIDLINE = {"Third ventricle": ([14, 72], [4]), "Fourth ventricle": ([15], [11]), "Brain stem": ([16], [35]),
           "Cerebrospinal fluid": ([24], [1, 46])}  # fmt: skip
# MUSE's values without a side (corpus callosum, vermis); each voxel gets FreeSurfer's value of the nearer side.
DIVIDED = {95: (2, 41), 71: (8, 47), 72: (8, 47), 73: (8, 47)}
FIRST_CORTEX = 100
# Cases held out in each fold. The IXI heads of fold 0 were also held out when brain-tissue was trained.
HELD_OUT = [{"IXI012", "IXI034", "training_seg_20"}, {"IXI013", "IXI048", "training_seg_09"}]
OTHERS = [85]
SURROUNDINGS = [502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530]
# Contrast of T1 images: mean and standard deviation in each structure, on a scale where white matter is 0.8. Measured
# in the IXI heads, relative to nearby white matter to remove the bias field, which makes their center brighter.
T1 = {
    2: (0.80, 0.04), 3: (0.55, 0.05), 4: (0.20, 0.04), 5: (0.25, 0.05), 7: (0.79, 0.04), 8: (0.55, 0.06),
    10: (0.69, 0.05), 11: (0.61, 0.03), 12: (0.64, 0.03), 13: (0.74, 0.03), 14: (0.24, 0.05), 15: (0.22, 0.05),
    16: (0.76, 0.05), 17: (0.58, 0.04), 18: (0.58, 0.03), 24: (0.17, 0.06), 26: (0.62, 0.03), 28: (0.74, 0.06),
    25: (0.62, 0.06), 30: (0.35, 0.08), 72: (0.22, 0.05), 136: (0.25, 0.06), 137: (0.25, 0.06), 85: (0.70, 0.06),
}  # fmt: skip


def description() -> dict:
    """The content of ``label_maps.json``."""
    segments, alike = {}, []
    for name, (left, right, *_) in PAIRS.items():
        segments[f"Left {name}"], segments[f"Right {name}"] = left, right
        alike += [list(pair) for pair in zip(left, right, strict=True)]
    segments |= {name: values for name, (values, _) in MIDLINE.items()}
    partner = dict(alike)
    contrast = {str(value): list(numbers) for one, numbers in T1.items() for value in {one, partner.get(one, one)}}
    return {
        "name": "Brain structures",
        "licence": "Apache-2.0 (label maps), CC-BY-SA 3.0 (IXI images)",
        "channel": "MR",
        "label_maps": "label_maps/*.nii.gz",
        "segments": dict(sorted(segments.items(), key=lambda item: item[1][0])),
        "inside": OTHERS,
        "surroundings": SURROUNDINGS,
        "alike": alike,
        "contrasts": {"T1": contrast},
        "images": [],
    }


def renumbered(muse: np.ndarray) -> np.ndarray:
    """A label map with MUSE's values converted to FreeSurfer's (uint8)."""
    result = np.zeros(muse.shape, np.uint8)
    for left, right, muse_left, muse_right in PAIRS.values():
        result[np.isin(muse, muse_left)], result[np.isin(muse, muse_right)] = left[0], right[0]
    for values, muse_values in MIDLINE.values():
        result[np.isin(muse, muse_values)] = values[0]
    is_cortex = muse >= FIRST_CORTEX
    result[is_cortex & (muse % 2 == 1)], result[is_cortex & (muse % 2 == 0)] = 3, 42
    sides = [np.isin(result, [pair[side][0] for pair in PAIRS.values()]) for side in (0, 1)]
    distances = [distance_transform_edt(~side) for side in sides]
    for value, (left, right) in DIVIDED.items():
        result[muse == value] = np.where(distances[0] <= distances[1], left, right)[muse == value]
    return result


def main(label_maps: Path, heads: Path, output: Path) -> None:
    """Write the data set into the folder ``output``."""
    for name in ("label_maps", "images", "labels"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for file in sorted(label_maps.glob("*.nii.gz")):
        shutil.copy(file, output / "label_maps")
    content = description()
    for file in sorted((heads / "dlmuse").glob("*.nii.gz")):
        image = nib.load(file)
        array = renumbered(np.asarray(image.dataobj))
        nib.save(nib.Nifti1Image(array, image.affine), output / "labels" / file.name)
        shutil.copy(heads / "imagesTr" / file.name, output / "images")
        content["images"].append({"image": f"images/{file.name}", "label": f"labels/{file.name}"})
    (output / "label_maps.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    files = [*(output / "label_maps").iterdir(), *(output / "images").iterdir()]
    names = {file.name.removesuffix(".nii.gz") for file in files}
    folds = [{"train": sorted(names - fold), "val": sorted(names & fold)} for fold in HELD_OUT]
    (output / "splits_final.json").write_text(json.dumps(folds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
