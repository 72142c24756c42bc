"""Evaluation of runs on their held-out cases: which cases, which networks, and the files written."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from conresnet.images.files import read_volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.store import write_package
from conresnet.request import SegmentOptions
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import file_stem
from conresnet_training.evaluation.runs import measure_predictions, measure_runs, open_runs
from conresnet_training.planning.plan import with_settings, write_plan
from conresnet_training.runs.packing import pack_runs
from conresnet_training.runs.run import begin_split, held_out_of_run, split, start_run
from training.commands import message_of, refused, run_command
from training.data_folders import describe
from training.trained_runs import end_run, finished_folds, finished_run, small_plan

pytestmark = pytest.mark.usefixtures("empty_pictures")


def prediction_of(runs, case: str, data_set, folder) -> np.ndarray:
    """Label map that the model of these runs predicts for a case."""
    packed = pack_runs(runs)
    model = load_model(write_package(packed.description, packed.files, folder))
    return segment(model, [read_volume(data_set / "imagesTr" / f"{case}.nii.gz")], SegmentOptions()).labels.array


def test_run_is_measured_only_on_its_held_out_cases(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run", fold=1)
    assert run_command(monkeypatch, "evaluate", run.folder) == 0
    printed = capsys.readouterr()
    assert "Near box" in printed.out and "Measured 2 cases of Boxes: mean Dice " in printed.err
    output = run.folder / "evaluation"
    content = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert list(content["cases"]) == ["case_1", "case_4"] and content["split"].startswith("fold 1 of 3: 2 of 6 cases")
    unfinished = f"7 of {run.plan.training.steps} steps"
    assert content["made_by"] == [{"fold": 1, "steps": 7, "checkpoint": "last", "unfinished": unfinished}]
    assert f"Fold 1 is unfinished: {unfinished} were completed." in printed.err
    assert (output / "report.html").is_file() and (output / "evaluation.csv").is_file()
    # The written label maps are the measured ones: evaluated as predictions, they have the same metrics.
    again = measure_predictions(output / "segmentations", read_data_set(data_set)).evaluation
    assert again.cases == content["cases"] and again.missing == ("case_0", "case_2", "case_3", "case_5")
    labels = read_volume(output / "segmentations" / "case_4.nii.gz").array
    assert np.array_equal(labels, prediction_of([run], "case_4", data_set, tmp_path / "model"))


def test_each_fold_segments_its_held_out_cases(data_set, tmp_path, monkeypatch, capsys):
    runs = finished_folds(small_plan(data_set), tmp_path / "folds")
    assert run_command(monkeypatch, "evaluate", tmp_path / "folds", data_set, "--output", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert sorted(content["cases"]) == [f"case_{number}" for number in range(6)]
    assert [entry["fold"] for entry in content["made_by"]] == [0, 1, 2]
    assert "each case was segmented only by runs that never saw it" in content["split"]
    for number in (1, 2):
        found = read_volume(tmp_path / "out" / "segmentations" / f"case_{number}.nii.gz").array
        own, other = (
            prediction_of([runs[fold]], f"case_{number}", data_set, tmp_path / f"model_{number}_{fold}")
            for fold in (number, (number + 1) % 3)
        )
        assert np.array_equal(found, own) and not np.array_equal(found, other)


def test_copy_of_a_fold_is_not_another_fold(data_set, tmp_path):
    finished_folds(small_plan(data_set), tmp_path / "folds")
    shutil.copytree(tmp_path / "folds" / "fold_0", tmp_path / "folds" / "fold_0_before")
    assert [run.folder.name for run in open_runs(tmp_path / "folds")] == ["fold_0", "fold_1", "fold_2"]


def test_cross_validation_names_unmeasured_cases_and_unfinished_folds(data_set, tmp_path, monkeypatch, capsys):
    plan = with_settings(small_plan(data_set), ["training.steps=9"])
    runs = finished_folds(plan, tmp_path / "folds")
    (data_set / "labelsTr" / "case_0.nii.gz").write_bytes(b"damaged")
    write_plan(plan, tmp_path / "plan.yaml")
    for run in runs:
        end_run(run, 9, "stopped", 7)
    arguments = ("crossval", tmp_path / "plan.yaml", "--output", tmp_path / "folds", "--max-steps", 7)
    assert run_command(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert "case_0 could not be measured: " in errors and "Fold 1 is unfinished: 7 of 9 steps were completed." in errors
    assert "Trained 3 folds and measured 5 cases of Boxes; 1 case could not be measured: mean Dice " in errors


def test_progress_bar_counts_cases_that_cannot_be_measured(data_set, tmp_path, monkeypatch):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    (data_set / "labelsTr" / "case_0.nii.gz").write_bytes(b"damaged")
    (tmp_path / "out").mkdir()
    done = []
    monkeypatch.setattr(
        "conresnet_training.evaluation.runs.progress_bar", lambda cases: contextlib.nullcontext(done.append)
    )
    assert list(measure_runs([run], tmp_path / "out").errors) == ["case_0"]
    assert done == ["case_0", "case_3"]


def test_runs_of_one_fold_with_different_seeds_are_ensembled(data_set, tmp_path):
    plan = small_plan(data_set)
    runs = [finished_run(plan, tmp_path / f"seed {seed}", fold=0, seed=seed) for seed in (4, 5)]
    (tmp_path / "out").mkdir()
    evaluation = measure_runs(runs, tmp_path / "out").evaluation
    assert list(evaluation.cases) == ["case_0", "case_3"]
    found = read_volume(tmp_path / "out" / "case_3.nii.gz").array
    assert np.array_equal(found, prediction_of(runs, "case_3", data_set, tmp_path / "both"))
    assert not np.array_equal(found, prediction_of(runs[:1], "case_3", data_set, tmp_path / "one"))


def test_moved_data_set_is_named(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    moved = tmp_path / "moved"
    data_set.rename(moved)
    assert run_command(monkeypatch, "evaluate", run.folder) == 2
    expected = message_of("run-data-not-found", path=data_set, run=run.folder)
    assert capsys.readouterr().err.strip() == expected and "--data" in expected
    assert run_command(monkeypatch, "resume", run.folder) == 2
    assert capsys.readouterr().err.strip() == expected
    assert run_command(monkeypatch, "evaluate", run.folder, moved) == 0


@pytest.mark.parametrize("name", ["site/case", "c" * 242])
def test_case_name_unsuitable_as_file_name_is_measured_and_exported(data_set, tmp_path, monkeypatch, name):
    """nnU-Net's "dataset" section allows any case name."""
    cases = {
        f"{name}{number}": {
            "images": [f"imagesTr/case_{number}.nii.gz"],
            "label": f"labelsTr/case_{number}.nii.gz",
        }
        for number in range(2)
    }
    labels = {"background": 0, "Near box": 1, "Far box": 2}
    describe(data_set, channel_names={"0": "MRI"}, labels=labels, file_ending=".nii.gz", dataset=cases)
    run = finished_run(small_plan(data_set, folds=2), tmp_path / "run")
    assert run_command(monkeypatch, "evaluate", run.folder) == 0
    written = run.folder / "evaluation" / "segmentations"
    assert [path.name for path in written.iterdir()] == [f"{file_stem(f'{name}0')}.nii.gz"]
    again = measure_predictions(written, read_data_set(data_set)).evaluation
    assert list(again.cases) == [f"{name}0"] and again.missing == (f"{name}1",)
    assert run_command(monkeypatch, "export", run.folder, "--output", tmp_path / "package") == 0


def test_missing_checkpoint_is_reported_before_evaluation(data_set, tmp_path):
    plan = small_plan(data_set)
    runs = finished_folds(plan, tmp_path / "folds")
    runs[2].checkpoint.unlink()
    (tmp_path / "out").mkdir()
    with refused("checkpoint-not-found"):
        measure_runs(runs, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model.preparation.spacing=[1, 1, 2]", "preparation"),
        ("model.output.segments.0.label=7", "output"),
        ("model.inputs.0.name=T2", "inputs"),
        ("model.inference.window=[16, 16, 16]", "inference windows"),
        ("model.system.networks.0.arguments.residual_axis=W", "residual axis"),
    ],
)
def test_runs_with_different_plans_are_not_combined(data_set, tmp_path, setting, part):
    plan = small_plan(data_set)
    runs = [
        finished_run(plan, tmp_path / "one", fold=0),
        finished_run(with_settings(plan, [setting]), tmp_path / "two", fold=1),
    ]
    with refused("runs-differ", part=part):
        pack_runs(runs)


def test_held_out_cases_stay_the_same_if_data_set_changes(data_set, tmp_path, monkeypatch, capsys):
    """With a new split, the run would be measured on cases it was trained on."""
    run = finished_run(small_plan(data_set), tmp_path / "run", fold=1)
    description = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    for folder in ("imagesTr", "labelsTr"):
        (data_set / folder / "a_case.nii.gz").write_bytes((data_set / folder / "case_0.nii.gz").read_bytes())
    added = {"image": "./imagesTr/a_case.nii.gz", "label": "./labelsTr/a_case.nii.gz"}
    description["training"].append(added)
    (data_set / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    assert [case.name for case in split(read_data_set(data_set), run.plan, 1)[1]] == ["case_0", "case_3"]
    assert run_command(monkeypatch, "evaluate", run.folder) == 0
    content = json.loads((run.folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(content["cases"]) == ["case_1", "case_4"]
    training, held_out = begin_split(run, read_data_set(data_set))
    assert [case.name for case in training] == ["case_0", "case_2", "case_3", "case_5"]
    assert [case.name for case in held_out] == ["case_1", "case_4"]
    description["training"] = [item for item in description["training"] if "case_4" not in item["image"]]
    (data_set / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    assert run_command(monkeypatch, "evaluate", run.folder, "--output", tmp_path / "out") == 2
    expected = message_of("cases-gone", data="Boxes", run=run.folder, names="case_4")
    assert expected in capsys.readouterr().err


def test_case_may_be_removed_before_training_starts(data_set, tmp_path):
    """A run that stopped at a broken case can start once that case is removed."""
    run = start_run(small_plan(data_set), tmp_path / "run", 1)
    begin_split(run, read_data_set(data_set))
    description = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    description["training"] = [item for item in description["training"] if "case_4" not in item["image"]]
    (data_set / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    training, held_out = begin_split(run, read_data_set(data_set))
    assert [case.name for case in held_out] == ["case_1", "case_5"] and len(training) == 3
    assert held_out_of_run(run, read_data_set(data_set)) == held_out


def test_starting_weights_are_mentioned_in_evaluation(data_set, tmp_path, monkeypatch):
    plan = with_settings(small_plan(data_set), ["training.start_from=/models/earlier"])
    run = finished_run(plan, tmp_path / "run")
    assert run_command(monkeypatch, "evaluate", run.folder) == 0
    content = json.loads((run.folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert "started with the weights of earlier, which may have learned from some of them" in content["split"]


@pytest.mark.parametrize(
    ("data", "split", "known"),
    [
        ("Boxes", "fold 0 of 3", "which names them among those it held out"),
        ("Others", "fold 0 of 3", "which may have learned from some of them"),
        ("Boxes with other weights", "fold 0 of 3", "which may have learned from some of them"),
        ("Boxes", "fold 1 of 3", "which may have learned from some of them"),
        ("Boxes", "begun with others, which may have learned from some of them", "which may have learned from some"),
    ],
)
def test_starting_weights_that_held_out_the_same_cases_are_recognized(
    data_set, tmp_path, monkeypatch, data, split, known
):
    plan, cases = small_plan(data_set), ("case_1", "case_4") if split == "fold 1 of 3" else ("case_0", "case_3")
    packed = pack_runs([finished_run(plan, tmp_path / "first")])
    metrics = {"data": data, "split": split, "dice_a_case": {case: {"Near box": 0.5} for case in cases}}
    if data == "Boxes with other weights":
        metrics |= {"data": "Boxes", "own_weights": "trained on all cases; not measured"}
    files = {**packed.files, "metrics.json": json.dumps(metrics).encode()}
    write_package(packed.description, files, tmp_path / "earlier")
    run = finished_run(with_settings(plan, [f"training.start_from={tmp_path / 'earlier'}"]), tmp_path / "run")
    assert run_command(monkeypatch, "evaluate", run.folder) == 0
    content = json.loads((run.folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert (
        f"2 of 6 cases, held out of training; training started with the weights of earlier, {known}" in content["split"]
    )
