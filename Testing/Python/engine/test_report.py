"""The report about a case, and the files that --review, --statistics and --report add to the results."""

import csv
import json
import re
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import conresnet
from conresnet.cli import main
from conresnet.images.files import write_volume
from conresnet.package import parse_description
from conresnet.results.pictures import Scene, heat, png
from conresnet.results.report import _anonymous, _end
from conresnet.results.review import COLUMNS
from engine.model_cases import description, write_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume

SCRIPT = "<script>alert(1)</script> & Co"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every opened tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text, self.sources = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    document = description(segments=2, regions=True)
    document["output"]["segments"][0]["name"] = SCRIPT
    document["title"] = f"A model {SCRIPT}"
    document["intended_use"] = f"Tests {SCRIPT}"
    return write_model(tmp_path_factory.mktemp("model") / "model", document, scale=3)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    volume = random_volume(grid((12, 16, 14)))
    path = tmp_path_factory.mktemp("Jane Doe") / "jane_doe.nii.gz"
    # Much smaller than the model's window, which gives a warning that names the file.
    write_volume(volume.array[:7], grid((7, 16, 14)), path)
    return path


@pytest.mark.parametrize("attribution", ["", "Made by us", "Made by us."])
def test_license_is_described_in_a_sentence(image, tmp_path, attribution):
    document = description() | {"license": "CC0-1.0", "attribution": attribution}
    model = write_model(tmp_path / "model", document)
    conresnet.segment(image, model, threads=1).save_report(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert ("License. CC0-1.0. Made by us.\n" if attribution else "License. CC0-1.0.\n") in page.text


def test_paths_for_saving_from_python(model, image, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    result = conresnet.segment(image, model, maps=None, threads=1)
    result.save("~/out")
    result.save_report("~/page.html")
    assert (tmp_path / "out" / "report.json").is_file() and (tmp_path / "page.html").is_file()
    # As in a shell, this is a folder name if there is no such user.
    monkeypatch.chdir(tmp_path)
    result.save("~nobody-has-this-name/out")
    assert (tmp_path / "~nobody-has-this-name" / "out" / "report.json").is_file()
    assert refusal("cannot-write", result.save_report, ".")
    assert refusal("cannot-write", result.save_report, tmp_path / "out")


def test_command_writes_requested_files_and_replaces_them(model, image, tmp_path, capsys):
    command = ["segment", str(image), "--model", str(model.path), "--output", str(tmp_path / "out"), "--threads", "1"]
    options = ["--review", "--statistics", "--report", "--maps", "residual"]
    assert main([*command, *options]) == 0
    assert "review.json" in capsys.readouterr().err  # the package has none, which gives a warning
    written = {path.name for path in (tmp_path / "out").iterdir()}
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written == set(report["files"])
    assert written >= {"review.csv", "statistics.csv", "report.html", "residual.nii.gz"}
    assert "rows" not in report["review"] and report["statistics"][0]["segment"] == SCRIPT
    with open(tmp_path / "out" / "review.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and {"slice"} <= {row["kind"] for row in rows} <= {"slice", "spot"}
    page_text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(page_text)
    assert "script" not in page.tags and SCRIPT in page.text
    assert len(page.sources) >= 5 and all(source.startswith("data:image/png;base64,") for source in page.sources)
    readable = re.sub(r"base64,[\w+/=]+", "", page_text).lower()
    for private in ("jane", "doe", image.parent, model.path, tmp_path):
        assert str(private).lower() not in readable
    assert report["warnings"] and "The T1 image" in page.text and "For research only" in page.text
    # A later run without these options removes the files.
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"segmentation.nii.gz", "report.json"}


def test_warnings_about_a_4d_file_do_not_contain_its_name(tmp_path):
    """In a folder whose name is part of a word; the orientation codes in the header are 0."""
    pair = write_model(tmp_path / "pair", description(channels=2))
    array = np.random.default_rng(0).random((14, 16, 12, 2), np.float32)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.set_qform(None, code=0)
    image.set_sform(None, code=0)
    (tmp_path / "im").mkdir()
    image.to_filename(tmp_path / "im" / "DOE_JANE.nii")
    given = [str(tmp_path / "im" / "DOE_JANE.nii"), "--model", str(pair.path), "--output", str(tmp_path / "out")]
    assert main(["segment", *given, "--report", "--threads", "1"]) == 0
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "The image does not store the patient's orientation" in text
    assert "DOE" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("channels", "given", "shown"),
    [
        ({"T1": "im/a.nii"}, "im/a.nii is an image in im.", "The T1 image is an image in im."),
        ({"T1": "x/DOE\tJIM.nii"}, "In x/DOE\\tJIM.nii: x/DOE\tJIM.nii", "In the T1 image: the T1 image"),
        (
            {"T1": "x/J.nii", "T2": "x/J.nii.gz"},
            "x/J.nii.gz, J.nii.",
            "The T2 image, the T1 image.",
        ),
        ({"T1": "p/axial"}, "p/axial is short along the axial axis", "The T1 image is short along the axial axis"),
        ({"T1": "J.nii (T1)", "T2": "J.nii (T2)"}, "J.nii (T2) in J.nii", "The T2 image in the image"),
        ({"T1": "T1"}, "T1 and T1w", "The T1 image and T1w"),
        ({}, "nothing", "nothing"),
    ],
)
def test_messages_in_report_name_images_by_channel(channels, given, shown):
    assert _anonymous(given, channels) == shown


@pytest.mark.parametrize(
    "value, shown", [(0.0, "0"), (0.5, "0.5"), (-3.14159, "-3.1"), (187.4, "187"), (-1234.5, "-1234"), (0.012, "0.012")]
)
def test_ends_of_color_scale_are_plain_numbers(value, shown):
    assert _end(value) == shown


def test_picture_is_a_png_file_made_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png"))), pixels)


def test_other_files_are_neither_refused_nor_replaced(model, image, tmp_path):
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    command = ["segment", str(image), "--model", str(model.path), "--output", str(tmp_path), "--threads", "1"]
    assert main([*command, "--report", "--overwrite"]) == 2
    assert main(command) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "mine"


def test_python_gives_same_review_list_and_statistics(model, image, tmp_path):
    result = conresnet.segment(str(image), model, review=True, statistics=True, threads=1)
    assert [row.rank for row in result.review] == list(range(1, len(result.review) + 1))
    assert result.report["review"]["rows"][0]["segment"] == result.review[0].segment
    assert result.statistics[0]["volume_ml"] == pytest.approx(result.volumes_ml[SCRIPT])
    assert 0 < result.statistics[0]["mean_uncertainty"] < 1 and result.maps == {}
    plain = conresnet.segment(str(image), model, threads=1)
    assert plain.review is None and plain.statistics[0]["mean_uncertainty"] is None
    plain.save_report(tmp_path / "page.html", name="Case <7>")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Segmentation of Case <7>" in page.text and "Places worth checking" not in page.text


def test_pictures_show_each_segment_in_its_color():
    of = grid((10, 30, 20), spacing=(1.0, 1.0, 3.0))
    labels = np.zeros(of.shape, np.uint8)
    labels[3:7, 5:25, 4:10], labels[3:7, 5:25, 10:16] = 10, 20
    document = description()
    for segment, color in zip(document["output"]["segments"], ([255, 0, 0], [0, 0, 255]), strict=True):
        segment["color"] = color
    output = parse_description(document).output
    scene = Scene(random_volume(of), labels, None, output)
    place = scene.place(0)
    assert (scene.labels[place[0]] == 10).any() and scene.mask(0).all()
    picture = scene.slices(place)
    red, blue = ((picture == color).all(axis=-1) for color in ((255, 0, 0), (0, 0, 255)))
    assert red.sum() > 300 and blue.sum() > 300
    # Radiological convention: the patient's right is on the left. Higher i is right.
    axial = np.s_[:, :300]
    assert np.argwhere(blue[axial])[:, 1].mean() < np.argwhere(red[axial])[:, 1].mean()
    shown = scene.surfaces().astype(int)
    assert (shown[..., 0] - shown[..., 2] > 60).sum() > 500 and (shown[..., 2] - shown[..., 0] > 60).sum() > 500
    nothing = Scene(random_volume(of), np.zeros_like(labels), None, output)
    assert nothing.slices(nothing.place(None)).shape == (300, 912, 3)
    assert (nothing.surfaces() == 255).all()
    assert (heat(np.array([0.0, 1.0])) * 255).round().tolist() == [[0, 0, 4], [252, 255, 164]]


def test_surface_of_a_small_segment_in_very_thick_slices_is_drawn():
    of = grid((10, 60, 60), spacing=(0.05, 0.05, 50.0))
    labels = np.zeros(of.shape, np.uint8)
    labels[5, 30, 30] = 10
    scene = Scene(random_volume(of), labels, None, parse_description(description()).output)
    assert (scene.surfaces() < 255).any()
