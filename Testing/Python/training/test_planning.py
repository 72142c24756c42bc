"""Plans made from data in every layout: what follows from the data, and what from the available memory."""

import json
import shutil
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import yaml

from conresnet.errors import UserError
from conresnet.images.inputs import sort_by_channel
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.memory import ASSUMED_BYTES, Budget
from conresnet_training.planning.plan import read_plan
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.planning.survey import is_ct
from training.commands import message_of, refused, run_command
from training.data_folders import BRATS_WORDS, brats, decathlon, image, label, nnunet, save

ROOM = Budget(64 * 2**30, (16, 8), "plenty")


def planned(folder, budget=ROOM, **choices):
    return make_plan(read_data_set(folder), folder, budget, Choices(**choices))[0]


def arguments(plan):
    return plan.model.system.networks[0].arguments


def test_plan_for_real_decathlon_data_matches_shipped_recipe(data_folder, repository):
    """The settings that a plan takes from the data are those the shipped model was trained with."""
    plan = planned(data_folder / "MSD_Task04_Hippocampus")
    recipe = read_plan(repository / "ConResTraining" / "conresnet_training" / "recipes" / "hippocampus.yaml")
    planned_model, recipe_model = plan.model, recipe.model
    # The largest of the few cases here is smaller.
    largest = planned_model.preparation.largest_crop
    assert replace(recipe_model.preparation, largest_crop=largest) == planned_model.preparation and largest == (
        40,
        53,
        36,
    )
    assert [item.intensity for item in planned_model.inputs] == [item.intensity for item in recipe_model.inputs]
    assert planned_model.output.kind == recipe_model.output.kind
    assert list(plan.targets.values()) == list(recipe.targets.values())
    for key in ("input_channels", "outputs", "residual_outputs", "residual_axis"):
        assert arguments(plan)[key] == arguments(recipe)[key]
    assert all(side % 8 == 0 for side in planned_model.inference.window)


def test_nnunet_ct_gets_one_intensity_range_for_all_cases(tmp_path):
    folder = nnunet(tmp_path / "set", channels=("CT", "PET"))
    for number in range(3):
        # Inside of labels 1000 ... 1099, outside far more.
        array = np.full((20, 18, 16), 3000, np.int16)
        inside = label(number=number) > 0
        array[inside] = 1000 + np.arange(inside.sum()) % 100
        save(array, folder / "imagesTr" / f"case_{number}_0000.nii.gz")
    ct, pet = planned(folder).model.inputs
    assert ct.modality == "CT" and ct.keywords == ("ct",)
    clip, scale = ct.intensity
    assert clip["step"] == "clip" and 1000 <= clip["low"] <= 1001 and 1098 <= clip["high"] <= 1099
    assert scale["step"] == "rescale" and scale["to"] == [-1, 1]
    labelled = 1000 + np.arange(np.count_nonzero(label())) % 100
    expected = [labelled.mean() - labelled.std(), labelled.mean() + labelled.std()]
    assert scale["from"] == pytest.approx(expected, abs=0.5)
    assert pet.intensity[0]["step"] == "clip_percentiles"
    empty = np.zeros((20, 18, 16), np.uint8)
    save(empty, folder / "labelsTr" / "case_1.nii.gz")
    air = np.full((20, 18, 16), -1000, np.int16)
    air[0] = -990
    save(air, folder / "imagesTr" / "case_1_0000.nii.gz")
    clip = planned(folder).model.inputs[0].intensity[0]
    assert 1000 <= clip["low"] and clip["high"] <= 1099, "a case without labels does not affect the range"


def test_ct_on_another_grid_than_pet_is_planned(tmp_path):
    folder = nnunet(tmp_path / "set", channels=("PET", "CT"))
    for number in range(3):
        coarse = np.full((10, 9, 8), 500, np.int16)
        coarse[:5] = -1000
        save(coarse, folder / "imagesTr" / f"case_{number}_0001.nii.gz", np.diag([2.0, 2.0, 2.0, 1.0]))
    ct = planned(folder).model.inputs[1]
    assert ct.modality == "CT" and -1000 <= ct.intensity[0]["low"] <= ct.intensity[0]["high"] <= 500


@pytest.mark.parametrize(
    ("spacing", "names", "flipped"),
    [
        ((1, 1, 1), ("near", "far"), ["W"]),
        ((4, 0.5, 0.6), ("near", "far"), ["S"]),
        ((0.5, 4, 0.6), ("near", "far"), ["W"]),
        ((1, 1, 1), ("left kidney", "right kidney"), []),
        ((1, 1, 1), ("kidney_L", "kidney_R"), []),
        ((1, 1, 1), ("liver", "cleft"), ["W"]),
    ],
)
def test_samples_are_flipped_only_left_right_and_only_without_left_right_labels(tmp_path, spacing, names, flipped):
    labels = {"background": 0, names[0]: 1, names[1]: 2}
    folder = nnunet(tmp_path / "set", channels=("MR",), labels=labels)
    for number in range(3):
        matrix = np.diag([*spacing, 1.0])
        save(image(number), folder / "imagesTr" / f"case_{number}_0000.nii.gz", matrix)
        save(label(), folder / "labelsTr" / f"case_{number}.nii.gz", matrix)
    plan = planned(folder)
    assert plan.augmentation.flip_axes == flipped
    letters = dict(zip("SHW", plan.model.preparation.orientation, strict=True))
    assert all(letters[axis] in "LR" for axis in flipped)


def test_brats_plans_regions(tmp_path):
    plan = planned(brats(tmp_path / "set"))
    output = plan.model.output
    assert output.kind == "regions" and output.paint_order == ("Whole tumor", "Tumor core", "Enhancing tumor")
    assert plan.targets == {"Enhancing tumor": [4], "Tumor core": [1, 4], "Whole tumor": [1, 2, 4]}
    assert {segment.name: segment.label for segment in output.segments} == {
        "Enhancing tumor": 4,
        "Tumor core": 1,
        "Whole tumor": 2,
    }
    assert output.segments[0].terminology is not None
    assert {segment.name: set(segment.includes) for segment in output.segments} == {
        "Enhancing tumor": set(),
        "Tumor core": {"Enhancing tumor"},
        "Whole tumor": {"Enhancing tumor", "Tumor core"},
    }
    assert arguments(plan)["outputs"] == arguments(plan)["residual_outputs"] == 3
    assert arguments(plan)["input_channels"] == 4


@pytest.mark.parametrize(("words", "divider"), [(BRATS_WORDS, "_"), (("t1n", "t1c", "t2w", "t2f"), "-")])
def test_planned_model_recognizes_files_of_its_data_set(tmp_path, words, divider):
    folder = brats(tmp_path / "set", words=words, divider=divider)
    inputs = planned(folder).model.inputs
    names = [path.name for path in read_data_set(folder).cases[0].images]
    for order in permutations(range(4)):
        assert [order[place] for place in sort_by_channel(inputs, [names[place] for place in order])] == [0, 1, 2, 3]


def test_brats_may_be_planned_with_exclusive_labels(tmp_path):
    """The multi-class mode of the paper's Table V."""
    plan = planned(brats(tmp_path / "set"), kind="labels")
    output = plan.model.output
    assert output.kind == "labels" and plan.targets == {"necrosis": [1], "edema": [2], "enhancing": [4]}
    assert {segment.name: segment.label for segment in output.segments} == {"necrosis": 1, "edema": 2, "enhancing": 4}
    assert (arguments(plan)["outputs"], arguments(plan)["residual_outputs"]) == (4, 3)


def test_exclusive_labels_do_not_become_regions(tmp_path):
    with pytest.raises(UserError, match=r"No label of .* is part of a region, .* plan labels"):
        planned(decathlon(tmp_path / "set"), kind="regions")


def test_nnunet_regions_are_painted_in_its_order(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    plan = planned(nnunet(tmp_path / "set", labels=labels, regions_class_order=[1, 2]))
    assert plan.targets == {"whole": [1, 2], "core": [2]} and plan.model.output.paint_order == ("whole", "core")


@pytest.mark.parametrize(
    ("name", "keyword"),
    [("T1w", "t1"), ("t1_Gd", "t1gd"), ("T2-FLAIR", "flair"), ("T2", "t2"), ("FLAIR", "flair"), ("MRI", "mr")],
)
def test_keywords_that_recognize_a_channel(tmp_path, name, keyword):
    (item,) = planned(decathlon(tmp_path / "set", channels=(name,))).model.inputs
    assert keyword in item.keywords and item.modality == "MR" and item.name == name


def test_ct_is_recognized_by_a_word_in_the_name():
    assert is_ct("CT") and is_ct("ct_arterial") and not is_ct("PET/CT") and not is_ct("ADC") and not is_ct("octave")


@pytest.mark.parametrize(
    ("spacing", "orientation", "planned_spacing"),
    [
        ((1, 1, 1), "SAR", (1, 1, 1)),
        ((0.5, 0.6, 4), "SAR", (4, 0.6, 0.5)),
        ((0.5, 4, 0.6), "ASR", (4, 0.6, 0.5)),
        ((4, 0.5, 0.6), "RSA", (4, 0.6, 0.5)),
    ],
)
def test_thick_slices_keep_their_plane_and_are_stacked_along_the_first_axis(
    tmp_path, spacing, orientation, planned_spacing
):
    folder, shape = decathlon(tmp_path / "set"), (40, 30, 20)
    for number in range(3):
        matrix = np.diag([*spacing, 1.0])
        save(image(number, shape), folder / "imagesTr" / f"case_{number}.nii.gz", matrix)
        save(label(shape=shape), folder / "labelsTr" / f"case_{number}.nii.gz", matrix)
    description = planned(folder).model
    assert description.preparation.orientation == orientation
    assert description.preparation.spacing == pytest.approx(planned_spacing)
    along = dict(zip("RAS", shape, strict=True))
    assert description.inference.window == tuple(-(-along[letter] // 8) * 8 for letter in orientation)


def test_window_is_that_of_the_median_case_at_the_planned_spacing(tmp_path):
    folder = decathlon(tmp_path / "set", cases=3)
    # One case has voxels half as large and twice as many: at the median spacing, it is as large as the others.
    save(image(0, (40, 36, 32)), folder / "imagesTr" / "case_0.nii.gz", np.diag([0.5, 0.5, 0.5, 1]))
    description = planned(folder).model
    assert description.preparation.spacing == (1, 1, 1) and description.inference.window == (16, 24, 24)


@pytest.mark.parametrize(
    ("mm", "roi", "largest"), [(1, "cut", (17, 18, 22)), (6, "limit", None)], ids=["crops", "scans"]
)
def test_roi_is_a_limit_for_images_as_large_as_scans(tmp_path, mm, roi, largest):
    folder, shapes = decathlon(tmp_path / "set"), [(20, 18, 16), (20, 18, 16), (22, 16, 17)]
    for number, shape in enumerate(shapes):
        save(image(number, shape), folder / "imagesTr" / f"case_{number}.nii.gz", np.diag([mm, mm, mm, 1.0]))
    preparation = planned(folder).model.preparation
    assert (preparation.roi, preparation.largest_crop) == (roi, largest)


def test_given_orientation_determines_order_of_spacing_window_and_flips(tmp_path, monkeypatch, capsys):
    """Otherwise, the planned spacing would apply to other axes, and samples would be flipped upside down."""
    folder, output = decathlon(tmp_path / "set"), tmp_path / "plan.yaml"
    for number in range(3):
        for kind, array in (("imagesTr", image(number, (40, 30, 10))), ("labelsTr", label(shape=(40, 30, 10)))):
            save(array, folder / kind / f"case_{number}.nii.gz", np.diag([1, 2, 5, 1.0]))
    setting = ("--set", "model.preparation.orientation=RAS")
    assert run_command(monkeypatch, "plan", folder, "--output", output, "--memory", 8, *setting) == 0
    plan = read_plan(output)
    assert plan.model.preparation.orientation == "RAS" and plan.model.preparation.spacing == (1, 2, 5)
    assert plan.model.inference.window == (40, 32, 16) and plan.augmentation.flip_axes == ["S"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("orientation")]
    assert line.split() == ["orientation", "RAS", "set", "by", "you"]
    capsys.readouterr()
    setting = ("--overwrite", "--set", "model.preparation.orientation=RRS")
    assert run_command(monkeypatch, "plan", folder, "--output", output, "--memory", 8, *setting) == 2
    assert "must name three axes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "setting", "spacing", "window"),
    [
        ("conresnet", "=[2, 0.5, 1]", (2, 0.5, 1), (16, 64, 40)),
        ("conresnet", ".1=0.5", (1, 0.5, 1), (32, 64, 40)),
        # Its last level is trained on the central half of the window.
        ("pyramid", "=[2, 2, 4]", (2, 2, 4), (32, 32, 32)),
    ],
)
def test_given_spacing_determines_the_window(tmp_path, monkeypatch, capsys, system, setting, spacing, window):
    folder, output = decathlon(tmp_path / "set"), tmp_path / "plan.yaml"
    for number in range(3):
        for kind, array in (("imagesTr", image(number, (40, 30, 32))), ("labelsTr", label(shape=(40, 30, 32)))):
            save(array, folder / kind / f"case_{number}.nii.gz")
    options = ("--memory", 80, "--system", system, "--set", f"model.preparation.spacing{setting}")
    assert run_command(monkeypatch, "plan", folder, "--output", output, *options) == 0
    model = read_plan(output).model
    assert (model.preparation.spacing, model.inference.window) == (spacing, window)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spacing")]
    assert "set by you (the median of 3 cases: 1 x 1 x 1 mm)" in line


def test_one_image_with_an_absurd_size_does_not_prevent_planning(tmp_path):
    """Training and `check` name it; refusing the plan would name a number that nobody entered."""
    folder = decathlon(tmp_path / "set")
    save(image(0), folder / "imagesTr" / "case_0.nii.gz", np.diag([60, 1, 1, 1.0]))
    assert planned(folder).model.preparation.largest_crop == (16, 18, 1000)


def test_narrower_network_is_planned_on_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here = Budget.here()
    assert here.widths[0] == 16 and here.bytes > 2**28 and not here.is_gpu


@pytest.mark.parametrize(
    ("available", "total", "bytes_"),
    [(3 * 2**30, 2**40, 3 * 2**30), (None, 2**35, 2**34), (None, None, ASSUMED_BYTES)],
    ids=["free", "half of total", "unknown"],
)
def test_half_of_total_memory_is_assumed_if_free_memory_is_unknown(monkeypatch, available, total, bytes_):
    monkeypatch.setattr("conresnet_training.planning.memory.available_memory", lambda: available)
    monkeypatch.setattr("conresnet_training.planning.memory.total_memory", lambda: total)
    assert Budget.here("cpu").bytes == bytes_


def test_memory_is_that_of_the_given_gpu(monkeypatch):
    """On a simulated computer with two GPUs, the second of which is larger."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**34 if device.index else 2**33, 2**34))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    assert Budget.here("cuda:1") == Budget(2**34, (32, 16, 8), "16.0 GB free on GPU 1", is_gpu=True)
    assert Budget.here().bytes == 2**33 and not Budget.here("cpu").is_gpu
    with refused("device-unavailable"):
        Budget.here("cuda:2")


def test_gpu_gets_larger_batch_for_small_windows_and_many_cases(tmp_path):
    folder = decathlon(tmp_path / "set", cases=200)
    plan, reasons = make_plan(read_data_set(folder), folder, Budget.given(40))
    (why,) = [reason.why for reason in reasons if reason.what == "batch"]
    # A twentieth of 200 images of 20 x 18 x 16 voxels is 6.25 windows of 16 x 24 x 24.
    assert plan.training.batch == 6 and "twentieth of the data" in why
    assert planned(folder, Budget.given(40), batch=2).training.batch == 2
    assert planned(folder, Budget(40 * 2**30, (16, 8), "this computer")).training.batch == 2


@pytest.mark.parametrize(("cases", "steps", "folds"), [(2, 2000, 2), (4, 2000, 4), (100, 3000, 5)])
def test_steps_and_folds_depend_on_number_of_cases(tmp_path, cases, steps, folds):
    training = planned(decathlon(tmp_path / "set", cases=cases)).training
    assert (training.steps, training.folds) == (steps, folds)


def test_base_width_may_be_set_and_is_checked_against_memory(tmp_path):
    folder, little = decathlon(tmp_path / "set"), Budget(2 * 2**30, (16, 8), "little")
    assert [arguments(planned(folder, little, base_width=width))["base_width"] for width in (8, 24)] == [8, 24]
    with pytest.raises(UserError, match=r"needs .* GB of memory"):
        planned(folder, little, base_width=64)
    with refused("base-width-invalid", width=12):
        planned(folder, base_width=12)


def test_residual_axis_may_be_set(tmp_path):
    plan = planned(decathlon(tmp_path / "set"), residual_axis="W")
    assert arguments(plan)["residual_axis"] == "W" and plan.model.residual_axis == "sagittal"


@pytest.mark.parametrize("name", ["Größe & Maß", "脳腫瘍", "...", "x" * 300, "Task 1 (v2)"])
def test_names_in_any_script_can_be_planned(tmp_path, name):
    plan = planned(decathlon(tmp_path / "set", name=name))
    assert plan.model.title == name and plan.model.name.isascii()


def test_many_labels_can_be_planned(tmp_path):
    labels = {str(value): f"organ {value}" for value in range(1, 105)}
    description = planned(decathlon(tmp_path / "set", labels=labels)).model
    colors = {segment.color for segment in description.output.segments}
    assert len(description.output.segments) == 104 and len(colors) == 104


def test_channel_that_nnunet_does_not_normalize_keeps_its_values(tmp_path):
    folder = nnunet(tmp_path / "set", channels=("MRI", "noNorm"))
    plan, reasons = make_plan(read_data_set(folder), folder)
    assert [bool(item.intensity) for item in plan.model.inputs] == [True, False]
    (reason,) = [reason for reason in reasons if reason.what == "intensity noNorm"]
    assert reason.value == "unchanged"


def test_no_more_folds_than_cases_are_planned(tmp_path, monkeypatch, capsys):
    folder = decathlon(tmp_path / "set")
    arguments = ("plan", folder, "--output", tmp_path / "p.yaml", "--set", "training.folds=5")
    assert run_command(monkeypatch, *arguments) == 2
    assert message_of("too-many-folds", cases=3, patients=3, folds=5) in capsys.readouterr().err
    assert not (tmp_path / "p.yaml").exists()


def test_too_few_or_incomplete_cases_are_refused(tmp_path):
    folder = decathlon(tmp_path / "one", cases=1)
    with refused("one-case"):
        planned(folder)
    folder = brats(tmp_path / "three")
    (folder / "BraTS_2" / "BraTS_2_seg.nii.gz").unlink()
    with refused("case-file-missing", case="BraTS_2"):
        planned(folder)


@pytest.mark.parametrize("system", ["conresnet", "coarse-to-fine"])
def test_label_maps_of_ct_with_values_beyond_a_byte_are_planned(repository, tmp_path, system):
    """Their images are synthesized, so no Hounsfield units can be measured."""
    folder = tmp_path / "set"
    shutil.copytree(repository / "Testing" / "Data" / "SynthSeg_4mm", folder)
    path = folder / "label_maps.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"channel": "CT"}
    path.write_text(json.dumps(content), encoding="utf-8")
    (ct,) = planned(folder, system=system).model.inputs
    assert ct.modality == "CT" and [step["step"] for step in ct.intensity] == ["clip_percentiles", "z_score"]


def test_command_explains_the_plan(tmp_path, monkeypatch, capsys):
    folder, output = decathlon(tmp_path / "Übung"), tmp_path / "plan.yaml"
    command = ["plan", folder, "--output", output, "--memory", "4", "--residual-axis", "H"]
    settings = ("--set", "training.steps=500", "--set", "training.batch=1")
    assert run_command(monkeypatch, *command, *settings) == 0
    captured = capsys.readouterr()
    lines = {line.split("  ")[0].strip(): line for line in captured.out.splitlines()}
    assert "16 x 24 x 24 voxels" in lines["window"] and "the median case (16 x 18 x 20)" in lines["window"]
    assert "4 GB of GPU memory, as given" in lines["base width"] and "coronal" in lines["residual axis"]
    assert captured.out.splitlines()[-2:] == [
        f"{'set by you':<15}{part}" for part in ("training.steps=500", "training.batch=1")
    ]
    assert lines["steps"].split("  ")[-1].strip() == "set by you (planned: 50000)" and " 500 " in lines["steps"]
    assert captured.err == f"Planned for 3 cases. Review and edit {output}, then use it for training.\n"
    content = yaml.safe_load(output.read_text(encoding="utf-8"))
    assert content["training"]["steps"] == 500 and content["training"]["batch"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "0.1"),
        ("--memory", "-1"),
        ("--memory", "nan"),
        ("--memory", "inf"),
        ("--memory", "1e400"),
        ("--set", "training.stepz=5"),
        ("--residual-axis", "X"),
        ("--system", "resnet"),
        ("--system", "unet", "--residual-axis", "H"),
        ("--kind", "regions"),
        ("--base-width", "12"),
        ("--base-width", "0"),
        ("--set", "model.system.networks.0.arguments.base_width=4"),
        ("--set", "training.start_from=nobody"),
        ("--set", "model.inference.window=[7, 8, 8]"),
        ("--set", "model.inference.window=[1, 1, 1]"),
    ],
)
def test_invalid_arguments_are_refused_and_leave_no_plan(tmp_path, monkeypatch, capsys, options):
    folder, output = decathlon(tmp_path / "set"), tmp_path / "plan.yaml"
    assert run_command(monkeypatch, "plan", folder, "--output", output, *options) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.out == "" and not output.exists()


def test_edited_plan_is_kept_without_overwrite(tmp_path, monkeypatch, capsys):
    folder, output = decathlon(tmp_path / "set"), tmp_path / "plan.yaml"
    # Editing may have broken its YAML.
    edited = "data: x\ntargets: [\nmodel:\n  name: edited for hours\n"
    output.write_text(edited, encoding="utf-8")
    assert run_command(monkeypatch, "plan", folder, "--output", output) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == edited
    assert run_command(monkeypatch, "plan", folder, "--output", output, "--overwrite") == 0
    assert "training:" in output.read_text(encoding="utf-8")


def test_only_a_plan_is_overwritten(tmp_path, monkeypatch, capsys):
    folder, notes = decathlon(tmp_path / "set"), tmp_path / "notes.txt"
    notes.write_text("thesis\n", encoding="utf-8")
    for path in (notes, folder / "dataset.json"):
        content = path.read_bytes()
        assert run_command(monkeypatch, "plan", folder, "--output", path, "--overwrite") == 2
        assert message_of("not-a-plan", path=path) in capsys.readouterr().err
        assert path.read_bytes() == content


def test_number_of_sample_processes_depends_on_training_computer(tmp_path):
    """It may be another computer than the one that planned."""
    folder = decathlon(tmp_path / "set")
    assert {planned(folder, budget).training.workers for budget in (Budget.given(8), Budget.here())} == {None}
