"""The three layouts are read as they are, and what cannot be read gets a sentence."""

import json
import shutil
from pathlib import Path

import pytest

from conresnet.errors import UserError
from conresnet_training.data import read_data_set
from conresnet_training.data.data_set import painting
from training.data_folders import brats, decathlon, describe, image, nnunet, save


def test_decathlon_of_the_real_cases(data_folder):
    data_set = read_data_set(data_folder / "MSD_Task04_Hippocampus")
    assert data_set.layout == "decathlon" and data_set.name == "Hippocampus"
    assert data_set.channels == ("MRI",) and data_set.labels == {1: "Anterior", 2: "Posterior"}
    assert [case.name for case in data_set.cases] == ["hippocampus_004", "hippocampus_123", "hippocampus_210"]
    assert not any(case.missing for case in data_set.cases) and data_set.regions == {}


def test_decathlon_with_four_channels_in_one_file_and_other_names(tmp_path):
    names = ("FLAIR", "T1w", "MRI", "MRI")
    folder = decathlon(tmp_path / "Gehirn ä", channels=names)
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    description["channel_names"] = description.pop("modality")
    description["labels"] = {"background": 0, "Near box": 1, "Far box": 2}
    # What macOS leaves beside files, and the list holds where it was made from a listing.
    save(image(0), folder / "imagesTr" / "._case_0.nii.gz")
    description["training"].insert(0, {"image": "./imagesTr/._case_0.nii.gz", "label": "./labelsTr/._case_0.nii.gz"})
    description["training"].reverse()
    describe(folder, **description)
    data_set = read_data_set(folder)
    assert data_set.channels == ("FLAIR", "T1w", "MRI 1", "MRI 2")
    assert data_set.labels == {1: "Near box", 2: "Far box"}
    assert [case.name for case in data_set.cases] == ["case_0", "case_1", "case_2"]
    assert all(len(case.images) == 1 for case in data_set.cases)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_nnunet_2(tmp_path, ending):
    folder = nnunet(tmp_path / "Dataset007_Boxes", channels=("T1", "T2"), ending=ending)
    data_set = read_data_set(folder)
    assert data_set.layout == "nnunet" and data_set.name == "Dataset007_Boxes"
    assert data_set.channels == ("T1", "T2") and data_set.labels == {1: "near", 2: "far"}
    case = data_set.cases[1]
    assert [path.name for path in case.images] == [f"case_1_0000{ending}", f"case_1_0001{ending}"]
    assert case.label.name == f"case_1{ending}" and not case.missing


def test_nnunet_1_lists_cases_as_the_decathlon_does(tmp_path):
    folder = nnunet(tmp_path / "Task007_Boxes", channels=("T1", "T2"))
    entries = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in range(3)]
    describe(folder, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "near"}, training=entries)
    data_set = read_data_set(folder)
    assert data_set.layout == "nnunet" and data_set.labels == {1: "near"}
    assert [len(case.images) for case in data_set.cases] == [2, 2, 2] and not any(c.missing for c in data_set.cases)


def test_nnunet_2_with_files_that_lie_elsewhere(tmp_path):
    source = nnunet(tmp_path / "elsewhere", cases=1)
    files = {"images": ["../elsewhere/imagesTr/case_0_0000.nii.gz"], "label": str(source / "labelsTr/case_0.nii.gz")}
    folder = tmp_path / "listed"
    describe(
        folder,
        channel_names={"0": "CT"},
        labels={"background": 0, "near": 1, "far": 2},
        file_ending=".nii.gz",
        dataset={"patient 1": files},
    )
    (case,) = read_data_set(folder).cases
    assert case.name == "patient 1" and not case.missing


def test_nnunet_regions_with_the_order_they_are_painted_in(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    folder = nnunet(tmp_path / "a", labels=labels, regions_class_order=[1, 2, 3])
    data_set = read_data_set(folder)
    assert data_set.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert data_set.region_labels == {"whole": 1, "core": 2, "enhancing": 3}
    assert data_set.labels == {1: "label 1", 2: "label 2", 3: "enhancing"}


@pytest.mark.parametrize(
    ("words", "divider", "enhancing"), [(("t1", "t1ce", "t2", "flair"), "_", 4), (("t1n", "t1c", "t2w", "t2f"), "-", 3)]
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_brats_of_both_namings(tmp_path, words, divider, enhancing, ending):
    names = ("HGG/Brats_2", "LGG/Brats_1")
    data_set = read_data_set(brats(tmp_path / "set", names, words, divider, ending, (1, 2, enhancing)))
    assert data_set.layout == "brats" and data_set.channels == ("T1", "T1ce", "T2", "FLAIR")
    assert [case.name for case in data_set.cases] == ["Brats_1", "Brats_2"]
    assert not any(case.missing for case in data_set.cases)
    assert data_set.labels == {1: "necrosis", 2: "edema", enhancing: "enhancing"}
    assert data_set.regions == {"ET": (enhancing,), "TC": (1, enhancing), "WT": (1, 2, enhancing)}
    assert list(data_set.region_labels.items()) == [("WT", 2), ("TC", 1), ("ET", enhancing)]


def test_files_that_a_case_lacks_do_not_fail_the_reading(tmp_path):
    folder = decathlon(tmp_path / "d")
    (folder / "labelsTr" / "case_1.nii.gz").unlink()
    assert [case.name for case in read_data_set(folder).cases if case.missing] == ["case_1"]
    folder = nnunet(tmp_path / "n", channels=("T1", "T2"))
    (folder / "imagesTr" / "case_2_0001.nii.gz").unlink()
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    assert [case.name for case in read_data_set(folder).cases if case.missing] == ["case_0", "case_2"]
    folder = brats(tmp_path / "b")
    (folder / "BraTS_2" / "BraTS_2_t1ce.nii.gz").unlink()
    (missing,) = [case for case in read_data_set(folder).cases if case.missing]
    assert [path.name for path in missing.missing] == ["BraTS_2_t1ce.nii.gz"]


def test_region_without_a_value_of_its_own_is_painted_with_a_spare_one():
    assert painting({"a": (1,), "b": (2,), "both": (1, 2)}) == {"both": 3, "a": 1, "b": 2}


def test_folder_in_no_layout_is_told_the_three(tmp_path):
    save(image(0), tmp_path / "patient" / "scan.nii.gz")
    with pytest.raises(UserError, match=r"holds no dataset\.json \(Medical.*nnU-Net\) and no case folders.*BraTS"):
        read_data_set(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_data_set(tmp_path / "nowhere")


def edited(folder, **changes):
    """The Decathlon folder with some fields of its description replaced, or removed where None."""
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    describe(folder, **content)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": None}, 'needs "labels"'),
        ({"labels": {"0": "background"}}, "names no labels beside the background"),
        ({"labels": {"0": "background", "1": "a", "2": "A"}}, 'two labels are named "A"'),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two labels have the same value"),
        ({"labels": {"0": "background", "300": "a"}}, 'the label "a" has a value outside of 1 to 255'),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, 'has the label "ignore"'),
        ({"labels": {"background": 0, "a": "one"}}, 'the label "a": "one" is not a name'),
        ({"labels": {"a": [1, 2], "b": 1}, "regions_class_order": [1]}, "a value of its own for each region"),
        ({"modality": None}, '"modality" or "channel_names"'),
        ({"training": None}, 'needs "training"'),
        ({"training": ["a.nii.gz"]}, 'is not an "image" with its "label"'),
        ({"file_ending": ".tif"}, "convert them to NIfTI with its spacing"),
        ({"file_ending": ".TIFF", "dataset": {}}, "convert them to NIfTI with its spacing"),
    ],
)
def test_description_that_says_too_little_or_wrong(tmp_path, changes, sentence):
    folder = decathlon(tmp_path / "set")
    edited(folder, **changes)
    with pytest.raises(UserError, match="is not a data set description that can be used") as raised:
        read_data_set(folder)
    assert sentence in raised.value.message and str(folder / "dataset.json") in raised.value.message


def test_description_that_is_cut_off(tmp_path):
    folder = decathlon(tmp_path / "set")
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_data_set(folder)


def test_data_set_at_the_root_of_a_drive_has_a_name(tmp_path, monkeypatch):
    folders = brats(tmp_path / "b"), nnunet(tmp_path / "n")
    monkeypatch.setattr(Path, "resolve", lambda *_: Path("/"))
    assert [read_data_set(folder).name for folder in folders] == ["data set", "data set"]


def test_two_cases_of_one_name_are_refused(tmp_path):
    folder = brats(tmp_path / "set", ("HGG/a", "LGG/a"))
    with pytest.raises(UserError, match=r'two cases named "a"'):
        read_data_set(folder)
    folder = decathlon(tmp_path / "d")
    edited(folder, training=[{"image": f"{part}/a.nii.gz", "label": f"{part}/b.nii.gz"} for part in "xy"])
    with pytest.raises(UserError, match=r'two cases named "a"'):
        read_data_set(folder)


def test_set_without_cases_is_refused(tmp_path):
    folder = nnunet(tmp_path / "set")
    for name in ("imagesTr", "labelsTr"):
        shutil.rmtree(folder / name)
    with pytest.raises(UserError, match="has no labelled cases"):
        read_data_set(folder)


def test_brats_cases_of_two_years_are_not_mixed(tmp_path):
    brats(tmp_path / "set", ("a",))
    brats(tmp_path / "set", ("b",), ("t1n", "t1c", "t2w", "t2f"), "-", values=(1, 2, 3))
    with pytest.raises(UserError, match="whose label values differ"):
        read_data_set(tmp_path / "set")
