"""Four channels of a real brain with a tumor: from a BraTS folder to a model, and from images to BraTS labels.

The case's labels come from thresholds, and the network is hardly trained: the test checks that every channel, voxel
and region is assigned correctly, not how well a tumor is found.
"""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conresnet.cli import main as conresnet_main
from conresnet.images.files import read_volume
from conresnet.package.reader import read_package
from training.commands import run_command
from training.data_folders import save
from training.tiny_plan import write_tiny_plan

REGIONS = {"Enhancing tumor": (4,), "Tumor core": (1, 4), "Whole tumor": (1, 2, 4)}
SETTINGS = ("training.folds=2", "training.steps=4", "training.steps_between_checkpoints=4")
# The publisher's names for T1, T1ce, T2 and FLAIR.
NAMES = ("T1", "T1GD", "T2", "FLAIR")


@pytest.fixture
def data_set(tmp_path, tumor_images, tumor_label) -> Path:
    """The original case, and a copy with left and right swapped and the axes stored in other directions."""
    folder = tmp_path / "brats"
    shutil.copytree(tumor_label.parent, folder / "pat2")
    for path in (*tumor_images, tumor_label):
        image = nibabel.load(path)
        mirrored = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine)
        stored = nibabel.as_closest_canonical(mirrored)
        save(np.asarray(stored.dataobj), folder / "twin" / path.name.replace("pat2", "twin"), stored.affine)
    return folder


def segmented(package: Path, images: list[str], output: Path) -> np.ndarray:
    command = ["segment", *images, "--model", str(package), "--output", str(output), "--threads", "1"]
    assert conresnet_main(command) == 0
    return read_volume(output / "segmentation.nii.gz").array


def test_real_tumor_from_brats_folder_to_brats_labels(
    data_set, tmp_path, tumor_images, tumor_label, monkeypatch, capsys
):
    assert run_command(monkeypatch, "check", data_set, "--output", tmp_path / "check") == 0
    assert "2 of 2 cases are fine" in capsys.readouterr().out
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", *SETTINGS, "model.inference.window=[32, 40, 40]")
    run, package = tmp_path / "run", tmp_path / "package"
    assert run_command(monkeypatch, "train", plan, "--output", run, "--fold", 0) == 0
    assert run_command(monkeypatch, "export", run, "--output", package) == 0

    t1, t1ce, t2, flair = (str(tmp_path / f"pat2_{name}.nii.gz") for name in NAMES)
    for image, name in zip(tumor_images, (t1, t1ce, t2, flair), strict=True):
        shutil.copy(image, name)
    capsys.readouterr()
    found = segmented(package, [t1, t1ce, t2, flair], tmp_path / "as_the_model")
    assert "Assigned by name" not in capsys.readouterr().out
    assert np.array_equal(segmented(package, [flair, t1, t2, t1ce], tmp_path / "shuffled"), found)
    assigned = "Assigned by name: pat2_T1.nii.gz as T1, pat2_T1GD.nii.gz as T1ce, pat2_T2.nii.gz as T2"
    assert assigned in capsys.readouterr().out
    channels = [f"flair={flair}", f"T1ce={t1ce}", f"T1={t1}", f"t2={t2}"]
    by_name = [word for channel in channels for word in ("--channel", channel)]
    assert np.array_equal(segmented(package, by_name, tmp_path / "named"), found)
    # Swapping two channels changes the result, so the order does matter.
    swapped = [f"FLAIR={t1}", f"T1ce={t1ce}", f"T1={flair}", f"T2={t2}"]
    by_name = [word for channel in swapped for word in ("--channel", channel)]
    assert not np.array_equal(segmented(package, by_name, tmp_path / "swapped"), found)

    assert set(np.unique(found)) == {0, 1, 2, 4}
    report = json.loads((tmp_path / "as_the_model" / "report.json").read_text(encoding="utf-8"))
    metrics = json.loads(read_package(package).read_file("metrics.json"))
    truth = read_volume(tumor_label).array
    for name, values in REGIONS.items():
        found_mask, true_mask = np.isin(found, values), np.isin(truth, values)
        assert report["volumes_ml"][name] == pytest.approx(np.count_nonzero(found_mask) * 4**3 / 1000)
        dice = (
            2 * np.count_nonzero(found_mask & true_mask) / (np.count_nonzero(found_mask) + np.count_nonzero(true_mask))
        )
        assert metrics["dice_a_case"]["pat2"][name] == pytest.approx(dice, abs=1e-3)
