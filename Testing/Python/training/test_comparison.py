"""Comparison of two evaluations, case by case."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import compare_evaluations, read_evaluation
from conresnet_training.evaluation.runs import evaluate_predictions
from training.commands import message_of, refused, run_command
from training.data_folders import save
from training.predicted_boxes import expert, measure

pytestmark = pytest.mark.usefixtures("empty_pictures")


def test_comparison_is_paired_by_case(predictions, data_set, tmp_path, monkeypatch, capsys):
    """Half the cases are slightly better in all shared cases; this is detected although the cases differ more."""
    better = tmp_path / "better"
    for number in range(6):
        label = expert(data_set, number)
        worse = label.copy()
        worse[:, :, : 3 + number][label[:, :, : 3 + number] > 0] = 0
        save(worse, predictions / f"case_{number}.nii.gz")
        worse[label == 1] = np.where(np.cumsum(label == 1).reshape(label.shape) % 9 == 0, label, worse)[label == 1]
        save(worse, better / f"case_{number}.nii.gz")
    for folder in (better, predictions):
        assert run_command(monkeypatch, "evaluate", folder, data_set) == 0
    capsys.readouterr()
    one, other = (read_evaluation(tmp_path / f"{name}_evaluation") for name in ("better", "predictions"))
    comparison = compare_evaluations(one, other)
    row = comparison.rows["Near box"]["dice"]
    differences = [one.cases[name]["Near box"]["dice"] - other.cases[name]["Near box"]["dice"] for name in one.cases]
    assert row["difference"] == pytest.approx(np.mean(differences), abs=1e-6) and row["difference"] > 0
    assert min(differences) - 1e-6 <= row["interval"][0] <= row["difference"] <= row["interval"][1]
    unchanged = comparison.rows["Far box"]["dice"]
    assert unchanged["difference"] == 0 and unchanged["p"] == 1 and unchanged["interval"] == [0, 0]
    output = tmp_path / "comparison.json"
    arguments = ("compare", tmp_path / "better_evaluation", tmp_path / "predictions_evaluation" / "evaluation.json")
    assert run_command(monkeypatch, *arguments, "--output", output) == 0
    printed = capsys.readouterr()
    assert "A - B" in printed.out and f"{row['difference']:+.4f}" in printed.out
    assert "on 6 cases" in printed.err
    assert json.loads(output.read_text(encoding="utf-8"))["rows"]["Near box"]["dice"]["p"] == row["p"]


def test_signed_rank_test_by_hand(predictions, data_set, tmp_path):
    """Six cases that all change in the same direction: the most unlikely of 2**6 arrangements, and its mirror image."""
    evaluation = measure(predictions, data_set)
    content = evaluation.to_dict()
    for number, rows in enumerate(content["cases"].values()):
        rows["Near box"]["dice"] -= 0.01 * (number + 1)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content), encoding="utf-8")
    row = compare_evaluations(evaluation, read_evaluation(changed)).rows["Near box"]["dice"]
    assert row["difference"] == pytest.approx(0.035) and row["p"] == pytest.approx(2 / 64)


def test_missed_segment_does_not_count_as_better_distance(predictions, data_set, tmp_path, monkeypatch, capsys):
    """One side finds the far box poorly, the other not at all; the near boxes, found by both, are equal."""
    missed = tmp_path / "missed"
    for number in range(6):
        label = expert(data_set, number)
        shifted = np.where(label == 1, 1, 0).astype(np.uint8)
        save(shifted, missed / f"case_{number}.nii.gz")
        shifted[:, :, 2:][label[:, :, :-2] == 2] = 2
        save(shifted, predictions / f"case_{number}.nii.gz")
    row = compare_evaluations(measure(missed, data_set), measure(predictions, data_set)).rows["overall"]
    assert row["hd95"]["difference"] == 0 and row["dice"]["difference"] < -0.1
    for folder in (missed, predictions):
        assert run_command(monkeypatch, "evaluate", folder, data_set) == 0
    capsys.readouterr()
    assert run_command(monkeypatch, "compare", *(tmp_path / f"{n}_evaluation" for n in ("missed", "predictions"))) == 0
    assert "Far box was missed in 6 cases; these cases have no distances." in capsys.readouterr().out


def test_only_a_comparison_is_replaced(predictions, data_set, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "evaluate", predictions, data_set) == 0
    evaluation, mine = tmp_path / "predictions_evaluation", tmp_path / "plan.yaml"
    mine.write_text("data: mine\n", encoding="utf-8")
    for path in (mine, evaluation / "evaluation.json", evaluation / "report.html"):
        before = path.read_bytes()
        assert run_command(monkeypatch, "compare", evaluation, evaluation, "--output", path) == 2
        assert message_of("comparison-path-taken", path=path) in capsys.readouterr().err
        assert path.read_bytes() == before
    output = evaluation / "comparison.json"
    for _ in range(2):
        assert run_command(monkeypatch, "compare", evaluation, evaluation, "--output", output) == 0
        assert json.loads(output.read_text(encoding="utf-8"))["warnings"] == ["Both evaluations are the same."]


def test_cases_with_same_name_but_other_references_are_named(predictions, data_set, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "evaluate", predictions, data_set) == 0
    label = expert(data_set, 2)
    label[0, 0, 0] = 1
    save(label, data_set / "labelsTr" / "case_2.nii.gz")
    assert run_command(monkeypatch, "evaluate", predictions, data_set, "--output", tmp_path / "other") == 0
    output = tmp_path / "comparison.json"
    arguments = ("compare", tmp_path / "predictions_evaluation", tmp_path / "other", "--output", output)
    capsys.readouterr()
    assert run_command(monkeypatch, *arguments) == 0
    (warning,) = json.loads(output.read_text(encoding="utf-8"))["warnings"]
    assert "The references of case_2 differ in volume" in warning and warning in capsys.readouterr().err


def test_folder_of_a_run_can_be_used_for_its_evaluation(predictions, data_set, tmp_path):
    """An evaluation is read from where evaluate and crossval write it, or from its own folder."""
    run = tmp_path / "run"
    evaluation = evaluate_predictions(predictions, read_data_set(data_set), run / "evaluation")
    assert read_evaluation(run) == read_evaluation(run / "evaluation") == evaluation
    shutil.rmtree(run / "evaluation")
    with refused("evaluation-not-found", path=str(run / "evaluation.json")):
        read_evaluation(run)


@pytest.mark.parametrize("name", ["fold.txt", "crossval.yaml"])
def test_run_that_was_not_evaluated_gets_the_command_for_it(tmp_path, name):
    run = tmp_path / "my run"
    run.mkdir()
    (run / name).touch()
    command = f'python -m conresnet_training evaluate "{run}"'
    with refused("run-not-evaluated", path=str(run), command=command):
        read_evaluation(run)


def test_comparison_imports_no_slow_libraries(predictions, data_set, tmp_path):
    evaluate_predictions(predictions, read_data_set(data_set), tmp_path / "evaluation")
    program = (
        "import sys; from conresnet_training.cli import main; main()\n"
        "print({'torch', 'monai', 'lightning_fabric', 'SimpleITK', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, "compare", tmp_path / "evaluation", tmp_path / "evaluation"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()" and "Compared" in done.stderr


def test_only_matching_cases_and_settings_are_compared(predictions, data_set, tmp_path):
    all_cases = measure(predictions, data_set)
    (predictions / "case_5.nii.gz").unlink()
    some_cases = measure(predictions, data_set)
    comparison = compare_evaluations(all_cases, some_cases)
    assert comparison.left_out == ("case_5",) and comparison.rows["Far box"]["dice"]["cases"] == 5
    with refused("tolerances-differ"):
        compare_evaluations(all_cases, measure(predictions, data_set, 2.0))
    for path in predictions.glob("case_[1-4]*"):
        path.unlink()
    first = measure(predictions, data_set)
    save(expert(data_set, 1), predictions / "case_1.nii.gz")
    (predictions / "case_0.nii.gz").unlink()
    with refused("no-common-case"):
        compare_evaluations(first, measure(predictions, data_set))


def test_evaluation_that_cannot_be_compared_is_named(predictions, data_set, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, options in zip(folders, ((), ("--surface-tolerance", 2)), strict=True):
        assert run_command(monkeypatch, "evaluate", predictions, data_set, "--output", folder, *options) == 0
    capsys.readouterr()
    assert run_command(monkeypatch, "compare", *folders) == 2
    assert capsys.readouterr().err.startswith(f"{folders[0]} and {folders[1]} cannot be compared. ")
