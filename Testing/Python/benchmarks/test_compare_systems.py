"""Comparison of systems: its rows, their runs, and the resulting tables."""

import csv
import json
from dataclasses import replace

import matplotlib.image
import nibabel
import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import COLUMNS, Evaluation, read_evaluation, write_tables
from conresnet_training.planning.plan import Synthesis, read_plan, with_settings
from conresnet_training.runs import PROGRESS_FILE, ProgressWriter
from conresnet_training.runs.run import start_run
from training.data_folders import brats
from training.tiny_plan import write_tiny_plan
from training.trained_runs import finished_run


@pytest.fixture
def rows(benchmark, peers):
    """The module that creates the rows."""
    return benchmark("system_rows")


def of_network(row) -> dict:
    """Arguments of a row's network."""
    return row.plan.model.system.networks[0].arguments


def test_every_row_differs_from_the_plan_only_in_its_system(rows, plan_file):
    plan = read_plan(plan_file)
    found = rows.all_rows(plan, read_data_set(plan.data))
    assert {*rows.SYSTEMS, "dynunet", "segresnet", "basicunet"} < set(found)
    for row in found.values():
        for changed in row.plans.values():
            assert (changed.data, changed.augmentation) == (plan.data, plan.augmentation)
            settings = {"seed", "boundary", "deep_supervision"} if row.group == "study" else set()
            kept = [item.training.model_dump(exclude=settings) for item in (plan, changed)]
            assert kept[0] == kept[1], row.name


def test_study_has_rows_of_the_papers_tables(rows, plan_file):
    plan = read_plan(plan_file)
    found = rows.all_rows(plan, read_data_set(plan.data))
    tables = {table: [name for name, row in found.items() if row.is_in(table)] for table in rows.STUDY}
    assert tables == {
        "Table I": ["conresnet", "conresnet-ensemble"],
        "Table III": ["conresnet", "conresnet-baseline", "conresnet-mapping-alone"],
        "Table IV": ["conresnet", "conresnet-baseline", "conresnet-coronal", "conresnet-sagittal"],
        "Table V": ["conresnet", "conresnet-baseline", "conresnet-regions", "conresnet-baseline-regions"],
        "Table VI": ["conresnet", "conresnet-baseline", "conresnet-boundary-loss", "conresnet-baseline-boundary-loss"],
        "Fig. 8": ["conresnet", "conresnet-lambda-0", "conresnet-lambda-0.1", "conresnet-lambda-1"],
        "Table VII": ["conresnet", "conresnet-baseline"],
    }
    switches = {
        name: [of_network(found[name])[f"{part}_mapping"] for part in ("residual", "attention")]
        for name in tables["Table III"]
    }
    assert switches == {
        "conresnet": [True, True],
        "conresnet-baseline": [False, False],
        "conresnet-mapping-alone": [True, False],
    }
    assert [of_network(found[name])["residual_axis"] for name in tables["Table IV"][2:]] == ["H", "W"]
    assert [found[name].plan.training.deep_supervision for name in tables["Fig. 8"]] == [0.5, 0, 0.1, 1]
    seeds = [plan.training.seed for plan in found["conresnet-ensemble"].plans.values()]
    assert seeds == [0, 1, 2]
    with pytest.raises(UserError) as caught:
        rows.chosen_rows(found, "conresnet,resnet")
    assert (caught.value.code, caught.value.values) == ("row-unknown", {"row": "resnet"})


def test_regions_become_the_labels_they_consist_of(rows, tmp_path):
    folder = brats(tmp_path / "brats")
    plan = read_plan(write_tiny_plan(folder, tmp_path / "plan.yaml"))
    found = rows.all_rows(plan, read_data_set(folder))
    multi_class = found["conresnet-labels"].plan
    assert multi_class.targets == {"necrosis": [1], "edema": [2], "enhancing": [4]}
    assert [segment.label for segment in multi_class.model.output.segments] == [1, 2, 4]
    assert (of_network(found["conresnet-labels"])["outputs"], of_network(found["conresnet"])["outputs"]) == (4, 3)


def test_labels_are_measured_by_the_regions_they_make_up(benchmark, rows, tmp_path):
    folder = brats(tmp_path / "brats")
    plan_file = write_tiny_plan(folder, tmp_path / "plan.yaml")
    plan = read_plan(plan_file)
    multi_class = rows.all_rows(plan, read_data_set(folder))["conresnet-labels"].plan
    run = finished_run(multi_class, tmp_path / "run", 1)
    benchmark("row_work").evaluate([run], tmp_path / "evaluation", plan_file)
    found = read_evaluation(tmp_path / "evaluation")
    assert found.segments == tuple(plan.targets)
    assert (list(found.cases), found.made_by[0]["fold"]) == (["BraTS_2"], 1)
    truth = nibabel.load(folder / "BraTS_2" / "BraTS_2_seg.nii.gz").get_fdata()
    result = nibabel.load(tmp_path / "evaluation" / "segmentations" / "BraTS_2.nii.gz").get_fdata()
    for name, values in plan.targets.items():
        ours, theirs = np.isin(result, values), np.isin(truth, values)
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert found.cases["BraTS_2"][name]["dice"] == pytest.approx(dice)


def test_run_made_elsewhere_is_used_if_its_training_matches(benchmark, rows, plan_file, tmp_path):
    plan = read_plan(plan_file)
    row = rows.all_rows(plan, read_data_set(plan.data))["conresnet"]
    elsewhere = row.plan.model_copy(update={"data": tmp_path / "moved", "model": replace(row.plan.model, title="Mine")})
    start_run(elsewhere, tmp_path / "conresnet" / "fold_1", 1)
    assert [run.folder.name for run in rows.runs_of(row, tmp_path, [1])] == ["fold_1"]
    for changed in (
        with_settings(row.plan, ["training.batch=1"]),
        row.plan.model_copy(update={"synthesis": Synthesis()}),
    ):
        with pytest.raises(UserError) as caught:
            rows.runs_of(rows.Row("conresnet", "", {"conresnet": changed}, "systems"), tmp_path, [1])
        assert caught.value.code == "plan-differs"


def test_late_rise_is_measured_in_last_quarter_of_last_stage(benchmark, rows, plan_file, tmp_path):
    plan = with_settings(read_plan(plan_file), ["training.steps=8"])
    found = rows.all_rows(plan, read_data_set(plan.data))
    dice = {2: 0.1, 5: 0.3, 6: 0.4, 8: 0.9, 10: 0.5, 14: 0.8, 16: 0.81}
    rises = {}
    for name, steps in (("conresnet", 8), ("conresnet-refined", 16)):
        run = start_run(found[name].plan, tmp_path / name, 0)
        writer = ProgressWriter(run.folder / PROGRESS_FILE)
        writer.write("started", step=0, steps=steps)
        for step, value in dice.items():
            if step <= steps:
                writer.write("validation", step=step, dice=value)
        writer.close()
        rises[name] = rows.late_rise(run)
    assert rises == pytest.approx({"conresnet": 0.5, "conresnet-refined": 0.01})


def evaluation(dice: list[float]) -> Evaluation:
    """An evaluation of one case per Dice value, named a, b and so on, with one segment."""
    blank = dict.fromkeys(COLUMNS, 1.0)
    cases = {name: {"box": {**blank, "dice": value}} for name, value in zip("abcde", dice, strict=False)}
    cases["a"]["box"]["hd95"] = None if len(cases) == 2 else 1.0
    return Evaluation("boxes", "fold 0", "model", 1.0, cases, made_by=({"fold": 0, "steps": 9},))


@pytest.fixture
def comparison(benchmark, rows, plan_file):
    """Four rows; one is under-trained and one is for whole images."""
    module, plan = benchmark("comparison_results"), read_plan(plan_file)
    found = rows.all_rows(plan, read_data_set(plan.data))
    cost = {"parameters": 4_800_000, "multiply_adds": 9_000_000_000, "window": [8, 8, 8], "seconds": {"a": 0.5, "b": 1}}
    cost |= {"peak_bytes": 2_000_000_000, "device": "cpu", "precision": "fp32", "threads": 1}
    given = {
        "conresnet": ([0.6, 0.7, 0.8, 0.9, 1.0], 0.001),
        "conresnet-baseline": ([0.5, 0.6], 0.02),
        "dynunet": ([0.5], None),
        "coarse-to-fine": ([0.9], 0.0),
    }
    results = [module.Result(found[name], evaluation(dice), cost, 9, rise) for name, (dice, rise) in given.items()]
    return module.Comparison(results, ["Boxes."], are_crops=True)


def test_table_marks_rows_that_must_not_be_ranked(benchmark, comparison, tmp_path):
    benchmark("comparison_results").write_markdown(comparison, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| ConResNet | 0.800 (0.680 to 0.920) | 1.00 (1.00 to 1.00) | 4.80 | 9.0 | 0.75 | 2.00 | 9 |" in text
    assert "| ConResNet, baseline † | 0.550 | 1.00, 1 of 2 cases |" in text
    assert "| DynUNet (MONAI) ? | 0.500 |" in text
    assert "| ResDSN, coarse to fine ‡ |" in text
    assert "| ConResNet, baseline † | -0.1000 |  |" in text
    assert "† under-trained" in text and "‡ made for whole images" in text


def test_csv_file_has_every_figure(benchmark, comparison, tmp_path):
    benchmark("comparison_results").write_csv(comparison, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    assert float(lines["conresnet"]["dice"]) == pytest.approx(0.8)
    assert lines["conresnet-baseline"]["under_trained"] == "yes"
    assert float(lines["conresnet-baseline"]["dice minus conresnet"]) == pytest.approx(-0.1)
    assert (lines["dynunet"]["under_trained"], lines["dynunet"]["late_rise"]) == ("unknown", "")
    assert lines["coarse-to-fine"]["judged_on_crops"] == "yes"


def test_picture_is_drawn(benchmark, comparison, tmp_path):
    benchmark("comparison_results").draw_comparison(comparison, tmp_path / "four.png")
    picture = matplotlib.image.imread(tmp_path / "four.png")
    assert picture.std() > 0.05


@pytest.mark.slow
def test_rows_are_trained_evaluated_measured_and_compared(benchmark, rows, plan_file, tmp_path, monkeypatch, capsys):
    """Runs in this process, because each process of the command takes seconds to start; the slow test uses them."""
    module, work, done = benchmark("compare_systems"), benchmark("row_work"), []

    def here(self, tasks: dict[str, dict], jobs: int) -> list[str]:
        for name, task in tasks.items():
            done.append(name)
            work.work.callback(task)
        return []

    monkeypatch.setattr(module.Bench, "_work", here)
    output, plan = tmp_path / "compared", read_plan(plan_file)
    ours = rows.all_rows(plan, read_data_set(plan.data))["conresnet"].plan
    run = finished_run(ours, output / "conresnet" / "fold_1", 1, steps=2)
    writer = ProgressWriter(run.folder / PROGRESS_FILE)
    writer.write("finished", step=2)
    writer.close()
    # An incomplete evaluation.
    (output / "conresnet" / "evaluation" / "segmentations").mkdir(parents=True)
    command = [str(plan_file), "--output", str(output), "--rows", "conresnet,dynunet", "--fold", "1"]
    module.compare.main([*command, "--max-steps", "1"], standalone_mode=False)
    assert "dynunet not finished" in capsys.readouterr().err
    module.compare.main(command, standalone_mode=False)
    assert done == [
        *("dynunet fold_1", "conresnet evaluation", "conresnet cost"),
        *("dynunet fold_1", "dynunet evaluation", "dynunet cost"),
    ]
    assert list(read_evaluation(output / "dynunet" / "evaluation").cases) == ["case_1"]
    cost = json.loads((output / "conresnet" / "cost.json").read_text())
    assert list(cost["seconds"]) == ["case_1"]
    assert 10_000 < cost["parameters"] < 10_000_000 < cost["multiply_adds"]
    assert "| DynUNet (MONAI) " in (output / "table.md").read_text(encoding="utf-8")
    assert (output / "comparison.png").stat().st_size > 10_000
    module.compare.main([*command, "--remeasure"], standalone_mode=False)
    assert done[6:] == ["conresnet cost", "dynunet cost"]


@pytest.mark.slow
def test_command_runs_rows_of_every_kind(run_benchmark, plan_file, tmp_path):
    rows = "conresnet,voxresnet-auto-context,coarse-to-fine,pyramid,basicunet,conresnet-ensemble"
    output = tmp_path / "compared"
    options = [plan_file, "--output", output, "--rows", rows, "--jobs", 2, "--set", "training.batch=1"]
    done = run_benchmark("compare_systems.py", *options)
    assert "Compared 6 rows" in done.stderr
    with open(output / "table.csv", encoding="utf-8", newline="") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    assert list(lines) == [*sorted(rows.split(","), key=list(lines).index)]
    assert {name: int(line["steps"]) for name, line in lines.items() if line["steps"] != "2"} == {
        "voxresnet-auto-context": 4,
        "coarse-to-fine": 4,
    }
    assert {name for name, line in lines.items() if line["judged_on_crops"] == "yes"} <= {"coarse-to-fine", "pyramid"}
    assert int(lines["conresnet-ensemble"]["parameters"]) == 3 * int(lines["conresnet"]["parameters"])
    assert "..." not in run_benchmark("compare_systems.py", *options).stderr


def test_seeds_are_summarized_with_differences_paired_by_case_and_seed(run_benchmark, tmp_path):
    given = {"conresnet": [[0.6, 0.8], [0.7, 0.9]], "dynunet": [[0.7, 0.9], [0.8, 1.0]], "pyramid": [[0.5, 0.5]]}
    for row, seeds in given.items():
        for seed, dice in enumerate(seeds):
            folder = tmp_path / f"seed_{seed}" / row / "evaluation"
            folder.mkdir(parents=True)
            write_tables(evaluation(dice), folder)
    table = run_benchmark("over_seeds.py", tmp_path / "seed_0", tmp_path / "seed_1").stdout
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("|")}
    assert "pyramid" not in lines, "a row without all seeds cannot be compared"
    assert "| 0.700, 0.800 | 0.750 |" in lines["conresnet"]
    assert "| 0.800, 0.900 | 0.850 | +0.1000 (+0.1000 to +0.1000) |" in lines["dynunet"]
    assert "2 seeds, 2 held-out cases" in table
