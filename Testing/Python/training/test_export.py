"""Runs exported as model packages: their files, metrics and model card, and invalid exports."""

import io
import json

import numpy as np
import pytest
from matplotlib.image import imread

import conresnet
from conresnet.cli import main as conresnet_main
from conresnet.errors import UserError
from conresnet.images.files import read_volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.reader import held_out_cases, read_package
from conresnet.request import SegmentOptions
from conresnet.results.review import read_ranking
from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation.runs import measure_runs
from conresnet_training.planning.plan import with_settings
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.runs.packing import pack_runs
from training.commands import message_of, run_command
from training.data_folders import describe, save
from training.predicted_boxes import expert
from training.trained_runs import finished_folds, finished_run, small_plan


def metrics_of(package) -> dict:
    return json.loads(package.read_file("metrics.json"))


def test_package_contains_metrics_model_card_and_thumbnail(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run", fold=2)
    output = tmp_path / "boxes.zip"
    arguments = ("--output", output, "--name", "two-boxes", "--title", "Two boxes")
    assert run_command(monkeypatch, "export", run.folder, *arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "on 2 cases it never saw" in printed.err
    package = read_package(output)
    assert (package.description.name, package.description.title) == ("two-boxes", "Two boxes")
    assert set(package.description.files) == {
        "network.safetensors",
        "LICENSE.txt",
        "metrics.json",
        "MODEL_CARD.md",
        "thumbnail.png",
        "review.json",
    }
    # From the labels of all cases, not only those of the held-out ones.
    labels = [read_volume(path) for path in sorted((data_set / "labelsTr").glob("*.nii.gz"))]
    volumes = [(label.array == 2).sum() * label.grid.voxel_volume / 1000 for label in labels]
    known = package.description.output.segments[1].volume_ml
    assert len(labels) == 6 and known == pytest.approx((min(volumes), max(volumes)), rel=5e-3)
    ranking = read_ranking(package)
    assert ranking.figures["cases"] == 2 and "only 2 held-out cases" in ranking.note
    assert "fold 2 of 3" in ranking.what and f"Review list ({', '.join(ranking.features)})" in printed.err
    metrics = metrics_of(package)
    assert metrics["steps"] == 7 and metrics["checkpoint"] == "last" and metrics["split"].startswith("fold 2 of 3")
    truth = read_volume(data_set / "labelsTr" / "case_5.nii.gz").array
    found = segment(
        load_model(package), [read_volume(data_set / "imagesTr" / "case_5.nii.gz")], SegmentOptions()
    ).labels.array
    dice = 2 * ((found == 2) & (truth == 2)).sum() / ((found == 2).sum() + (truth == 2).sum())
    assert metrics["dice_a_case"]["case_5"]["Far box"] == pytest.approx(dice, abs=1e-4)
    table = np.array([list(row.values()) for row in metrics["dice_a_case"].values()])
    assert metrics["mean_dice"] == pytest.approx(table.mean(), abs=1e-4)
    assert metrics["mean_dice_a_segment"]["Far box"] == pytest.approx(table[:, 1].mean(), abs=1e-4)
    assert metrics["lowest_dice_a_segment"]["Near box"] == pytest.approx(table[:, 0].min(), abs=1e-4)
    pixels = imread(io.BytesIO(package.read_file("thumbnail.png")))
    assert pixels.shape[0] == pixels.shape[1] >= 200 and pixels[..., :3].std() > 0.1
    card = package.read_file("MODEL_CARD.md").decode()
    for part in (
        "# Two boxes",
        "For research only",
        "fold 2 of 3: 2 of 6 cases",
        "| Far box | Dice |",
        "--model two-boxes",
    ):
        assert part in card, part
    assert "| Residual | between axial slices |\n| License |" in card
    assert f"case_5 {dice:.3f}" in card and "optimistic" not in card
    assert "{{" not in card and "{%" not in card and "\n\n\n" not in card
    assert conresnet_main(["models", "show", str(output)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Mean Dice {metrics['mean_dice']:.4g}" in text and "MODEL_CARD.md" in text
    assert f"Far box {metrics['lowest_dice_a_segment']['Far box']:.4g}" in text


def test_cases_added_after_training_do_not_affect_the_package(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    added = {kind: f"{kind}/case_9.nii.gz" for kind in ("imagesTr", "labelsTr")}
    save(np.ones((20, 18, 16), np.uint8), data_set / added["labelsTr"])
    content = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    content["training"].append({"image": added["imagesTr"], "label": added["labelsTr"]})
    describe(data_set, **content)
    assert run_command(monkeypatch, "export", run.folder, "--output", tmp_path / "boxes.zip") == 0
    largest = max((expert(data_set, number) == 1).sum() for number in range(6)) / 1000
    assert read_package(tmp_path / "boxes.zip").description.output.segments[0].volume_ml[1] == pytest.approx(largest)
    label = data_set / "labelsTr" / "case_1.nii.gz"
    label.unlink()
    capsys.readouterr()
    assert run_command(monkeypatch, "export", run.folder, "--output", tmp_path / "other.zip") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Case case_1: ") and str(label) in printed


def test_model_card_of_a_network_without_residuals_mentions_none(data_set, tmp_path, monkeypatch):
    plan = make_plan(read_data_set(data_set), data_set, choices=Choices("voxresnet", base_width=8))[0]
    plan = with_settings(plan, ["training.folds=3", "training.workers=0", "model.inference.window=[16, 16, 16]"])
    run = finished_run(plan, tmp_path / "run")
    assert run_command(monkeypatch, "export", run.folder, "--output", tmp_path / "package") == 0
    card = read_package(tmp_path / "package").read_file("MODEL_CARD.md").decode()
    assert "Residual" not in card and " voxels |\n| License |" in card


def test_model_card_states_that_ct_range_comes_from_all_cases(data_set, tmp_path, monkeypatch):
    steps = "[{step: clip, low: 50, high: 300}, {step: rescale, from: [100, 200], to: [-1, 1]}]"
    plan = with_settings(small_plan(data_set), [f"model.inputs.0.intensity={steps}"])
    run, package = finished_run(plan, tmp_path / "run"), tmp_path / "package"
    assert run_command(monkeypatch, "export", run.folder, "--output", package) == 0
    card = (package / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "The intensity range of MRI was fitted to labeled voxels of all cases, including those held out." in card


def test_segments_swapped_in_training_are_swapped_at_inference(data_set, tmp_path):
    plan = small_plan(data_set)
    assert pack_runs([finished_run(plan, tmp_path / "run")]).description.output.swapped_segments is None
    plan.augmentation.swapped_segments = [("Far box", "Near box")]
    output = pack_runs([finished_run(plan, tmp_path / "sides")]).description.output
    assert output.swapped_segments == (("Far box", "Near box"),) and output.mirrored == [1, 0]


def test_folds_become_an_ensemble_measured_on_held_out_cases(data_set, tmp_path, monkeypatch, capsys):
    plan = small_plan(data_set)
    runs = finished_folds(plan, tmp_path / "folds")
    output = tmp_path / "ensemble"
    assert run_command(monkeypatch, "export", tmp_path / "folds", "--output", output) == 0
    assert "on 6 cases, each by the networks that never saw it" in capsys.readouterr().err
    package = read_package(output)
    assert package.description.system.type == "ensemble" and len(package.description.system.networks) == 3
    metrics = metrics_of(package)
    # Each of its networks was trained on most of them.
    assert held_out_cases(package) == ()
    assert "by those of the package's 3 networks that never saw it" in metrics["what"] and metrics["steps"] == [7, 7, 7]
    (tmp_path / "out").mkdir()
    alone = measure_runs(runs[1:2], tmp_path / "out").evaluation
    for case, rows in alone.cases.items():
        expected = {name: round(row["dice"], 4) for name, row in rows.items()}
        assert metrics["dice_a_case"][case] == expected
    assert "ensemble, 3 networks (conresnet)" in package.read_file("MODEL_CARD.md").decode()
    with pytest.raises(UserError, match="combines 3 networks"):
        conresnet.load_network(output)
    # It works like any other model: the engine's command gives the mean of its networks.
    image = data_set / "imagesTr" / "case_0.nii.gz"
    command = ["segment", str(image), "--model", str(output), "--output", str(tmp_path / "result"), "--threads", "1"]
    assert conresnet_main([*command, "--maps", "probability", "--precision", "fp32"]) == 0
    together = segment(
        load_model(package, "cpu", "fp32"), [read_volume(image)], SegmentOptions(maps=("probability",))
    ).maps["probability"]
    each = []
    for index, run in enumerate(runs):
        single = tmp_path / f"single {index}"
        assert run_command(monkeypatch, "export", run.folder, "--output", single) == 0
        model = load_model(single, "cpu", "fp32")
        each.append(segment(model, [read_volume(image)], SegmentOptions(maps=("probability",))).maps["probability"])
    assert np.abs(together - np.mean(np.float64(each), axis=0)).max() < 2e-3
    assert (tmp_path / "result" / "segmentation.nii.gz").is_file()


def test_metrics_of_best_checkpoint_are_called_optimistic(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    run.checkpoint.unlink()
    output = tmp_path / "best"
    assert run_command(monkeypatch, "export", run.folder, "--output", output) == 2
    assert (
        message_of("checkpoint-not-found", run=run.folder, path="last.ckpt") in capsys.readouterr().err
        and not output.exists()
    )
    assert run_command(monkeypatch, "export", run.folder, "--output", output, "--checkpoint", "best") == 0
    package = read_package(output)
    assert metrics_of(package)["checkpoint"] == "best"
    assert "optimistic" in package.read_file("MODEL_CARD.md").decode()


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_unfinished_run_is_exported_with_a_warning(data_set, tmp_path, monkeypatch, capsys, checkpoint):
    plan = small_plan(data_set)
    for steps, sentences in ((7, []), (9, ["Fold 0 is unfinished: 7 of 9 steps were completed."])):
        plan.training.steps = steps
        run, output = finished_run(plan, tmp_path / f"run {steps}"), tmp_path / f"package {steps}"
        assert run_command(monkeypatch, "export", run.folder, "--output", output, "--checkpoint", checkpoint) == 0
        printed, card = capsys.readouterr().err, (output / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert ("is unfinished" in printed) == ("is unfinished" in card) == bool(sentences)
        assert all(sentence in printed.splitlines() and sentence in card for sentence in sentences)


def test_invalid_arguments_are_refused_before_segmentation(data_set, tmp_path, monkeypatch, capsys):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("conresnet_training.runs.export.measure_runs", None)
    for arguments, message in (
        ((run.folder, "--output", mine), "already exists"),
        (
            (run.folder, "--output", tmp_path / "new.tar"),
            message_of("package-path-ending", file=tmp_path / "new.tar", ending=".tar"),
        ),
        ((run.folder, "--output", tmp_path / "new", "--name", "../up"), "must be a plain name"),
        ((run.folder, "--output", tmp_path / "new", "--name", "hüfte"), "No model package was written"),
        ((run.folder, "--output", mine / "thesis.txt" / "new"), "cannot be written"),
        ((mine, "--output", tmp_path / "new"), message_of("run-not-found", path=mine)),
        ((run.folder, run.folder, "--output", tmp_path / "new"), message_of("run-repeated", path=run.folder)),
    ):
        assert run_command(monkeypatch, "export", *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert (mine / "thesis.txt").read_text(encoding="utf-8") == "mine" and not list(tmp_path.glob("new*"))


def test_run_on_all_cases_is_measured_by_a_run_with_held_out_cases(data_set, tmp_path, monkeypatch, capsys):
    plan = small_plan(data_set)
    held_out, everything = (finished_run(plan, tmp_path / f"run {k}", fold=k, seed=k or 0) for k in (1, None))
    output = tmp_path / "package"
    for command in (("evaluate", everything.folder), ("export", everything.folder, "--output", output)):
        assert run_command(monkeypatch, *command) == 2
        assert message_of("nothing-held-out", run=everything.folder) in capsys.readouterr().err
    arguments = ("export", everything.folder, "--output", output, "--measured-by", held_out.folder)
    assert run_command(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().err
    assert f"on 2 cases that {held_out.folder} never saw" in printed
    assert "The run on all cases is unfinished: 7 of " in printed and "Fold 1 is unfinished: 7 of " in printed
    package = read_package(output)
    metrics = metrics_of(package)
    assert "the package's own weights were trained on all cases" in metrics["what"]
    assert metrics["own_weights"] == "trained on all cases; not measured" and held_out_cases(package) == ()
    (tmp_path / "out").mkdir()
    for case, rows in measure_runs([held_out], tmp_path / "out").evaluation.cases.items():
        assert metrics["dice_a_case"][case] == {name: round(row["dice"], 4) for name, row in rows.items()}
    card = package.read_file("MODEL_CARD.md").decode()
    assert "Fold 1: 7 steps. The package's own weights were not measured. The run on all cases: 7 steps.\n" in card
    assert "colored: the segments of a model that was trained in the same way without this case." in card
    assert "The run on all cases is unfinished" in card
    # The weights are those of the run on all cases, which includes the cases in metrics.json.
    packed = pack_runs([everything])
    assert package.read_file("network.safetensors") == packed.files["network.safetensors"]
    assert run_command(monkeypatch, "fit-review", output, "--data", data_set) == 2
    assert message_of("review-cases-unknown", model=package.description.name) in capsys.readouterr().err
    # Metrics of another network do not apply to this one.
    plan.model.system.networks[0].arguments["base_width"] = 16
    wider = finished_run(plan, tmp_path / "wider")
    assert run_command(monkeypatch, *arguments[:-1], wider.folder, "--overwrite") == 2
    assert "differ in model.system" in capsys.readouterr().err
    # Neither do those of a different training.
    longer = finished_run(with_settings(small_plan(data_set), ["training.steps=9"]), tmp_path / "longer")
    assert run_command(monkeypatch, *arguments[:-1], longer.folder, "--overwrite") == 2
    assert "differ in training.steps" in capsys.readouterr().err
    # Together with a run that held cases out, it can become an ensemble.
    ensemble = ("export", held_out.folder, *arguments[1:], "--overwrite")
    assert run_command(monkeypatch, *ensemble) == 0
    assert metrics_of(read_package(output))["own_weights"].startswith("trained on other cases, which may include these")


def test_all_runs_of_an_ensemble_must_match_the_measured_run(data_set, tmp_path, monkeypatch, capsys):
    plan = small_plan(data_set)
    held_out, everything = (finished_run(plan, tmp_path / f"run {k}", fold=k) for k in (1, None))
    other = finished_run(with_settings(plan, ["training.learning_rate=0.5"]), tmp_path / "other", fold=None, seed=3)
    monkeypatch.setattr("conresnet_training.runs.export.measure_runs", None)
    for runs in ((everything, other), (other, everything)):
        folders = [run.folder for run in runs]
        arguments = ("export", *folders, "--measured-by", held_out.folder, "--output", tmp_path / "package")
        assert run_command(monkeypatch, *arguments) == 2
        assert "differ in training.learning_rate" in capsys.readouterr().err


def test_metrics_of_a_run_on_fewer_cases_get_a_warning(data_set, tmp_path, monkeypatch, capsys):
    plan = small_plan(data_set)
    held_out, everything = (finished_run(plan, tmp_path / f"run {k}", fold=k) for k in (0, None))
    warning = (
        "The measurements may not describe this model: run 0 was trained on 1 case and held out 2, but the package's"
    )
    split = {"training": ["case_1"], "held_out": ["case_0", "case_3"]}
    for count in ("4 cases", "1 case"):
        output = tmp_path / f"package of {count}"
        arguments = ("export", everything.folder, "--measured-by", held_out.folder, "--output", output)
        assert run_command(monkeypatch, *arguments) == 0
        metrics, is_less = metrics_of(read_package(output)), count == "1 case"
        assert f"in the same way on {count} but never saw these cases" in metrics["what"]
        card = read_package(output).read_file("MODEL_CARD.md").decode()
        for text in (metrics.get("remarks", ""), card, capsys.readouterr().err):
            assert (warning in text) == is_less
        (held_out.folder / "split.json").write_text(json.dumps(split), encoding="utf-8")


def test_run_may_be_measured_by_itself(data_set, tmp_path, monkeypatch, capsys):
    run, output = finished_run(small_plan(data_set), tmp_path / "run"), tmp_path / "package"
    arguments = ("export", run.folder, "--measured-by", run.folder, "--output", output)
    assert run_command(monkeypatch, *arguments) == 0
    metrics = metrics_of(read_package(output))
    assert "own_weights" not in metrics and metrics["what"].startswith("Whole cases, segmented by the exported package")
    assert "on 2 cases it never saw" in capsys.readouterr().err


def test_segment_missing_in_all_held_out_cases_is_named(data_set, tmp_path, monkeypatch, capsys):
    for number in (0, 3):
        label = expert(data_set, number)
        save(np.where(label == 2, 0, label), data_set / "labelsTr" / f"case_{number}.nii.gz")
    run, output = finished_run(small_plan(data_set), tmp_path / "run"), tmp_path / "package"
    assert run_command(monkeypatch, "export", run.folder, "--output", output) == 0
    remarks = metrics_of(read_package(output))["remarks"]
    assert "Far box was " in remarks and remarks in capsys.readouterr().err
