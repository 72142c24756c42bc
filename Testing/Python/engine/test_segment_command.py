"""``python -m conresnet segment`` end to end: the files it writes, and that it leaves none if it fails."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conresnet.cli import main
from conresnet.images import Grid
from conresnet.images.files import read_volume, write_volume
from conresnet.messages import sentence
from engine.model_cases import description, write_model
from engine.volumes import grid, random_volume

ENGINE = Path(__file__).resolve().parents[3] / "ConResSegmentation"


@pytest.fixture(scope="module")
def pair_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "pair", description(channels=2)).path


def call(*arguments: object) -> int:
    return main(["segment", *map(str, arguments), "--threads", "1"])


def refused(capsys, folder: Path, *arguments: object) -> str:
    """The one-line message on stderr; checks that the status is 2 and that ``folder`` is unchanged."""
    before = sorted(folder.rglob("*"))
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err and not captured.out
    assert sorted(folder.rglob("*")) == before
    return captured.err


def test_all_files_are_written(capsys, tmp_path, model, image):
    output = tmp_path / "no such" / "Ergebnis ü"
    assert call(image, "--model", model, "--output", output, "--maps", "residual, attention,probability,features") == 0
    captured = capsys.readouterr()
    assert not captured.err and str(output) in captured.out and "mL" in captured.out
    names = {f"{name}.nii.gz" for name in ("segmentation", "residual", "attention", "probability", "features")}
    assert {path.name for path in output.iterdir()} == names | {"report.json"}
    assert not list(tmp_path.rglob(".conresnet*"))
    source, labels = read_volume(image), read_volume(output / "segmentation.nii.gz")
    assert labels.grid.matches(source.grid) and labels.array.dtype == np.uint8
    assert set(np.unique(labels.array)) <= {0, 10, 20}
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert {"loading", "reading", "preparing", "segmenting", "writing", "total"} == set(report["seconds"])
    assert report["device"] == "cpu" and report["windows"] == 1
    for row in report["segments"]:
        voxels = np.count_nonzero(labels.array == row["label"])
        assert row["voxels"] == voxels and row["volume_ml"] == pytest.approx(voxels * 6 / 1000)
    import nibabel

    shapes = {"residual": (24, 22, 20, 2), "probability": (24, 22, 20, 2), "attention": (24, 22, 20)}
    for name, shape in {**shapes, "features": (24, 22, 20, 2)}.items():
        written = nibabel.load(output / f"{name}.nii.gz")
        assert written.shape == shape and written.get_data_dtype() == np.float32


def test_folder_named_like_an_image_gets_a_warning(capsys, tmp_path, model, image):
    """The user may expect a single file; scripts that name the folder after the image continue to work."""
    output, messages = tmp_path / "case.NII.gz", []
    for _ in range(2):
        assert call(image, "--model", model, "--output", output, "--overwrite") == 0
        messages.append(capsys.readouterr().err)
    assert messages == [sentence("warn-output-is-folder", {"path": output}) + "\n", ""]
    assert (output / "segmentation.nii.gz").is_file()


def test_channels_by_name_or_in_order(tmp_path, pair_model, image):
    other = tmp_path / "other.nii"
    volume = random_volume(read_volume(image).grid, seed=5)
    write_volume(volume.array, volume.grid, other)
    assert call(image, other, "--model", pair_model, "--output", tmp_path / "a") == 0
    assert (
        call("--channel", f"t2={other}", "--channel", f"T1={image}", "--model", pair_model, "--output", tmp_path / "b")
        == 0
    )
    found = [read_volume(tmp_path / name / "segmentation.nii.gz").array for name in "ab"]
    assert np.array_equal(*found) and found[0].any()


def test_channels_in_any_order_where_their_files_are_named_after_them(capsys, tmp_path, pair_model, image):
    volume = random_volume(read_volume(image).grid, seed=5)
    files = {name: tmp_path / f"pat_{name}.nii" for name in ("T2", "first")}
    write_volume(volume.array, volume.grid, files["T2"])
    write_volume(volume.array, volume.grid, files["first"])
    files["T1"] = Path(shutil.copy(image, tmp_path / "pat_T1.nii.gz"))
    arguments = "--model", pair_model, "--output"
    for name, order in (("a", ("T1", "T2")), ("b", ("T2", "T1"))):
        capsys.readouterr()
        assert call(*(files[part] for part in order), *arguments, tmp_path / name) == 0
    assert "Assigned by name: pat_T1.nii.gz as T1, pat_T2.nii as T2." in capsys.readouterr().out
    found = [read_volume(tmp_path / name / "segmentation.nii.gz").array for name in "ab"]
    assert np.array_equal(*found) and found[0].any()
    message = refused(capsys, tmp_path, files["T2"], files["first"], *arguments, tmp_path / "c")
    assert "pat_T2.nii was given as T1, but its name suggests T2" in message


def test_existing_results_are_kept_without_overwrite(capsys, tmp_path, model, image):
    output = tmp_path / "out"
    assert call(image, "--model", model, "--output", output, "--maps", "residual") == 0
    (output / "notes.txt").write_text("mine")
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, tmp_path, image, "--model", model, "--output", output)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert call(image, "--model", model, "--output", output, "--overwrite") == 0
    # The old residual does not belong to the new segmentation.
    assert {path.name for path in output.iterdir()} == {"segmentation.nii.gz", "report.json", "notes.txt"}


def test_roi_as_numbers_and_as_slicer_file(tmp_path, model, image):
    center = read_volume(image).grid.center
    bounds = [value + side for value in center for side in (-6, 6)]
    markup = {"type": "ROI", "coordinateSystem": "RAS", "center": list(center), "size": [12, 12, 12]}
    file = tmp_path / "box ä.mrk.json"
    file.write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    for name, roi in (("a", ",".join(map(str, bounds))), ("b", file)):
        assert call(image, "--model", model, "--output", tmp_path / name, "--roi", roi) == 0
    found = [read_volume(tmp_path / name / "segmentation.nii.gz").array for name in "ab"]
    assert np.array_equal(*found) and 0 < np.count_nonzero(found[0]) <= 13 * 7 * 5


def damaged(folder: Path, kind: str) -> Path:
    """Write a file that is not a valid image, in one of many ways."""
    import nibabel
    import SimpleITK as sitk

    path = folder / f"{kind}.nii.gz"
    of = grid((8, 9, 10))
    array = np.random.default_rng(0).random(of.shape)
    match kind:
        case "text":
            path.write_text("no image")
        case "truncated":
            write_volume(array, of, folder / "whole.nii.gz")
            path.write_bytes((folder / "whole.nii.gz").read_bytes()[:2000])
        case "flat":
            sitk.WriteImage(sitk.GetImageFromArray(array[0]), str(path))
        case "color":
            path = path.with_suffix("").with_suffix(".mha")
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 9, 10, 3), np.uint8), isVector=True), str(path))
        case "series":
            write_volume(np.stack([array] * 3), of, path)
        case "nan" | "infinite":
            array[3, 3, 3] = np.nan if kind == "nan" else np.inf
            write_volume(array, of, path)
        case "constant":
            write_volume(np.full(of.shape, 5, np.int16), of, path)
        case "spacing":
            nibabel.Nifti1Image(array, np.diag([1e6, 1, 1, 1])).to_filename(path)
    return path


KINDS = ["missing", "text", "truncated", "flat", "color", "series", "nan", "infinite", "constant", "spacing"]


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_images_are_refused_with_file_name(capsys, tmp_path, model, kind):
    path = damaged(tmp_path, kind)
    message = refused(capsys, tmp_path, path, "--model", model, "--output", tmp_path / "out" / "deep")
    assert path.name in message


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--help"], []),
        (["No image was given", "--cases"], []),
        (["T1, T2"], ["{image}"]),
        (["T1, T2"], ["{image}", "{image}", "{image}"]),
        (["T2"], ["--channel", "T1={image}"]),
        (["T9"], ["--channel", "T9={image}"]),
        (["NAME=FILE"], ["--channel", "{image}"]),
        (["one way only", "--cases"], ["{image}", "--channel", "T1={image}"]),
        (["ROI", "outside", "Kopf é.nii.gz"], ["{image}", "{image}", "--roi", "900,910,0,9,0,9"]),
        (["ROI"], ["{image}", "{image}", "--roi", "1,2,3"]),
        (["none.mrk.json"], ["{image}", "{image}", "--roi", "none.mrk.json"]),
        (["rezidual"], ["{image}", "{image}", "--maps", "rezidual"]),
        (["--maps", "empty"], ["{image}", "{image}", "--maps", " , "]),
        (["--report-name needs --report"], ["{image}", "{image}", "--report-name", "A"]),
        (["cuda:7"], ["{image}", "{image}", "--device", "cuda:7"]),
        (["fp16"], ["{image}", "{image}", "--device", "cpu", "--precision", "fp16"]),
        (["fp8"], ["{image}", "{image}", "--precision", "fp8"]),
        (["none.csv"], ["--cases", "none.csv"]),
        (["n" * 300, "cannot be read"], ["n" * 300, "{image}"]),
    ],
)
def test_invalid_arguments_are_refused(capsys, tmp_path, pair_model, image, words, arguments):
    given = [argument.replace("{image}", str(image)) for argument in arguments]
    message = refused(capsys, tmp_path, *given, "--model", pair_model, "--output", tmp_path / "out")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.2, 0.8, "contains no voxel"), (-900, -800, "is outside"), (3, 8, "is empty inside")]
)
def test_unusable_roi_is_refused_with_file_name(capsys, tmp_path, model, low, high, words):
    volume = random_volume(grid((20, 20, 20)))
    volume.array[2:10, 2:10, 2:10] = 7
    write_volume(volume.array, volume.grid, tmp_path / "Höhle.nii.gz")
    first, last = (volume.grid.to_ras([index] * 3) for index in (low, high))
    roi = ",".join(f"{value:g}" for pair in zip(first, last, strict=True) for value in pair)
    arguments = [tmp_path / "Höhle.nii.gz", "--model", model, "--output", tmp_path / "out", f"--roi={roi}"]
    message = refused(capsys, tmp_path, *arguments)
    assert words in message and "Höhle.nii.gz" in message


def test_invalid_models_are_refused(capsys, tmp_path, model, image):
    assert "nobody" in refused(capsys, tmp_path, image, "--model", "nobody", "--output", tmp_path / "out")
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "network.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "checksum" in refused(capsys, tmp_path, image, "--model", broken, "--output", tmp_path / "out")


def test_dash_is_not_an_output_folder(capsys, tmp_path, model, image, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Name a folder" in refused(capsys, tmp_path, image, "--model", model, "--output", "-")


def test_closed_stderr_is_not_an_error(tmp_path, model, image, monkeypatch):
    """As after ``2>&-``."""
    monkeypatch.setattr(sys, "stderr", None)
    assert call(image, "--model", model, "--output", tmp_path / "out") == 0
    assert call(image, "--model", model, "--output", tmp_path / "out") == 2


def process(*arguments: object, **options: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ENGINE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "conresnet", "segment", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True, encoding="utf-8", **options)


@pytest.mark.parametrize("allowed", [0, 400, 3000])
def test_full_disk_is_reported_and_leaves_no_files(capsys, tmp_path, model, image, allowed):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
    try:
        message = refused(capsys, tmp_path, image, "--model", model, "--output", tmp_path / "out", "--maps", "residual")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk space" in message and str(tmp_path / "out") in message and ".conresnet" not in message


# The signal of a closed terminal is handled like SIGTERM.
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_signal_stops_within_a_window_and_leaves_no_files(tmp_path, image, number, status):
    of = grid((100, 160, 160))
    write_volume(random_volume(of).array, of, tmp_path / "large.nii")
    slow = write_model(tmp_path / "slow", description(base_width=32, inference={"window": [96, 160, 160]}))
    before = sorted(tmp_path.rglob("*"))

    def reset_signal():
        # Processes that a shell starts in the background, such as these tests, ignore Ctrl-C, and so do their children.
        signal.signal(number, signal.SIG_DFL)

    running = process(
        *(tmp_path / "large.nii", "--model", slow.path, "--output", tmp_path / "out", "--precision", "fp32"),
        preexec_fn=reset_signal,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob(".conresnet-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    running.send_signal(number)
    _, output = running.communicate(timeout=120)
    assert running.returncode == status and output.strip() == "Stopped."
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_is_shown_in_a_terminal(tmp_path, model, image):
    import pty

    parent, child = pty.openpty()
    arguments = [image, "--model", model, "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "conresnet", "segment", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ENGINE), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # raised on Linux when the other end is closed
        while part := os.read(parent, 4096):
            shown += part
    os.close(parent)
    assert running.wait(60) == 0
    assert b"segmenting" in shown and b"100%" in shown


def test_result_has_grid_of_image_of_any_kind(tmp_path, model):
    affine = np.array([[0, -1.5, 0, 40], [0, 0, 2, -30], [1.2, 0, 0, 7], [0, 0, 0, 1.0]])
    of = Grid((12, 15, 18), affine)
    write_volume(random_volume(of).array, of, tmp_path / "turned.nii.gz")
    assert call(tmp_path / "turned.nii.gz", "--model", model, "--output", tmp_path / "out") == 0
    assert read_volume(tmp_path / "out" / "segmentation.nii.gz").grid.matches(of)


def test_threads_are_limited_to_number_of_cores(tmp_path, model, image):
    arguments = (image, "--model", model, "--output", tmp_path / "out", "--threads", 100_000)
    assert main(["segment", *map(str, arguments)]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["threads"] == os.cpu_count()


@pytest.mark.parametrize("option", ["--roi", "--maps", "--device", "--channel", "--cases", "--output", "--model"])
@pytest.mark.parametrize("together", [True, False])
def test_empty_option_value_is_refused(capsys, tmp_path, model, image, option, together, monkeypatch):
    """For example, from a shell variable that is not set."""
    monkeypatch.chdir(tmp_path)
    empty = [f"{option}="] if together else [option, ""]
    message = refused(capsys, tmp_path, image, "--model", model, "--output", tmp_path / "out", *empty)
    assert option in message and "empty" in message


def test_input_image_is_never_replaced(capsys, tmp_path, model, image):
    folder = tmp_path / "dir"
    folder.mkdir()
    for name in ("features.nii.gz", "segmentation.nii.gz"):
        shutil.copy(image, folder / name)
    before = image.read_bytes()
    arguments = "--model", model, "--output", folder, "--overwrite"
    message = refused(capsys, tmp_path, folder / "features.nii.gz", *arguments)
    assert "segmentation.nii.gz" in message and "move them" in message
    (folder / "segmentation.nii.gz").unlink()
    assert call(folder / "features.nii.gz", *arguments) == 0
    assert (folder / "features.nii.gz").read_bytes() == before
    capsys.readouterr()
    assert "features.nii.gz" in refused(capsys, tmp_path, folder / "features.nii.gz", *arguments, "--maps", "features")
