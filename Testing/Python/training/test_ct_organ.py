"""The liver in a real CT with coarse to fine: planned, trained, exported and segmented with the commands."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.torch

from conresnet.cli import main as conresnet_main
from conresnet.images.files import read_channels, read_volume
from conresnet.images.preparation import prepare
from conresnet.package.reader import read_package
from conresnet.package.store import write_package
from training.commands import run_command
from training.data_folders import describe, save

LIVER = 5
NARROW = [f"model.system.networks.{place}.arguments.base_width=8" for place in (0, 1)]
SETTINGS = [*NARROW, "model.inference.window=[16, 40, 40]", "training.precision=32-true", "training.workers=0"]
FEW_WINDOWS = ["model.system.arguments.coarse_windows=1", "model.system.arguments.fine_windows=2"]


@pytest.fixture
def around_liver(tmp_path, ct_image, ct_label) -> tuple[Path, Path]:
    """The CT and its labels, cropped to the liver and its surroundings."""
    files = tmp_path / "ct.nii.gz", tmp_path / "organs.nii.gz"
    for source, file in zip((ct_image, ct_label), files, strict=True):
        nibabel.save(nibabel.load(source).slicer[36:100, 24:84, 4:24], file)
    return files


def liver_cases(folder: Path, ct_image: Path, ct_label: Path) -> Path:
    """Two cases: the CT, and the right two thirds of its body, stored in other orientations."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for source, whole, part in (
        (ct_image, images / "a_whole_0000.nii.gz", images / "b_part_0000.nii.gz"),
        (ct_label, labels / "a_whole.nii.gz", labels / "b_part.nii.gz"),
    ):
        image = nibabel.load(source)
        array = np.asarray(image.dataobj)
        if source == ct_label:
            array = (array == LIVER).astype(np.uint8)
        save(array, whole, image.affine)
        cut = nibabel.Nifti1Image(array, image.affine).slicer[len(array) // 3 :]
        turned = cut.as_reoriented([[0, -1], [2, 1], [1, -1]])
        save(np.asarray(turned.dataobj), part, turned.affine)
    describe(folder, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1}, file_ending=".nii.gz")
    return folder


def trained(data_set: Path, folder: Path, monkeypatch, *settings: str) -> Path:
    """The package of a run that held out the whole CT."""
    chosen = [word for setting in (*SETTINGS, "training.folds=2", *settings) for word in ("--set", setting)]
    plan, run, package = (folder / name for name in ("plan.yaml", "run", "package"))
    assert run_command(monkeypatch, "check", data_set, "--output", folder / "check") == 0
    command = ("plan", data_set, "--output", plan, "--system", "coarse-to-fine", "--memory", "8", *chosen)
    assert run_command(monkeypatch, *command) == 0
    assert run_command(monkeypatch, "train", plan, "--output", run, "--fold", 0) == 0
    assert run_command(monkeypatch, "export", run, "--output", package) == 0
    return package


def segmented(package: Path, image: Path, output: Path) -> tuple[np.ndarray, dict]:
    command = ["segment", str(image), "--model", str(package), "--output", str(output), "--threads", "1"]
    assert conresnet_main([*command, "--precision", "fp32"]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return read_volume(output / "segmentation.nii.gz").array, report


def test_real_ct_is_clipped_normalized_and_processed_in_two_passes(around_liver, tmp_path, monkeypatch):
    ct_image, ct_label = around_liver
    data_set = liver_cases(tmp_path / "liver", ct_image, ct_label)
    few = ("training.steps=3", "training.steps_between_checkpoints=3", "training.learning_rate=0.003", *FEW_WINDOWS)
    package = trained(data_set, tmp_path, monkeypatch, *few)
    description = read_package(package).description
    (item,) = description.inputs
    assert item.modality == "CT" and dict(item.intensity[0]) == {"step": "clip", "low": -100, "high": 240}
    ct = read_volume(ct_image).array
    clipped = np.clip(ct.astype(np.float64), -100, 240)
    case = prepare(description, read_channels([ct_image], ["CT"]))
    block = case.block((0, 0, 0), case.shape)
    np.testing.assert_allclose(block[0], (clipped - clipped.mean()) / clipped.std(), atol=1e-3)

    found, report = segmented(package, ct_image, tmp_path / "out")
    assert found.shape == ct.shape and report["resampled"] is False
    truth = read_volume(ct_label).array == LIVER
    dice = 2 * np.count_nonzero((found == 1) & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
    metrics = json.loads(read_package(package).read_file("metrics.json"))
    assert metrics["dice_a_case"]["a_whole"]["liver"] == pytest.approx(dice, abs=1e-2)
    names = [one["name"] for one in report["passes"]]
    # After such a short training, the coarse pass may find nothing; then there is a warning and no fine pass.
    assert names == (["coarse"] if report["warnings"] else ["coarse", "fine"])


def blinded(package: Path, folder: Path) -> Path:
    """The same model with a coarse network that labels everything as background."""
    model = read_package(package)
    files = {file: model.read_file(file) for file in ("coarse.safetensors", "fine.safetensors")}
    coarse = safetensors.torch.load(files["coarse.safetensors"])
    coarse["head.bias"][0] += 100
    files["coarse.safetensors"] = safetensors.torch.save(coarse)
    return write_package(replace(model.description, files={}), files, folder).path


@pytest.mark.slow
def test_liver_in_real_ct_is_found_and_empty_coarse_pass_gets_a_warning(
    tmp_path, ct_image, ct_label, repository, monkeypatch
):
    """250 steps per stage on part of the same CT; labeling every voxel as liver would give a Dice of 0.19."""
    steps = ("training.steps=250", "training.steps_between_checkpoints=250", "training.learning_rate=0.003")
    windows = ("model.system.arguments.coarse_windows=2", "model.system.arguments.fine_windows=3")
    data_set = liver_cases(tmp_path / "liver", ct_image, ct_label)
    package = trained(data_set, tmp_path, monkeypatch, *steps, *windows, "augmentation.flip_axes=[]")
    found, report = segmented(package, ct_image, tmp_path / "out")
    truth = read_volume(ct_label).array == LIVER
    dice = 2 * np.count_nonzero((found == 1) & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
    assert dice > 0.6
    assert [one["name"] for one in report["passes"]] == ["coarse", "fine"]

    # A coarse network that is certain of the background finds nothing; this is one warning, and the status is 0.
    blind, output = blinded(package, tmp_path / "blind"), tmp_path / "nothing"
    command = [
        sys.executable,
        "-m",
        "conresnet",
        "segment",
        str(ct_image),
        "--model",
        str(blind),
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository / "ConResSegmentation")
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in report["passes"]] == ["coarse"]
    assert report["warnings"] == done.stderr.splitlines() and "found nothing in this image" in done.stderr
    assert "liver 0.00 mL" in done.stdout
    assert not np.asarray(nibabel.load(output / "segmentation.nii.gz").dataobj).any()
