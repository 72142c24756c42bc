"""``check``: its messages for defective data sets of every kind, and its page about the cases."""

import json
import re
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from conresnet.images.files import read_image
from peak_memory import REASON
from training.commands import run_command
from training.data_folders import (
    MANY_VOXELS,
    SHAPE,
    brats,
    decathlon,
    image,
    label,
    many_cases,
    nnunet,
    peak_memory,
    save,
)


class Checked:
    """Output of ``check`` for a folder."""

    def __init__(self, status: int, output: str, errors: str, folder):
        self.status, self.lines, self.closing, self.folder = status, output.splitlines(), errors.strip(), folder
        self.page = (folder / "check.html").read_text(encoding="utf-8")
        self.content = json.loads((folder / "check.json").read_text(encoding="utf-8"))
        self.codes = {
            case["name"]: [(finding["level"], finding["code"]) for finding in case["findings"]]
            for case in self.content["cases"]
            if case["findings"]
        }

    def line(self, case: str) -> str:
        (found,) = [line for line in self.lines if line.startswith(f"{case}: ")]
        return found


@pytest.fixture
def check_and_draw(monkeypatch, tmp_path, capsys):
    """Check a folder with the command, from a separate working directory."""

    def run(folder, *options):
        place = tmp_path / "here"
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        status = run_command(monkeypatch, "check", folder, *options)
        captured = capsys.readouterr()
        output = place / (options[1] if options else f"{folder.name}_check")
        return Checked(status, captured.out, captured.err, output)

    return run


@pytest.fixture
def check(check_and_draw, empty_pictures):
    """The same without pictures, for tests of the findings."""
    return check_and_draw


def test_sound_data_set_has_no_findings(check_and_draw, data_folder):
    checked = check_and_draw(data_folder / "MSD_Task04_Hippocampus")
    assert checked.status == 0 and checked.lines == ["3 of 3 cases are fine."]
    assert "\n" not in checked.closing and str(checked.folder.name) in checked.closing
    assert checked.content["layout"] == "decathlon" and checked.content["labels"] == {"1": "Anterior", "2": "Posterior"}
    case = checked.content["cases"][0]
    header = nibabel.load(data_folder / "MSD_Task04_Hippocampus" / "labelsTr" / "hippocampus_004.nii.gz")
    assert case["name"] == "hippocampus_004" and case["size"] == list(header.shape) and case["spacing"] == [1, 1, 1]
    counts = np.bincount(np.asarray(header.dataobj).ravel().astype(int))
    assert case["label_ml"] == {"Anterior": counts[1] / 1000, "Posterior": counts[2] / 1000}
    # The page contains everything: sizes, intensities, volumes and a slice of each case.
    assert checked.page.count("data:image/png;base64,") == 3 + 3
    assert not re.search(r"""(src|href)=["'](?!data:)""", checked.page)


@pytest.mark.parametrize("make", [decathlon, nnunet, brats])
def test_every_layout_is_checked(check_and_draw, tmp_path, make):
    checked = check_and_draw(make(tmp_path / "set"))
    assert checked.status == 0 and checked.lines == ["3 of 3 cases are fine."]


def affine(**changes) -> np.ndarray:
    """1 mm along the patient's axes, except for the given changes."""
    matrix = np.eye(4)
    for name, value in changes.items():
        matrix[{"origin": (0, 3), "spacing": (2, 2), "flip": (0, 0)}[name]] = value
    return matrix


TURNED = np.eye(4)
TURNED[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
SWAPPED = np.eye(4)[[1, 0, 2, 3]]
SECOND = label(number=1)


@pytest.mark.parametrize(
    ("array", "matrix", "message"),
    [
        pytest.param(label()[:-1], None, "19 x 18 x 16 instead of 20 x 18 x 16 voxels", id="size"),
        pytest.param(SECOND, affine(spacing=2.5), "spacing 1 x 1 x 2.5 instead of 1 x 1 x 1 mm", id="spacing"),
        pytest.param(SECOND, affine(origin=12), "first voxel 12 mm away, voxels up to 12 mm apart", id="origin"),
        pytest.param(SECOND, TURNED, "axes turned by 5.73 degrees", id="direction"),
        pytest.param(SECOND, affine(flip=-1, origin=19), "axes turned by 180 degrees", id="flipped"),
        pytest.param(label().swapaxes(0, 1), SWAPPED, "18 x 20 x 16 instead of 20 x 18 x 16 voxels", id="swapped"),
    ],
)
def test_label_on_another_grid_is_an_error(check, tmp_path, array, matrix, message):
    """Size, spacing, origin or direction differ."""
    folder = decathlon(tmp_path / "set")
    save(np.ascontiguousarray(array), folder / "labelsTr" / "case_1.nii.gz", matrix)
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_1": [("error", "label-grid-differs")]}
    assert message in checked.line("case_1") and checked.lines[-1] == "2 of 3 cases are fine."
    assert "1 with errors" in checked.closing


def test_grids_that_differ_only_by_rounding_are_equal(check, tmp_path):
    folder = decathlon(tmp_path / "set")
    save(label(number=1), folder / "labelsTr" / "case_1.nii.gz", affine(origin=1e-4))
    assert check(folder).status == 0


def test_label_map_that_is_slightly_off_its_image_is_a_warning(check, tmp_path):
    folder = decathlon(tmp_path / "set")
    matrix = np.eye(4)
    matrix[:3, 3] = 0.035
    save(label(number=1), folder / "labelsTr" / "case_1.nii.gz", matrix)
    checked = check(folder)
    assert checked.status == 0 and checked.codes == {"case_1": [("warning", "label-grid-shifted")]}
    assert "0.0606 mm" in checked.line("case_1")


def test_channel_on_another_grid_is_a_warning(check, tmp_path):
    folder = brats(tmp_path / "set")
    save(image(1), folder / "BraTS_2" / "BraTS_2_t2.nii.gz", affine(origin=3))
    checked = check(folder)
    assert checked.status == 0 and checked.codes == {"BraTS_2": [("warning", "channel-grid-differs")]}
    assert "Channel T2 is not on the grid of the first channel (first voxel 3 mm away" in checked.line("BraTS_2")


def test_channel_that_covers_only_a_part_gets_a_warning_and_one_elsewhere_an_error(check, tmp_path):
    """Training refuses the latter, too."""
    folder = brats(tmp_path / "set")
    for channel, origin in (("t1ce", 3), ("t2", -0.4), ("flair", 30)):
        save(image(1), folder / "BraTS_2" / f"BraTS_2_{channel}.nii.gz", affine(origin=origin))
    checked = check(folder)
    line = checked.line("BraTS_2")
    assert checked.status == 2 and ("error", "channels-apart") in checked.codes["BraTS_2"]
    assert "will be resampled, but covers only 85% of it" in line and "and does not overlap it" in line
    assert line.count("covers only") == 1 and "Channel T2" in line


def test_coverage_of_a_large_image_is_measured_in_all_voxels(check, tmp_path):
    """A thin slab must be found, and a row at the edge of each axis must count only as a row."""
    folder, large = brats(tmp_path / "set"), (128, 128, 128)
    for channel in ("t1", "t1ce", "t2", "flair"):
        save(image(1, large), folder / "BraTS_2" / f"BraTS_2_{channel}.nii.gz")
    save(label((1, 2, 4), large), folder / "BraTS_2" / "BraTS_2_seg.nii.gz")
    slab, shifted = affine(origin=62), np.eye(4)
    shifted[:3, 3] = 0.6
    save(image(1, large)[62:64], folder / "BraTS_2" / "BraTS_2_flair.nii.gz", slab)
    save(image(2, large), folder / "BraTS_2" / "BraTS_2_t2.nii.gz", shifted)
    checked = check(folder)
    assert checked.status == 0 and checked.codes == {"BraTS_2": 2 * [("warning", "channel-grid-differs")]}
    line = checked.line("BraTS_2")
    assert line.count("covers only") == 1 and "covers only 2% of it" in line


def test_ct_with_other_scale_than_other_cases_gets_a_warning(check, tmp_path):
    """Some tools add 1024. This can be recognized only if other cases have Hounsfield units."""
    folder = nnunet(tmp_path / "set", cases=3)
    for number in range(3):
        hounsfield = np.where(image(number) == 0, -1000, image(number) - 60).astype(np.int16)
        save(hounsfield + 1024 * (number == 1), folder / "imagesTr" / f"case_{number}_0000.nii.gz")
    checked = check(folder)
    assert checked.status == 0 and checked.codes == {"case_1": [("warning", "not-hounsfield")]}
    assert "which do not look like Hounsfield units, unlike those of other cases" in checked.line("case_1")


@pytest.mark.filterwarnings("error")
def test_images_with_absurd_values_do_not_count_as_identical(check, tmp_path):
    folder = decathlon(tmp_path / "set")
    for number in range(2):
        save(image(number) * 1e300, folder / "imagesTr" / f"case_{number}.nii.gz")
    assert check(folder).codes == {f"case_{number}": [("error", "intensity-range")] for number in range(2)}


@pytest.mark.parametrize("labels", [{"0": "lung", "1": "a", "2": "b"}, {"lung": 0, "a": 1, "b": 2}])
def test_value_0_with_the_name_of_a_segment_gets_a_warning(check, tmp_path, labels):
    """If segments are numbered from 0, the model would not contain the first one."""
    checked = check(decathlon(tmp_path / "set", labels=labels))
    assert checked.status == 0 and not checked.codes
    assert checked.line("the data set").startswith('the data set: warning: The value 0 is named "lung"')


@pytest.mark.parametrize("name", ["Background", "BG", "unlabeled", "Clear Label", "nothing", "0", "label_0", ""])
def test_usual_names_of_the_background_are_accepted(check, tmp_path, name):
    checked = check(decathlon(tmp_path / "set", labels={"0": name, "1": "a", "2": "b"}))
    assert checked.lines == ["3 of 3 cases are fine."]


def test_missing_channel_is_reported(check, tmp_path):
    folder = brats(tmp_path / "set")
    (folder / "BraTS_2" / "BraTS_2_t1ce.nii.gz").unlink()
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"BraTS_2": [("error", "missing-image")]}
    assert "Channel T1ce is missing" in checked.line("BraTS_2") and "BraTS_2_t1ce.nii.gz" in checked.line("BraTS_2")


def test_missing_label_is_reported(check, tmp_path):
    folder = nnunet(tmp_path / "set")
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_0": [("error", "missing-label")]}
    assert "The label map is missing" in checked.line("case_0")


def test_channels_missing_in_a_4d_file_are_reported(check, tmp_path):
    folder = decathlon(tmp_path / "set", channels=("T1", "T2"))
    save(image(0), folder / "imagesTr" / "case_0.nii.gz")
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_0": [("error", "wrong-channel-count")]}
    assert "contains 1 image, but the data set has 2 channels (T1, T2)" in checked.line("case_0")


@pytest.mark.parametrize(
    ("array", "code", "message"),
    [
        (label((1, 7)), "unexpected-labels", "values that the data set does not name: 7 (90)"),
        (label() * np.float32(0.5), "label-not-whole", "values that are not whole numbers, such as 0.5"),
        (label().astype(np.int16) * 300, "label-range", "has the value 300"),
    ],
)
def test_unexpected_label_values_are_reported(check, tmp_path, array, code, message):
    folder = decathlon(tmp_path / "set")
    save(array, folder / "labelsTr" / "case_1.nii.gz")
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_1": [("error", code)]}
    assert message in checked.line("case_1")


def test_empty_label_is_a_warning(check_and_draw, tmp_path):
    folder = decathlon(tmp_path / "set")
    save(np.zeros(SHAPE, np.uint8), folder / "labelsTr" / "case_2.nii.gz")
    checked = check_and_draw(folder)
    assert checked.status == 0 and checked.codes == {"case_2": [("warning", "empty-label")]}
    assert "The label map is empty" in checked.line("case_2")


def test_data_set_without_any_labeled_voxel_is_refused(check_and_draw, tmp_path):
    folder = decathlon(tmp_path / "set")
    for path in (folder / "labelsTr").iterdir():
        save(np.zeros(SHAPE, np.uint8), path)
    checked = check_and_draw(folder)
    assert checked.status == 2 and checked.content["summary"]["findings"][0]["code"] == "no-foreground"
    assert "0 with errors, 3 with warnings only; the data set as a whole has errors." in checked.closing


def test_file_that_makes_a_library_fail_affects_only_its_case(check, tmp_path, monkeypatch):
    folder = decathlon(tmp_path / "set")

    def broken(path):
        if path.name == "case_1.nii.gz":
            raise OverflowError("memory mapped length must be positive")
        return read_image(path)

    monkeypatch.setattr("conresnet_training.check.read_image", broken)
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_1": [("error", "case-unreadable")]}
    assert checked.lines[-1] == "2 of 3 cases are fine."


def test_label_without_any_case_is_reported(check, tmp_path):
    folder = decathlon(tmp_path / "set", labels={"0": "background", "1": "a", "2": "b", "3": "Nebenniere"})
    checked = check(folder)
    assert checked.status == 0
    assert checked.lines == ["the data set: warning: No case has the label Nebenniere", "3 of 3 cases are fine."]
    assert checked.content["summary"]["findings"][0]["code"] == "label-unused"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_reported(check_and_draw, tmp_path, value):
    folder = decathlon(tmp_path / "set")
    array = image(0).astype(np.float32)
    array[3, 4, 5:7] = value
    save(array, folder / "imagesTr" / "case_0.nii.gz")
    checked = check_and_draw(folder)
    assert checked.status == 2 and checked.codes == {"case_0": [("error", "image-not-finite")]}
    assert "Channel MRI has 2 voxels that are NaN or infinite" in checked.line("case_0")


@pytest.mark.parametrize("name", ["T1", "T2"])
def test_constant_channel_is_reported(check_and_draw, tmp_path, name):
    folder = decathlon(tmp_path / "set", channels=("T1", "T2"))
    arrays = {"T1": image(0), "T2": image(1), name: np.full(SHAPE, 7, np.int16)}
    save(np.stack(list(arrays.values()), -1), folder / "imagesTr" / "case_0.nii.gz")
    checked = check_and_draw(folder)
    assert checked.status == 2 and checked.codes == {"case_0": [("error", "image-constant")]}
    assert f"Channel {name} is constant: all voxels are 7" in checked.line("case_0")


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_truncated_file_is_reported(check, tmp_path, part):
    folder = decathlon(tmp_path / "set")
    path = folder / part / "case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    checked = check(folder)
    assert checked.status == 2 and checked.codes == {"case_1": [("error", "image-truncated")]}
    assert "case_1.nii.gz is cut off" in checked.line("case_1")


def test_file_that_is_not_an_image_is_reported(check, tmp_path):
    folder = nnunet(tmp_path / "set", ending=".nrrd")
    (folder / "imagesTr" / "case_1_0000.nrrd").write_text("<html>404</html>", encoding="utf-8")
    assert check(folder).codes == {"case_1": [("error", "file-web-page")]}


def test_label_map_in_place_of_an_image_gets_a_warning(check, tmp_path):
    folder = nnunet(tmp_path / "set")
    save(label(number=1).astype(np.float32), folder / "imagesTr" / "case_1_0000.nii.gz")
    checked = check(folder)
    assert checked.status == 0 and ("warning", "like-labels") in checked.codes["case_1"]


def test_duplicates_are_named(check, tmp_path):
    folder = brats(tmp_path / "set")
    for word in ("t1", "t1ce", "t2", "flair"):
        shutil.copy(folder / "BraTS_1" / f"BraTS_1_{word}.nii.gz", folder / "BraTS_3" / f"BraTS_3_{word}.nii.gz")
    checked = check(folder)
    assert checked.status == 0 and checked.codes == {"BraTS_3": [("warning", "duplicate-image")]}
    assert "Its images are identical to those of BraTS_1" in checked.line("BraTS_3")


def test_duplicates_are_named_for_any_data_type(check, tmp_path):
    folder = decathlon(tmp_path / "set", cases=5)
    save(image(0).astype(np.float32), folder / "imagesTr" / "case_2.nii.gz")
    save(label().astype(np.int16), folder / "labelsTr" / "case_3.nii.gz")
    for number in (1, 4):
        save(np.zeros(SHAPE, np.uint8), folder / "labelsTr" / f"case_{number}.nii.gz")
    codes = check(folder).codes
    assert codes["case_2"] == [("warning", "duplicate-image")] and codes["case_3"] == [("warning", "duplicate-label")]
    assert codes["case_1"] == codes["case_4"] == [("warning", "empty-label")]


def test_label_with_few_cases_is_named(check, tmp_path):
    folder = decathlon(tmp_path / "set", cases=6)
    for number in range(5):
        save(label((1,), number=number), folder / "labelsTr" / f"case_{number}.nii.gz")
    checked = check(folder)
    assert checked.lines == [
        "the data set: warning: Only 1 case has the label Far box, so not all of the 5 folds can be measured on it",
        "6 of 6 cases are fine.",
    ]
    assert checked.content["summary"]["findings"][0]["code"] == "label-rare"


def test_outliers_are_named(check_and_draw, tmp_path):
    folder = decathlon(tmp_path / "set", cases=6)
    for kind, array in (("imagesTr", image(9)), ("labelsTr", label(number=4))):
        save(array, folder / kind / "case_4.nii.gz", affine(spacing=3))
    long = (20, 18, 80)
    for kind, array in (("imagesTr", image(9, long)), ("labelsTr", label(shape=long, number=5))):
        save(array, folder / kind / "case_5.nii.gz")
    checked = check_and_draw(folder)
    assert checked.status == 0
    assert checked.codes == {"case_4": [("warning", "spacing-outlier")], "case_5": [("warning", "size-outlier")]}
    assert "Its superior-inferior spacing is 3 mm; the median is 1" in checked.line("case_4")
    assert "Its superior-inferior size is 80 voxels; the median is 16" in checked.line("case_5")


def test_all_findings_of_a_case_are_on_one_line(check, tmp_path):
    folder = brats(tmp_path / "set")
    save(label((1, 3)), folder / "BraTS_1" / "BraTS_1_seg.nii.gz", affine(origin=2))
    (folder / "BraTS_1" / "BraTS_1_flair.nii.gz").unlink()
    save(np.zeros(SHAPE, np.int16), folder / "BraTS_1" / "BraTS_1_t2.nii.gz", affine(origin=3))
    checked = check(folder)
    codes = [code for _, code in checked.codes["BraTS_1"]]
    assert sorted(codes[:4]) == ["image-constant", "label-grid-differs", "missing-image", "unexpected-labels"]
    assert codes[4:] == ["channel-grid-differs"]
    assert len(checked.lines) == 2 and checked.line("BraTS_1").count("error: ") == 4
    assert checked.content["summary"] | {"with_errors": 1, "with_warnings": 0, "fine": 2} == checked.content["summary"]


def test_unreadable_data_set_still_gets_its_page(check_and_draw, tmp_path):
    folder = decathlon(tmp_path / "set", cases=1)
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "case_0.nii.gz").write_bytes(b"")
    checked = check_and_draw(folder)
    assert checked.status == 2 and checked.lines[-1] == "0 of 1 case is fine."
    assert "data:image" not in checked.page and "case_0" in checked.page


def test_names_are_escaped_in_html(check_and_draw, tmp_path):
    folder = decathlon(tmp_path / "set", labels={"1": "<script>alert(1)</script>", "2": r"$\frac{$ & 腫瘍"})
    checked = check_and_draw(folder)
    assert checked.status == 0 and "<script>" not in checked.page and "&lt;script&gt;" in checked.page


def test_long_non_ascii_paths_work(check, tmp_path):
    """Long paths with non-ASCII characters are supported."""
    long = tmp_path / "Patientenstudie mit Umlauten äöü" / ("ein langer Ordnername 脳 " * 6) / ("мозг и " * 15)
    checked = check(nnunet(long / "Dataset 1"))
    assert checked.status == 0 and str(long) in checked.content["data"]


def test_check_writes_nothing_into_the_data_set(check, tmp_path, monkeypatch, capsys):
    folder = decathlon(tmp_path / "set")
    before = sorted(path for path in folder.rglob("*"))
    for arguments, place in (((folder, "--output", folder / "report"), tmp_path), ((".",), folder)):
        monkeypatch.chdir(place)
        assert run_command(monkeypatch, "check", *arguments) == 2
        assert "is inside the data set's folder, which is never modified" in capsys.readouterr().err
    check(folder, "--output", "somewhere")
    assert sorted(path for path in folder.rglob("*")) == before


def test_findings_go_to_stdout_and_summary_to_stderr(tmp_path):
    folder = decathlon(tmp_path / "Übung 1")
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    command = [sys.executable, "-m", "conresnet_training", "check", str(folder), "--output", str(tmp_path / "Prüfung")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["case_0", "2 of 3 cases are fine."]
    assert len(done.stderr.splitlines()) == 1 and "Prüfung" in done.stderr


MANY = """
import sys
from pathlib import Path
from conresnet_training.check import check_data_set
from conresnet_training.data.layouts import read_data_set

folder, count = Path(sys.argv[1]), int(sys.argv[2])
report = check_data_set(read_data_set(folder), folder)
assert len(report.cases) == count and not report.has_errors
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    """Peak memory is compared for few and many cases."""
    few, many = (peak_memory(MANY, many_cases(tmp_path / str(count), count), count) for count in (10, 50))
    assert many - few < 10 * 2 * MANY_VOXELS
