"""Cases held out by a fold: every n-th by name, all time points of a patient together, or as given in a file."""

import json

import pytest

from conresnet.errors import UserError
from conresnet_training.check import check_data_set
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.runs.run import split
from training.commands import refused
from training.data_folders import brats, decathlon

ROOM = Budget(64 * 2**30, (8,), "plenty")
SINCE_2023 = (("t1n", "t1c", "t2w", "t2f"), "-", ".nii.gz", (1, 2, 3))
TIME_POINTS = tuple(
    f"BraTS-GLI-{patient:05d}-{point}"
    for patient, points in ((5, 3), (6, 2), (9, 1))
    for point in range(100, 100 + points)
)


def planned(folder):
    """(data set, plan, explanation of its folds)."""
    data_set = read_data_set(folder)
    plan, reasons = make_plan(data_set, folder, ROOM, Choices())
    (why,) = [reason.why for reason in reasons if reason.what == "folds"]
    return data_set, plan, why


def held_out(data_set, plan):
    """Names of the cases that each fold holds out and does not train on."""
    found = []
    for fold in range(plan.training.folds):
        training, out = split(data_set, plan, fold)
        assert sorted([*training, *out], key=lambda case: case.name) == list(data_set.cases)
        found.append([case.name for case in out])
    return found


def write_splits(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "splits_final.json").write_text(text, encoding="utf-8")


def test_folds_hold_out_every_nth_case_by_name(tmp_path):
    data_set, plan, why = planned(decathlon(tmp_path / "set", cases=7))
    expected = [[0, 5], [1, 6], [2], [3], [4]]
    assert held_out(data_set, plan) == [[f"case_{number}" for number in fold] for fold in expected]
    assert why == "each run holds one out"


def test_time_points_of_a_patient_stay_in_the_same_fold(tmp_path):
    data_set, plan, why = planned(brats(tmp_path / "set", TIME_POINTS, *SINCE_2023))
    assert plan.training.folds == 3
    assert held_out(data_set, plan) == [list(TIME_POINTS[:3]), list(TIME_POINTS[3:5]), list(TIME_POINTS[5:])]
    assert "time points of each of the 3 patients stay together" in why
    plan.training.folds = 4
    with refused("too-many-folds", patients=3):
        split(data_set, plan, 3)


@pytest.mark.parametrize("names", [("BraTS2021_00000", "BraTS2021_00002"), ("scan-1", "scan-2")])
def test_other_names_ending_in_numbers_are_separate_cases(tmp_path, names):
    data_set, plan, _ = planned(brats(tmp_path / "set", names))
    assert held_out(data_set, plan) == [[name] for name in names]


def test_one_patient_cannot_be_trained_on_and_held_out(tmp_path):
    folder = brats(tmp_path / "set", TIME_POINTS[:3], *SINCE_2023)
    with pytest.raises(UserError) as raised:
        planned(folder)
    assert raised.value.code == "one-patient"
    assert_check_reports(raised.value, folder)


def test_one_case_cannot_be_trained_on_and_held_out(tmp_path):
    folder = decathlon(tmp_path / "set", cases=1)
    with pytest.raises(UserError) as raised:
        planned(folder)
    assert raised.value.code == "one-case"
    assert_check_reports(raised.value, folder)


def assert_check_reports(error, folder):
    """Check that `check` reports the same error."""
    report = check_data_set(read_data_set(folder), folder)
    found = [(finding.code, finding.message) for finding in report.findings]
    assert (error.code, error.message.rstrip(".")) in found and report.has_errors


FOLDS = [{"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]}, {"train": ["case_0"], "val": ["case_3"]}]
FOLDS[1]["train"] += ["case_1", "case_2"]


def test_nnunet_folds_are_used(tmp_path):
    folder = decathlon(tmp_path / "set", cases=4)
    write_splits(folder, FOLDS)
    data_set, plan, why = planned(folder)
    assert held_out(data_set, plan) == [["case_0", "case_1"], ["case_3"]]
    assert "splits_final.json assigns the cases" in why
    assert check_data_set(data_set, folder).findings == []
    plan.training.folds = 4
    assert held_out(data_set, plan) == [[f"case_{number}"] for number in range(4)]


@pytest.mark.parametrize(
    "names", [("sub-00_ses-1", "sub-00_ses-2_T1w", "sub-1_ses-1"), ("brats-gli-00005-100", "brats-gli-00005-101", "c")]
)
def test_time_points_are_recognized_in_other_naming_schemes(tmp_path, names):
    data_set, plan, _ = planned(brats(tmp_path / "set", names))
    assert held_out(data_set, plan) == [list(names[:2]), [names[2]]]


def test_nnunet_folds_that_split_a_patient_are_reported(tmp_path):
    folder = brats(tmp_path / "set", TIME_POINTS[2:5], *SINCE_2023)
    one, other, third = TIME_POINTS[2:5]
    write_splits(folder, [{"train": [one, other], "val": [third]}, {"train": [other, third], "val": [one]}])
    data_set, _, _ = planned(folder)
    findings = {found.code: found.message for found in check_data_set(data_set, folder).findings}
    message = findings["splits-divide-patient"]
    assert "BraTS-GLI-00006" in message and "BraTS-GLI-00005" not in message
    write_splits(folder, [{"train": [one], "val": [other, third]}, {"train": [other, third], "val": [one]}])
    assert "splits-divide-patient" not in read_data_set(folder).warnings


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ({"train": []}, "is not a list of at least 2 folds"),
        (FOLDS[:1], "is not a list of at least 2 folds"),
        ([FOLDS[0], {"train": ["case_0"]}], 'fold 1 does not have the lists "train" and "val"'),
        ([FOLDS[0], ["case_0"]], 'fold 1 does not have the lists "train" and "val"'),
        ([{"train": ["case_2"], "val": ["case_0", "case_1"]}, FOLDS[1]], "fold 0 does not name case_3"),
        (
            [FOLDS[0], {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "b"]}],
            "fold 1 names b, which is not a case",
        ),
        ([FOLDS[0], {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_0"]}], "names case_0 twice"),
    ],
)
def test_folds_with_other_cases_are_ignored_with_a_warning(tmp_path, content, reason):
    folder = decathlon(tmp_path / "set", cases=4)
    write_splits(folder, content)
    data_set, plan, why = planned(folder)
    assert held_out(data_set, plan) == [[f"case_{number}"] for number in range(4)]
    assert "splits_final.json is not used: " in why and reason in why
    (finding,) = check_data_set(data_set, folder).findings
    assert finding.code == "splits-not-followed" and reason in finding.message
