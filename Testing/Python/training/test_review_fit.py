"""Fitting of the review list to held-out cases: what it learns, how it is measured, and invalid input."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from conresnet.images import Grid
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.reader import read_package
from conresnet.package.store import write_package
from conresnet.results.review import RANKING_FILE, read_ranking
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import read_case
from conresnet_training.evaluation import review_fit
from conresnet_training.evaluation.review_fit import ReviewSamples, Sample, describe_ranking
from conresnet_training.evaluation.runs import fit_review
from conresnet_training.runs.export import export_runs
from conresnet_training.runs.packing import pack_runs
from training.commands import message_of, refused, run_command
from training.trained_runs import finished_run, small_plan


def made_up(cases: int, what_matters: str, seed: int = 0) -> ReviewSamples:
    """Slices whose errors depend on one feature, plus noise."""
    random = np.random.default_rng(seed)
    found = ReviewSamples([f"case {number}" for number in range(cases)])
    for case in range(cases):
        for _ in range(40):
            values = {"log_area": random.uniform(2, 5), "log_entropy": random.uniform(1, 3), "log_change": 0.0}
            values |= {"overlap": random.uniform(0, 1), "log_disagreement": random.uniform(0, 1)}
            wrong = random.poisson(np.exp(1 + values[what_matters]))
            found.samples += [
                Sample(case, segment, values, float(wrong), float(np.clip(1 - wrong / 40, 0, 1))) for segment in (0, 1)
            ]
    return found


def test_regressions_find_the_relevant_feature():
    ranking = made_up(12, "log_entropy").fit("made up", ["Part"])
    assert ranking.features == ("log_area", "log_entropy")
    assert ranking.whole.wrong_weights == pytest.approx((0, 1), abs=0.05)
    assert ranking.whole.wrong_intercept == pytest.approx(1, abs=0.2)
    figures = ranking.figures
    assert figures["auroc"] > 0.9 > 0.65 > figures["auroc_area"] and figures["spearman"] > 0.9 and ranking.note == ""
    assert figures["slices"] == 480 and figures["segments"]["Part"]["slices"] == 480
    assert figures["wrong_in_top_tenth"] <= figures["wrong_in_top_tenth_at_best"] < 1


def test_no_exact_p_value_is_computed_for_few_slices(monkeypatch):
    methods = []

    def recorded(*scores, method="auto"):
        methods.append(method)
        return mannwhitneyu(*scores, method=method)

    monkeypatch.setattr("scipy.stats.mannwhitneyu", recorded)
    assert made_up(2, "log_entropy").fit("made up", ["Part"]).figures["auroc"] > 0.9
    assert set(methods) == {"asymptotic"}


def test_neighboring_slices_are_used_if_they_help():
    assert made_up(12, "overlap").fit("made up", ["Part"]).features[2:] == ("log_change", "overlap")
    assert made_up(12, "log_disagreement").fit("made up", ["Part"]).features[-1] == "log_disagreement"


def test_correlation_of_zero_counts_when_features_are_chosen(monkeypatch):
    correlations = iter([0.7, 0.0, 0.0] * 1000)
    monkeypatch.setattr(review_fit, "_auroc", lambda *_: 0.72)
    monkeypatch.setattr(review_fit, "_spearman", lambda *_: next(correlations))
    assert made_up(6, "log_entropy").fit("made up", ["Part"]).features == ("log_area", "log_entropy")


def test_ranking_no_better_than_area_gets_a_note():
    samples = made_up(12, "log_area")
    samples.samples = [replace(item, dice=1 - item.dice) for item in samples.samples]
    ranking = samples.fit("made up", ["Part"])
    assert "no better than one by area" in ranking.note and ranking.note in describe_ranking(ranking)


def test_case_is_measured_slice_by_slice(data_set, tmp_path):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    export_runs([run], tmp_path / "package")
    model = load_model(tmp_path / "package", "cpu", "fp32")
    data = read_data_set(data_set)
    images, truth = read_case(data.cases[0], data.channels)
    samples = ReviewSamples()
    huge = Grid((2000, 1000, 1000), np.eye(4))
    assert samples.options(model, images[0].grid).maps and not samples.options(model, huge).maps
    result = segment(model, images, samples.options(model, images[0].grid))
    samples.add("case", model, result, [(1,), (2,)], truth)
    labels, reference = result.labels.array, truth.array
    found = [item for item in samples.samples if item.segment == 0]
    occupied = np.flatnonzero(labels.any(axis=(1, 2)))
    assert len(found) == len(occupied) > 0
    area = result.labels.grid.voxel_volume / result.labels.grid.spacing[2]
    wrong = [np.count_nonzero(labels[place] != reference[place]) * area for place in occupied]
    assert sorted(item.wrong_mm2 for item in found) == pytest.approx(sorted(wrong))
    place = occupied[0]
    right = np.count_nonzero((labels[place] == reference[place]) & (labels[place] > 0))
    both = np.count_nonzero(labels[place]) + np.count_nonzero(reference[place])
    assert any(item.dice == pytest.approx(2 * right / both) for item in found)


def test_fit_review_stores_the_ranking_of_export_in_a_package(data_set, tmp_path, monkeypatch, capsys):
    run, output = finished_run(small_plan(data_set), tmp_path / "run", fold=2), tmp_path / "package"
    assert run_command(monkeypatch, "export", run.folder, "--output", output) == 0
    before = read_package(output)
    exported, weights = read_ranking(before), before.description.files["network.safetensors"]
    assert run_command(monkeypatch, "fit-review", output, "--data", data_set) == 0
    package = read_package(output)
    fitted = read_ranking(package)
    assert replace(fitted, what="") == replace(exported, what="")
    assert package.description.files["network.safetensors"] == weights
    assert RANKING_FILE in capsys.readouterr().err
    assert run_command(monkeypatch, "fit-review", output, "--data", data_set, "--cases", "case_0,case_9") == 2
    data = read_data_set(data_set).name
    assert message_of("review-case-missing", case="case_9", data=data) in capsys.readouterr().err
    assert read_ranking(read_package(output)) == fitted


def test_cases_possibly_used_in_training_are_not_called_held_out(data_set, tmp_path, monkeypatch, capsys):
    run, output = finished_run(small_plan(data_set), tmp_path / "run", fold=2), tmp_path / "package"
    assert run_command(monkeypatch, "export", run.folder, "--output", output) == 0
    for cases, count, are_held_out in (("case_2,case_2", "1 case", True), ("case_0,case_2", "2 cases", False)):
        capsys.readouterr()
        assert run_command(monkeypatch, "fit-review", output, "--data", data_set, "--cases", cases) == 0
        ranking, errors = read_ranking(read_package(output)), capsys.readouterr().err
        origin = "that were held out of training" if are_held_out else "not known to be held out of training"
        assert ranking.what == f"Fitted on {count} of Boxes {origin}, segmented by the package"
        assert ("not known to be held out" in ranking.note) == ("not known to be held out" in errors) != are_held_out


def test_user_files_in_a_package_are_kept(data_set, tmp_path, monkeypatch, capsys):
    run, output = finished_run(small_plan(data_set), tmp_path / "run"), tmp_path / "package"
    assert run_command(monkeypatch, "export", run.folder, "--output", output) == 0
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("conresnet_training.evaluation.runs.fit_review", None)
    assert run_command(monkeypatch, "fit-review", output, "--data", data_set) == 2
    assert message_of("package-other-files", file=output, names="notes.txt") in capsys.readouterr().err
    assert (output / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_cases_without_images_are_refused(data_folder, data_set, tmp_path):
    run = finished_run(small_plan(data_set), tmp_path / "run")
    package = write_package(pack_runs([run]).description, pack_runs([run]).files, tmp_path / "package")
    heads = read_data_set(data_folder / "SynthSeg_4mm")
    with refused("review-case-without-images"):
        fit_review(package, heads, [heads.cases[0].name])
