"""Evaluation of predictions against a data set: matching of files, regions, empty segments, and invalid input."""

import csv
import io
import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from conresnet.errors import UserError
from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import read_evaluation
from conresnet_training.evaluation.metrics import (
    OVERALL,
    SegmentValues,
    mean_interval,
    values_of_data_set,
    values_of_model,
)
from conresnet_training.evaluation.report import draw_case
from conresnet_training.evaluation.runs import evaluate_predictions, measure_predictions
from training.commands import message_of, refused, run_command
from training.data_folders import save, turn_into_nnunet
from training.predicted_boxes import expert, measure

SEGMENTS = ("Near box", "Far box")


def evaluate(folder, data_set, tmp_path):
    """Evaluate with all output files."""
    return evaluate_predictions(folder, read_data_set(data_set), tmp_path / "evaluation")


def test_metrics_of_shifted_boxes_are_correct(predictions, data_set, tmp_path):
    evaluation = measure(predictions, data_set)
    assert list(evaluation.cases) == [f"case_{number}" for number in range(6)]
    row = evaluation.cases["case_3"]["Near box"]
    # A box 5 voxels deep, shifted by one voxel of 1 mm.
    assert row["dice"] == pytest.approx(0.8) and row["hd"] == 1 and row["surface_dice"] == 1
    assert row["volume_ml"] == pytest.approx(5 * 6 * 5 / 1000) and row["volume_difference_ml"] == 0
    assert measure(predictions, data_set, 0.5).mean("surface_dice") < 1
    assert evaluation.mean("dice") == pytest.approx(0.8)


def test_files_agree_and_page_is_complete(predictions, data_set, tmp_path):
    evaluation = evaluate(predictions, data_set, tmp_path)
    output = tmp_path / "evaluation"
    assert sorted(path.name for path in output.iterdir()) == ["evaluation.csv", "evaluation.json", "report.html"]
    content = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert content["cases"] == evaluation.cases and read_evaluation(output) == evaluation
    with (output / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["segment"]) for row in rows[:3]] == [
        ("case_0", "Near box"),
        ("case_0", "Far box"),
        ("case_1", "Near box"),
    ]
    assert float(rows[2]["dice"]) == evaluation.cases["case_1"]["Near box"]["dice"]
    page = (output / "report.html").read_text(encoding="utf-8")
    # Five metrics, Dice by volume, one agreement plot per segment; six pictures.
    assert page.count("data:image/svg+xml;base64,") == 8 and page.count("data:image/png;base64,") == 6
    assert 'src="http' not in page and "href=" not in page and "<script" not in page
    for name in (*SEGMENTS, *evaluation.cases, "95% interval"):
        assert name in page


def test_pictures_show_both_outlines_at_largest_error(data_folder):
    """The prediction is colored, the reference white; a false positive moves the slices to its position."""
    case = read_data_set(data_folder / "MSD_Task04_Hippocampus").cases[0]
    image, truth = read_volume(case.images[0]), read_volume(case.label).array
    values, colors = SegmentValues((1,), (1,)), {"Anterior": (0, 200, 40)}

    def counts(found) -> tuple[int, int]:
        pixels = imread(io.BytesIO(draw_case(image, found, truth, {"Anterior": values}, colors)))[..., :3]
        colored = np.abs(pixels - np.array(colors["Anterior"]) / 255).max(axis=2) < 0.05
        return int(colored.sum()), pixels.shape[1]

    found, width = counts(truth)
    assert found > 250 and width == 990
    assert counts(np.zeros_like(truth))[0] == 0
    astray = np.zeros_like(truth)
    astray[2:10, 2:10, 2:10] = 1
    assert counts(astray)[0] > 100


def test_pictures_follow_radiological_convention(data_folder):
    """A bright octant on the left, in front and on top appears on the right and at the top, in any orientation."""
    affine = np.diag([1.0, 1, 1, 1])
    for flip in (1, -1):
        affine[0, 0] = flip
        array, truth = np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8)
        # In array order (superior, anterior, and right, or left where the axis is flipped).
        array[10:, 10:, (slice(0, 10) if flip == 1 else slice(10, 20))] = 1
        truth[9:11, 9:11, 9:11] = 1
        image = Volume(array, Grid(array.shape, affine), "octant")
        values, found = {"A": SegmentValues((1,), (1,))}, np.zeros_like(truth)
        pixels = imread(io.BytesIO(draw_case(image, found, truth, values, {"A": (0, 0, 255)}, 1)))[..., 0]
        half = pixels.shape[0] // 2
        quarters = [part.mean() for rows in (pixels[:half], pixels[half:]) for part in np.array_split(rows, 2, axis=1)]
        # Axial: anterior at the top, the patient's left on the right.
        assert np.argmax(quarters) == 1


def test_predictions_in_any_format_are_found_and_unmatched_files_named(predictions, data_set, tmp_path):
    image = sitk.ReadImage(str(predictions / "case_1.nii.gz"))
    sitk.WriteImage(image, str(predictions / "case_1.nrrd"))
    sitk.WriteImage(image, str(predictions / "case_2.mha"))
    (predictions / "case_3").mkdir()
    shutil.move(predictions / "case_3.nii.gz", predictions / "case_3" / "segmentation.nii.gz")
    for number in (1, 2, 4):
        (predictions / f"case_{number}.nii.gz").unlink()
    evaluation = measure(predictions, data_set)
    assert list(evaluation.cases) == ["case_0", "case_1", "case_2", "case_3", "case_5"]
    assert evaluation.missing == ("case_4",)


def test_empty_segments_are_counted_and_excluded_from_mean_distances(predictions, data_set, tmp_path):
    nothing = np.zeros((20, 18, 16), np.uint8)
    save(nothing, predictions / "case_0.nii.gz")
    for number, path in ((1, data_set / "labelsTr" / "case_1.nii.gz"), (2, data_set / "labelsTr" / "case_2.nii.gz")):
        save(np.where(expert(data_set, number) == 2, 0, expert(data_set, number)), path)
    save(expert(data_set, 2), predictions / "case_2.nii.gz")
    evaluation = evaluate(predictions, data_set, tmp_path)
    summary = evaluation.summary
    assert summary["empty"]["Far box"] == {"missed": 1, "invented": 1, "absent": 1}
    assert summary["empty"]["Near box"] == {"missed": 1, "invented": 0, "absent": 0}
    assert evaluation.cases["case_2"]["Far box"]["dice"] == 1 and evaluation.cases["case_1"]["Far box"]["dice"] == 0
    assert summary["segments"]["Far box"]["hd"]["cases"] == 3 and summary["segments"]["Far box"]["hd"]["mean"] == 1
    assert summary["segments"]["Far box"]["dice"]["cases"] == 6
    # The case without any distance is not in any mean over segments, either.
    assert summary[OVERALL]["hd"]["cases"] == 5
    assert read_evaluation(tmp_path / "evaluation") == evaluation
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert (
        "Far box was missed in 1 case, invented in 1 case, correctly absent in 1 case, which counts as a Dice of 1"
        in page
    )


def test_page_is_written_for_empty_predictions_with_escaped_names(predictions, data_set, tmp_path):
    description = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    description["labels"]["1"] = "<b>Near</b> & far"
    (data_set / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    for number in range(6):
        save(np.zeros((20, 18, 16), np.uint8), predictions / f"case_{number}.nii.gz")
    evaluation = evaluate(predictions, data_set, tmp_path)
    assert evaluation.mean("dice") == 0 and evaluation.mean("hd") is None
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "missed in 6 cases" in page
    assert "<b>Near" not in page and "&lt;b&gt;Near&lt;/b&gt; &amp; far" in page


def test_regions_combine_label_values_and_are_nested(data_set, predictions):
    """In a label map, an outer region includes the regions inside it."""
    targets = {"Whole": [1, 2, 4], "Core": [1, 4], "Bright": [4]}

    class Segment:
        def __init__(self, name, label):
            self.name, self.label = name, label

    painted = [Segment("Whole", 10), Segment("Core", 20), Segment("Bright", 30)]
    values = values_of_model(painted, targets)
    found = {name: item.found for name, item in values.items()}
    assert found == {"Whole": (10, 20, 30), "Core": (20, 30), "Bright": (30,)}
    assert values["Core"].truth == (1, 4)
    turn_into_nnunet(data_set, {"Both": [1, 2], "Far": [2]}, [1, 2])
    regions = read_data_set(data_set)
    assert set(values_of_data_set(regions)["Both"].found) == {1, 2}
    save(np.where(expert(data_set, 0) == 2, 1, expert(data_set, 0)), predictions / "case_0.nii.gz")
    figures = measure_predictions(predictions, regions).evaluation.cases["case_0"]
    assert figures["Both"]["dice"] == 1 and figures["Far"]["dice"] == 0


def test_segment_with_several_values_is_measured_by_all_of_them(data_folder, tmp_path):
    """White matter has the values 2 and 25; the surroundings of the head have values above 255."""
    heads = data_folder / "SynthSeg_4mm"
    data_set = read_data_set(heads)
    case, name = data_set.cases[0], "Left cerebral white matter"
    reference = nibabel.load(case.label)
    array = np.asarray(reference.dataobj)
    own = data_set.values_of_labels[name]
    assert array.max() > 255 and all((array == value).any() for value in own[:1])
    array = np.where(np.arange(array.size).reshape(array.shape) % 2 * (array == own[0]), own[1], array)
    description = json.loads((heads / "label_maps.json").read_text(encoding="utf-8"))
    folder = tmp_path / "heads"
    (folder / "label_maps").mkdir(parents=True)
    (folder / "label_maps.json").write_text(json.dumps(description), encoding="utf-8")

    def dice_of(found) -> float:
        nibabel.save(nibabel.Nifti1Image(found.astype(np.int16), reference.affine), tmp_path / "found" / "head.nii.gz")
        return measure(tmp_path / "found", folder).cases["head"][name]["dice"]

    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), reference.affine), folder / "label_maps" / "head.nii.gz")
    (tmp_path / "found").mkdir()
    joined = np.where(np.isin(array, own), own[0], array)
    # As written by a model, and as another tool that keeps the data set's values may write it.
    assert dice_of(np.where(joined > 255, 0, joined)) == 1 and dice_of(array) == 1
    assert dice_of(np.where(array == own[1], 0, array)) == pytest.approx(2 / 3, abs=0.01)


def test_invalid_arguments_are_refused(predictions, data_set, tmp_path, monkeypatch, capsys):
    stray = expert(data_set, 4)
    stray[0, 0, 0] = 7
    save(stray, tmp_path / "stray" / "case_4.nii.gz")
    moved = np.eye(4)
    moved[0, 3] = 3
    save(expert(data_set, 4), tmp_path / "moved" / "case_4.nii.gz", moved)
    half = nibabel.Nifti1Image(expert(data_set, 4) * np.float32(0.5), np.eye(4))
    (tmp_path / "half").mkdir()
    nibabel.save(half, tmp_path / "half" / "case_4.nii.gz")
    (tmp_path / "other").mkdir()
    for arguments, message in (
        (
            (tmp_path / "stray", data_set),
            message_of("unexpected-labels", path=tmp_path / "stray" / "case_4.nii.gz", found="7 (1)", known="1, 2"),
        ),
        ((tmp_path / "moved", data_set), "is not on the grid of"),
        ((tmp_path / "half", data_set), "not whole numbers"),
        (
            (tmp_path / "other", data_set),
            message_of("predictions-not-found", path=tmp_path / "other", data="Boxes", case="case_0"),
        ),
        ((predictions, tmp_path / "other"), message_of("data-set-not-found", path=tmp_path / "other")),
        ((predictions,), "name the data set too"),
        ((tmp_path / "nowhere", data_set), "does not exist"),
    ):
        assert run_command(monkeypatch, "evaluate", *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error


@pytest.mark.usefixtures("empty_pictures")
def test_unmeasurable_cases_are_listed_and_others_measured(predictions, data_set, tmp_path, monkeypatch, capsys):
    label = np.asarray(nibabel.load(predictions / "case_1.nii.gz").dataobj)
    save(label[:-1], predictions / "case_1.nii.gz")
    (predictions / "case_4.nii.gz").write_bytes(b"")
    assert run_command(monkeypatch, "evaluate", predictions, data_set, "--output", tmp_path / "out") == 2
    evaluation = read_evaluation(tmp_path / "out")
    assert list(evaluation.cases) == ["case_0", "case_2", "case_3", "case_5"]
    errors = capsys.readouterr().err
    assert list(evaluation.failed) == ["case_1", "case_4"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for case, message in evaluation.failed.items():
        assert f"{case} could not be measured: {message}" in errors
        assert f"{case} could not be measured:" in page


def test_case_with_two_predictions_is_not_measured(predictions, data_set, tmp_path, monkeypatch, capsys):
    """One of them may be a leftover; without this check, the order of extensions would decide."""
    save(expert(data_set, 1), predictions / "case_1.nrrd")
    save(expert(data_set, 2), predictions / "case_2" / "segmentation.nii.gz")
    assert run_command(monkeypatch, "evaluate", predictions, data_set, "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    for case, other in (("case_1", "case_1.nrrd"), ("case_2", "case_2/segmentation.nii.gz")):
        paths = {"first": predictions / f"{case}.nii.gz", "second": predictions / other}
        assert message_of("prediction-repeated", case=case, **paths) in errors
    assert list(read_evaluation(tmp_path / "out").cases) == ["case_0", "case_3", "case_4", "case_5"]


def test_names_are_escaped_in_spreadsheets_and_plots(data_set, predictions, tmp_path):
    content = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    for part in ("imagesTr", "labelsTr"):
        (data_set / part / "case_0.nii.gz").rename(data_set / part / "=1+2.nii.gz")
    (predictions / "case_0.nii.gz").rename(predictions / "=1+2.nii.gz")
    content["training"][0] = {"image": "imagesTr/=1+2.nii.gz", "label": "labelsTr/=1+2.nii.gz"}
    content["labels"] = {"0": "background", "1": "$\\frac$", "2": "@Far"}
    (data_set / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    evaluation = evaluate(predictions, data_set, tmp_path)
    assert "=1+2" in evaluation.cases and evaluation.segments == ("$\\frac$", "@Far")
    with (tmp_path / "evaluation" / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        names = {cell for row in csv.reader(file) for cell in row[:2]}
    assert {"'=1+2", "'@Far"} < names


@pytest.mark.usefixtures("empty_pictures")
def test_command_prints_table_and_writes_next_to_predictions(predictions, data_set, tmp_path, monkeypatch, capsys):
    (predictions / "case_5.nii.gz").unlink()
    assert run_command(monkeypatch, "evaluate", predictions, data_set) == 0
    output = tmp_path / "predictions_evaluation"
    printed = capsys.readouterr()
    assert "Near box          Dice" in printed.out and "0.800 to 0.800" in printed.out
    assert "Not counted, because they have no label map: case_5." in printed.out
    assert printed.err.strip() == f"Measured 5 cases of Boxes: mean Dice 0.800. See {output / 'report.html'}."
    assert (output / "evaluation.json").is_file()
    (output / "evaluation.json").unlink()
    monkeypatch.chdir(predictions)
    assert run_command(monkeypatch, "evaluate", ".", data_set) == 0
    assert (output / "evaluation.json").is_file()


@pytest.mark.usefixtures("empty_pictures")
def test_nothing_is_written_into_the_data_set_unless_requested(data_set, tmp_path, monkeypatch, capsys):
    before = sorted(data_set.rglob("*"))
    arguments = ("evaluate", data_set / "labelsTr", data_set)
    monkeypatch.chdir(data_set / "imagesTr")
    assert run_command(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.strip() == message_of("output-in-data", path="labelsTr_evaluation")
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, *arguments) == 0
    assert sorted(data_set.rglob("*")) == before and (tmp_path / "labelsTr_evaluation" / "report.html").is_file()
    assert run_command(monkeypatch, *arguments, "--output", data_set / "mine") == 0
    assert (data_set / "mine" / "report.html").is_file()


def test_unmeasurable_predictions_leave_no_folder(data_set, tmp_path, monkeypatch):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    assert run_command(monkeypatch, "evaluate", predictions, data_set) == 2
    save(np.zeros((2, 2, 2), np.uint8), predictions / "case_0.nii.gz")
    assert run_command(monkeypatch, "evaluate", predictions, data_set) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [data_set.name, "predictions"]


def test_confidence_interval_of_the_mean_requires_enough_cases():
    random = np.random.default_rng(1)
    values = random.normal(0.8, 0.1, 400)
    low, high = mean_interval(values)
    # The mean plus or minus 1.96 times its standard error.
    assert (low, high) == pytest.approx((values.mean() - 0.0098, values.mean() + 0.0098), abs=1.5e-3)
    assert mean_interval(values) == [low, high]
    assert mean_interval(values[:4]) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "evaluation-not-found"), ("{", "evaluation-invalid"), ('{"data": 1}', "evaluation-invalid")],
)
def test_file_that_is_not_an_evaluation_is_refused(tmp_path, text, code):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with refused(code, path=str(path)):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("cases", "case_3", "Far box", "dice"), "high"),
        (("cases", "case_3", "Far box", "dice"), None),
        (("cases", "case_3", "Far box", "dice"), float("nan")),
        (("cases", "case_3", "Far box", "dice"), 10**400),
        (("cases", "case_3", "Far box", "dice"), True),
        (("cases", "case_3", "Far box", "surface_dice"), 1.5),
        (("cases", "case_3", "Far box", "hd"), -1),
        (("cases", "case_3", "Far box", "volume_difference_ml"), None),
        (("cases", "case_3", "Far box"), [1]),
        (("cases", "case_3"), {}),
        (("cases",), {}),
        (("cases",), {"case_3": {}}),
        (("made_by",), ["x"]),
        (("made_by",), [{"unfinished": "1 of 2 steps"}]),
        (("made_by",), [{"fold": "x"}]),
        (("surface_tolerance_mm",), float("inf")),
        (("missing",), [1]),
        (("data",), 5),
        (("failed",), {"case_3": None}),
    ],
)
def test_damaged_evaluation_is_refused(predictions, data_set, tmp_path, place, value):
    content = measure(predictions, data_set).to_dict()
    *steps, last = place
    node = content
    for step in steps:
        node = node[step]
    node[last] = value
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_evaluation(path)
    assert raised.value.code in ("evaluation-invalid", "evaluation-segments-differ")


@pytest.mark.parametrize("tolerance", ["nan", "inf"])
def test_invalid_tolerance_is_refused_before_evaluation(
    predictions, data_set, tmp_path, monkeypatch, capsys, tolerance
):
    arguments = ("evaluate", predictions, data_set, "--surface-tolerance", tolerance)
    assert run_command(monkeypatch, *arguments) == 2
    assert f"{tolerance} is not a finite number" in capsys.readouterr().err
    assert not (tmp_path / "predictions_evaluation").exists()


def test_geometry_of_a_real_case_is_respected(data_folder, tmp_path):
    """A real case: the expert's label map is perfect, and a shift of one millimeter is measured as such."""
    data_set = read_data_set(data_folder / "MSD_Task04_Hippocampus")
    predictions = tmp_path / "predictions"
    for case in data_set.cases:
        volume = read_volume(case.label)
        save(np.roll(volume.array, 1, axis=1).T, predictions / f"{case.name}.nii.gz", volume.grid.affine)
    evaluation = measure_predictions(predictions, data_set).evaluation
    for rows in evaluation.cases.values():
        for row in rows.values():
            assert row["hd"] == pytest.approx(1) and 0.7 < row["dice"] < 0.95
