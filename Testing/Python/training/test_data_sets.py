"""Reading of the three layouts, and the errors for data sets that cannot be read."""

import errno
import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from conresnet.errors import UserError
from conresnet_training.data import painting
from conresnet_training.data.layouts import read_data_set
from training.commands import refused
from training.data_folders import brats, decathlon, describe, image, nnunet, save


def test_real_decathlon_cases_are_read(data_folder):
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
    # Files that macOS adds, and that are listed in dataset.json if it was made from a folder listing.
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


def test_nnunet_1_lists_cases_like_the_decathlon(tmp_path):
    folder = nnunet(tmp_path / "Task007_Boxes", channels=("T1", "T2"))
    entries = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in range(3)]
    describe(folder, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "near"}, training=entries)
    data_set = read_data_set(folder)
    assert data_set.layout == "nnunet" and data_set.labels == {1: "near"}
    assert [len(case.images) for case in data_set.cases] == [2, 2, 2] and not any(c.missing for c in data_set.cases)


def test_nnunet_2_with_files_in_other_folders(tmp_path):
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


def test_nnunet_regions_are_read_with_their_order(tmp_path):
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
def test_brats_with_both_naming_schemes(tmp_path, words, divider, enhancing, ending):
    names = ("HGG/Brats_2", "LGG/Brats_1")
    data_set = read_data_set(brats(tmp_path / "set", names, words, divider, ending, (1, 2, enhancing)))
    assert data_set.layout == "brats" and data_set.channels == ("T1", "T1ce", "T2", "FLAIR")
    assert [case.name for case in data_set.cases] == ["Brats_1", "Brats_2"]
    assert not any(case.missing for case in data_set.cases)
    assert data_set.labels == {1: "necrosis", 2: "edema", enhancing: "enhancing"}
    assert data_set.regions == {"ET": (enhancing,), "TC": (1, enhancing), "WT": (1, 2, enhancing)}
    assert list(data_set.region_labels.items()) == [("WT", 2), ("TC", 1), ("ET", enhancing)]


def test_missing_files_do_not_prevent_reading(tmp_path):
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


def test_region_without_its_own_value_gets_an_unused_one():
    assert painting({"a": (1,), "b": (2,), "both": (1, 2)}) == {"both": 3, "a": 1, "b": 2}


def test_error_for_unknown_layout_describes_the_three_layouts(tmp_path):
    save(image(0), tmp_path / "patient" / "scan.nii.gz")
    assert refusal(tmp_path) == "data-set-not-found"
    assert refusal(tmp_path / "nowhere") == "folder-not-found"


def refusal(folder) -> str:
    """Code of the error with which a folder is refused."""
    with pytest.raises(UserError) as raised:
        read_data_set(folder)
    assert raised.value.values["path"] in (str(folder), str(folder / "dataset.json"))
    return raised.value.code


def edited(folder, **changes):
    """The Decathlon folder with some fields of its description replaced, or removed if None."""
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    describe(folder, **content)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"labels": None}, "data-set-no-labels"),
        ({"labels": {"0": "background"}}, "data-set-only-background"),
        ({"labels": {"0": "background", "1": "a", "2": "A"}}, "data-set-label-repeated"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "data-set-value-repeated"),
        ({"labels": {"0": "background", "300": "a"}}, "data-set-label-range"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "data-set-label-ignore"),
        ({"labels": {"background": 0, "a": "one"}}, "data-set-label-invalid"),
        ({"labels": {"background": 0, "9" * 10000: "a"}}, "data-set-label-invalid"),
        ({"labels": {"a": [1, 2], "b": 1}, "regions_class_order": [1]}, "data-set-region-order"),
        ({"modality": None}, "data-set-channels"),
        ({"training": None}, "data-set-no-list"),
        ({"training": ["a.nii.gz"]}, "data-set-entry"),
        ({"file_ending": ".tif"}, "data-set-without-spacing"),
        ({"file_ending": ".TIFF", "dataset": {}}, "data-set-without-spacing"),
    ],
)
def test_incomplete_or_invalid_description_is_refused(tmp_path, changes, code):
    folder = decathlon(tmp_path / "set")
    edited(folder, **changes)
    assert refusal(folder) == code


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "[" * 20000 + "]" * 20000])
def test_description_that_is_not_json_is_refused(tmp_path, damage):
    folder = decathlon(tmp_path / "set")
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(damage(text), encoding="utf-8")
    assert refusal(folder) == "data-set-not-json"


def test_description_with_duplicate_key_is_refused(tmp_path):
    """Which of two names belongs to a value is not for the reader to decide."""
    folder = decathlon(tmp_path / "set")
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text.replace('"2": "Far', '"1": "Other box", "2": "Far'), encoding="utf-8")
    with refused("data-set-key-repeated", key="1"):
        read_data_set(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_description_in_windows_encodings_is_read(tmp_path, encoding):
    folder = decathlon(tmp_path / "set")
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text, encoding=encoding)
    assert len(read_data_set(folder).cases) == 3


def test_paths_from_another_system_are_read(tmp_path):
    """Backslashes, and accented letters in another Unicode form on the disk than in the description."""
    folder = decathlon(tmp_path / "set")
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    entries = [{part: file.replace("/", "\\") for part, file in entry.items()} for entry in content["training"]]
    edited(folder, training=entries)
    cases = read_data_set(folder).cases
    assert [case.name for case in cases] == ["case_0", "case_1", "case_2"] and not any(case.missing for case in cases)

    composed, divided = unicodedata.normalize("NFC", "Fäll"), unicodedata.normalize("NFD", "Fäll")
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "case_0.nii.gz").rename(folder / part / f"{divided}.nii.gz")
    entry = {"image": f"./imagesTr/{composed}.nii.gz", "label": f"./labelsTr/{composed}.nii.gz"}
    edited(folder, training=[*content["training"][1:], entry])
    assert not any(case.missing for case in read_data_set(folder).cases)


def test_nnunet_image_and_label_match_in_either_unicode_form(tmp_path):
    folder = nnunet(tmp_path / "set")
    composed, divided = unicodedata.normalize("NFC", "Fäll"), unicodedata.normalize("NFD", "Fäll")
    (folder / "imagesTr" / "case_0_0000.nii.gz").rename(folder / "imagesTr" / f"{divided}_0000.nii.gz")
    (folder / "labelsTr" / "case_0.nii.gz").rename(folder / "labelsTr" / f"{composed}.nii.gz")
    cases = read_data_set(folder).cases
    assert len(cases) == 3 and not any(case.missing for case in cases)


def test_control_characters_and_lone_surrogates_in_names_are_escaped(tmp_path):
    folder = decathlon(tmp_path / "set")
    labels = {"background": 0, "a\x1b[2J": 1, "b": 2}
    (folder / "dataset.json").write_text(
        json.dumps(json.loads((folder / "dataset.json").read_text()) | {"name": "\ud800set\x07", "labels": labels})
    )
    data_set = read_data_set(folder)
    assert data_set.name == r"\ud800set\x07" and data_set.labels[1] == r"a\x1b[2J"


def test_unused_files_get_a_warning(tmp_path):
    """A channel that dataset.json does not name, or a case that was renamed without its files."""
    folder = nnunet(tmp_path / "n")
    assert not read_data_set(folder).warnings
    save(image(7), folder / "imagesTr" / "case_1_0001.nii.gz")
    assert read_data_set(folder).warnings["files-not-used"].endswith("not used: case_1_0001.nii.gz")
    folder = brats(tmp_path / "b", ("HGG/BraTS_1", "HGG/BraTS_2", "LGG/BraTS_3"))
    (folder / "tables").mkdir()
    assert not read_data_set(folder).warnings
    (folder / "LGG" / "BraTS_3").rename(folder / "LGG" / "Patient 3")
    assert read_data_set(folder).warnings["files-not-used"].endswith("not used: Patient 3")


def test_cases_announced_but_missing_get_a_warning(tmp_path):
    assert not read_data_set(nnunet(tmp_path / "whole")).warnings
    data_set = read_data_set(nnunet(tmp_path / "part", numTraining=40))
    assert list(data_set.warnings) == ["cases-missing"] and "3 of the 40" in data_set.warnings["cases-missing"]


@pytest.mark.parametrize(("folds", "is_followed"), [((0, 1, 1), True), ((0, 1, None), False), ((0, 0, 0), False)])
def test_folds_of_a_data_list_are_read(tmp_path, folds, is_followed):
    folder = decathlon(tmp_path / "set")
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    given = zip(content["training"], folds, strict=True)
    edited(folder, training=[entry | ({} if fold is None else {"fold": fold}) for entry, fold in given])
    data_set = read_data_set(folder)
    if is_followed:
        assert data_set.held_out == (frozenset({"case_0"}), frozenset({"case_1", "case_2"}))
    assert bool(data_set.held_out) is is_followed and bool(data_set.unused_splits) is not is_followed


def test_data_set_at_the_root_of_a_drive_has_a_name(tmp_path, monkeypatch):
    folders = brats(tmp_path / "b"), nnunet(tmp_path / "n")
    monkeypatch.setattr(Path, "resolve", lambda *_: Path("/"))
    assert [read_data_set(folder).name for folder in folders] == ["data set", "data set"]


def test_two_cases_with_same_name_are_refused(tmp_path):
    assert refusal(brats(tmp_path / "set", ("HGG/a", "LGG/a"))) == "case-name-repeated"
    folder = decathlon(tmp_path / "d")
    edited(folder, training=[{"image": f"{part}/a.nii.gz", "label": f"{part}/b.nii.gz"} for part in "xy"])
    assert refusal(folder) == "case-name-repeated"
    edited(folder, training=[{"image": "x/a.nii.gz", "label": "x/b.nii.gz"}] * 2)
    assert refusal(folder) == "case-listed-twice"


def test_folder_without_read_permission_is_refused(tmp_path, monkeypatch):
    """Root may read everything, and the tests may run as root, so the error is simulated."""
    folder = nnunet(tmp_path / "set")

    def iterdir(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert refusal(folder) == "folder-unreadable"


def test_data_set_without_cases_is_refused(tmp_path):
    folder = nnunet(tmp_path / "set")
    for name in ("imagesTr", "labelsTr"):
        shutil.rmtree(folder / name)
    assert refusal(folder) == "no-cases"


def test_brats_cases_from_different_years_are_not_mixed(tmp_path):
    brats(tmp_path / "set", ("a",))
    brats(tmp_path / "set", ("b",), ("t1n", "t1c", "t2w", "t2f"), "-", values=(1, 2, 3))
    assert refusal(tmp_path / "set") == "data-set-mixed"
