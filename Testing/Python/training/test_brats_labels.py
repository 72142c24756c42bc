"""Meaning of label values in BraTS folders since 2023, which may or may not follow from the case names."""

from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.planner import make_plan
from training.commands import refused
from training.data_folders import brats, describe

SINCE_2023 = (("t1n", "t1c", "t2w", "t2f"), "-", ".nii.gz")


def test_brats_of_treated_gliomas_has_resection_cavities(tmp_path):
    names = ("BraTS-GLI-00005-100", "BraTS-GLI-00006-000")
    data_set = read_data_set(brats(tmp_path / "set", names, *SINCE_2023, (1, 2, 3, 4)))
    assert data_set.labels == {1: "necrosis", 2: "edema", 3: "enhancing", 4: "resection cavity"}
    assert data_set.regions == {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3), "RC": (4,)}
    assert data_set.region_labels == {"WT": 2, "TC": 1, "ET": 3, "RC": 4}
    untreated = read_data_set(brats(tmp_path / "untreated", names[1:], *SINCE_2023, (1, 2, 3)))
    assert 4 not in untreated.labels and list(untreated.regions) == ["ET", "TC", "WT"]


def test_pediatric_brats_requires_a_description(tmp_path):
    names = ("BraTS-PED-00001-000", "BraTS-PED-00002-000")
    folder = brats(tmp_path / "set", names, *SINCE_2023, (1, 2, 3, 4))
    with refused("labels-unclear", case=names[0]):
        read_data_set(folder)
    endings = [f"-{word}.nii.gz" for word in (*SINCE_2023[0], "seg")]
    files = {name: [f"{name}/{name}{ending}" for ending in endings] for name in names}
    describe(
        folder,
        channel_names={"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        labels={"background": 0, "ET": 1, "NET": 2, "CC": 3, "ED": 4},
        file_ending=".nii.gz",
        dataset={name: {"images": images, "label": label} for name, (*images, label) in files.items()},
    )
    data_set = read_data_set(folder)
    assert data_set.labels == {1: "ET", 2: "NET", 3: "CC", 4: "ED"}
    assert not any(case.missing for case in data_set.cases)


def test_post_treatment_brats_plans_the_cavity(tmp_path):
    names = ("BraTS-GLI-00005-100", "BraTS-GLI-00006-100")
    folder = brats(tmp_path / "set", names, *SINCE_2023, (1, 2, 3, 4))
    plan = make_plan(read_data_set(folder), folder, Budget(64 * 2**30, (8,), "plenty"))[0]
    assert plan.targets["Resection cavity"] == [4] and plan.targets["Whole tumor"] == [1, 2, 3]
    (cavity,) = [segment for segment in plan.model.output.segments if segment.name == "Resection cavity"]
    assert cavity.label == 4 and not any(cavity.name in segment.includes for segment in plan.model.output.segments)
