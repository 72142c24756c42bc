"""The liver in a real CT by coarse to fine: planned, trained, exported and segmented by commands, as users give them."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conresnet.command_line import main as conresnet_main
from conresnet.image_files import read_channels, read_volume
from conresnet.package import read_package
from conresnet.preparation import prepare
from training.commands import run_command
from training.data_folders import describe, save

LIVER = 5
NARROW = [f"model.system.networks.{place}.arguments.base_width=8" for place in (0, 1)]
SETTINGS = [*NARROW, "model.inference.window=[16, 40, 40]", "training.precision=32-true", "training.workers=0"]
FEW_WINDOWS = ["model.system.arguments.coarse_windows=1", "model.system.arguments.fine_windows=2"]


@pytest.fixture
def data_set(tmp_path, ct_image, ct_label) -> Path:
    """Two cases: the CT, and the right two thirds of its body, stored in other directions."""
    folder = tmp_path / "liver"
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
        cut = nibabel.Nifti1Image(array, image.affine).slicer[40:]
        turned = cut.as_reoriented([[0, -1], [2, 1], [1, -1]])
        save(np.asarray(turned.dataobj), part, turned.affine)
    describe(folder, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1}, file_ending=".nii.gz")
    return folder


def trained(data_set: Path, folder: Path, monkeypatch, *settings: str) -> Path:
    """The package of a run that held the whole CT out."""
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


def test_a_real_ct_is_clipped_normalized_and_passed_twice(data_set, tmp_path, ct_image, ct_label, monkeypatch):
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
    # So short a training may find nothing; it is said then, and the fine pass left out.
    assert names == (["coarse"] if report["warnings"] else ["coarse", "fine"])


@pytest.mark.slow
def test_the_liver_of_a_real_ct_is_found(data_set, tmp_path, ct_image, ct_label, monkeypatch, capsys):
    steps = ("training.steps=150", "training.steps_between_checkpoints=150", "training.learning_rate=0.003")
    package = trained(data_set, tmp_path, monkeypatch, *steps, "augmentation.flip_axes=[]")
    found, report = segmented(package, ct_image, tmp_path / "out")
    truth = read_volume(ct_label).array == LIVER
    dice = 2 * np.count_nonzero((found == 1) & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
    assert dice > 0.75
    coarse, fine = report["passes"]
    assert np.prod([stop - start for start, stop in fine["box"]]) < np.prod([stop for _, stop in coarse["box"]])
    assert coarse["windows"] == (30 // 16 + 6) * (101 // 40 + 6) * (122 // 40 + 6)
    # Air is no organ: nothing is found, which is said and is no error.
    air = tmp_path / "air.nii.gz"
    image = nibabel.load(ct_image)
    noise = np.random.default_rng(0).normal(-1000, 10, image.shape).astype(np.int16)
    save(noise, air, image.affine)
    capsys.readouterr()
    nothing, report = segmented(package, air, tmp_path / "nothing")
    assert not nothing.any() and len(report["warnings"]) == 1
    assert "found nothing in this case" in capsys.readouterr().err
