"""Synthetic data sets with a few small cases in each of the three layouts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from peak_memory import PEAK_MEMORY

SHAPE = (20, 18, 16)
MANY_SHAPE = (64, 64, 64)
MANY_VOXELS = 64**3
BRATS_WORDS = ("t1", "t1ce", "t2", "flair")


def image(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """(i, j, k) int16 noise around 100, with a margin of air."""
    array = np.random.default_rng(seed).normal(100, 10, shape).astype(np.int16)
    array[:2] = 0
    return array


def label(values: Sequence[int] = (1, 2), shape: Sequence[int] = SHAPE, number: int = 0) -> np.ndarray:
    """(i, j, k) uint8 with a box of 6 x 3 x 5 voxels per value, side by side; ``number`` shifts them."""
    first = 4 + number % 8
    array = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        array[5:11, 3 + 3 * place : 6 + 3 * place, first : first + 5] = value
    return array


def save(array: np.ndarray, path: Path, affine: np.ndarray | None = None) -> None:
    """Write an array (i, j, k) or, with channels last, (i, j, k, c); creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return
    stored = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    flip = np.diag([-1.0, -1.0, 1.0])
    stored.SetOrigin((flip @ affine[:3, 3]).tolist())
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stored.SetSpacing(spacing.tolist())
    stored.SetDirection((flip @ affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(stored, str(path))


def describe(folder: Path, **content) -> None:
    """Write ``dataset.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def turn_into_nnunet(folder: Path, regions: dict[str, Sequence[int]], order: Sequence[int]) -> None:
    """Convert a data set with one channel from the Decathlon's layout to nnU-Net's, with regions of its labels."""
    images = sorted((folder / "imagesTr").iterdir())
    for path in images:
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    describe(
        folder,
        channel_names={"0": "MRI"},
        labels={"background": 0, **regions},
        regions_class_order=list(order),
        file_ending=".nii.gz",
        numTraining=len(images),
    )


def decathlon(folder: Path, cases: int = 3, channels: Sequence[str] = ("MRI",), **more) -> Path:
    """``case_0``, ``case_1``, ... with the labels 1 and 2; several channels in one 4D file."""
    entries = []
    for number in range(cases):
        arrays = [image(100 * number + channel) for channel in range(len(channels))]
        save(arrays[0] if len(arrays) == 1 else np.stack(arrays, -1), folder / "imagesTr" / f"case_{number}.nii.gz")
        save(label(number=number), folder / "labelsTr" / f"case_{number}.nii.gz")
        entries.append({"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"})
    content = {
        "name": "Boxes",
        "modality": {str(place): name for place, name in enumerate(channels)},
        "labels": {"0": "background", "1": "Near box", "2": "Far box"},
        "training": entries,
    }
    describe(folder, **{**content, **more})
    return folder


def nnunet(folder: Path, cases: int = 3, channels: Sequence[str] = ("CT",), ending: str = ".nii.gz", **more) -> Path:
    """``case_0_0000`` and so on, one file per channel, in the version 2 format."""
    for number in range(cases):
        for channel in range(len(channels)):
            save(image(100 * number + channel), folder / "imagesTr" / f"case_{number}_{channel:04d}{ending}")
        save(label(number=number), folder / "labelsTr" / f"case_{number}{ending}")
    content = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": {"background": 0, "near": 1, "far": 2},
        "numTraining": cases,
        "file_ending": ending,
    }
    describe(folder, **{**content, **more})
    return folder


def brats(
    folder: Path,
    cases: Sequence[str] = ("BraTS_1", "BraTS_2", "BraTS_3"),
    words: Sequence[str] = BRATS_WORDS,
    divider: str = "_",
    ending: str = ".nii.gz",
    values: Sequence[int] = (1, 2, 4),
) -> Path:
    """One folder per case; a case name may include a parent folder, such as ``HGG/a``."""
    for number, case in enumerate(cases):
        path, name = folder / case, Path(case).name
        for channel, word in enumerate(words):
            save(image(100 * number + channel), path / f"{name}{divider}{word}{ending}")
        save(label(values, number=number), path / f"{name}{divider}seg{ending}")
    return folder


def many_cases(folder: Path, count: int) -> Path:
    """A Decathlon folder of ``count`` cases of ``MANY_SHAPE`` that use the disk space of a single one."""
    save(image(0, MANY_SHAPE), folder / "imagesTr" / "case_0.nii")
    save(label((1,), MANY_SHAPE), folder / "labelsTr" / "case_0.nii")
    names = [f"case_{number}.nii" for number in range(count)]
    for kind in ("imagesTr", "labelsTr"):
        for name in names[1:]:
            os.link(folder / kind / names[0], folder / kind / name)
    training = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    describe(folder, modality={"0": "T1"}, labels={"1": "box"}, training=training)
    return folder


def peak_memory(script: str, *arguments: object) -> int:
    """Peak memory in bytes of a separate process that runs a Python script; Linux only."""
    script += f"\nprint({PEAK_MEMORY})"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout.splitlines()[-1])
