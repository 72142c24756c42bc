"""``conresnet.segment``: same voxels as the command line for each kind of image, returned as that kind of image."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import conresnet
from conresnet.cli import main
from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.files import read_volume, write_volume
from conresnet.request import Tracker
from engine.image_cases import write_with_itk
from engine.model_cases import description, write_model
from engine.package_cases import refusal
from engine.volumes import anatomy, every_reordering, grid, random_volume, rotation, stored

FLIPPED = list(every_reordering())[29]
GRIDS = {
    "plain": grid((20, 22, 24), (1, 1, 2), (-12, -11, -20)),
    "oblique": grid((24, 22, 20), (1.1, 0.9, 1.7), (-14, -8, -18), rotation(17) @ rotation(-9, axis=0)),
}
MAPS = ["residual", "attention"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Resamples to 1.3 mm, so that every way of storing a grid is tested with resampling."""
    settings = description(preparation={"spacing": [1.3, 1.3, 1.3]}, inference={"window": [24, 24, 24]})
    return write_model(tmp_path_factory.mktemp("models") / "test", settings, scale=3).path


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "pair", description(channels=2), scale=3).path


def volume(kind: str) -> Volume:
    """A smooth anatomy with noise, stored axis-aligned, oblique, or with its axes permuted and flipped."""
    of = GRIDS["oblique" if kind == "oblique" else "plain"]
    noise = np.random.default_rng(0).normal(0, 3, of.shape).astype(np.float32)
    made = Volume(anatomy(of) + noise, of, kind)
    return stored(made, FLIPPED) if kind == "flipped" else made


def segmented_by_the_command_line(image: Path, model: Path, output: Path) -> dict[str, Volume]:
    arguments = ["segment", image, "--model", model, "--output", output, "--maps", ",".join(MAPS)]
    assert main([*map(str, arguments), "--precision", "fp32", "--device", "cpu", "--threads", "1"]) == 0
    found = {"labels": read_volume(output / "segmentation.nii.gz").array}
    assert len(np.unique(found["labels"])) == 3, "nothing is compared where nothing was found"
    for name in MAPS:
        found[name] = np.asanyarray(nibabel.load(output / f"{name}.nii.gz").dataobj)
    return found


def segment(image, model: Path, **options) -> "conresnet.api.Result":
    return conresnet.segment(image, model, device="cpu", precision="fp32", threads=1, **options)


@pytest.mark.parametrize("kind", ["plain", "oblique", "flipped"])
def test_every_kind_of_image_gives_same_voxels_as_command_line(tmp_path, model, kind):
    of = volume(kind)
    write_volume(of.array, of.grid, tmp_path / "image.nii")
    write_with_itk(of, tmp_path / "image.mha")
    by_kind = {}
    for file in ("image.nii", "image.mha"):
        expected = segmented_by_the_command_line(tmp_path / file, model, tmp_path / file.replace(".", "_"))
        by_kind[file] = expected
    labels, maps = by_kind["image.nii"]["labels"], {name: by_kind["image.nii"][name] for name in MAPS}

    source = nibabel.load(tmp_path / "image.nii")
    result = segment(source, model, maps=MAPS)
    assert isinstance(result.labels, nibabel.Nifti1Image) and result.labels.get_data_dtype() == np.uint8
    assert np.array_equal(result.labels.affine, source.affine)
    for code in ("qform_code", "sform_code"):
        assert result.labels.header[code] == source.header[code]
    assert np.array_equal(np.asanyarray(result.labels.dataobj), labels.T)
    for name in MAPS:
        assert np.array_equal(np.asanyarray(result.maps[name].dataobj), maps[name])

    result = segment((np.asanyarray(source.dataobj), source.affine), model, maps=MAPS)
    # A file's header stores fewer digits than an affine. This affects the last digit of an oblique image's maps, and
    # the labels where two segments are equally likely.
    differing = np.mean(result.labels != labels.T)
    assert differing <= (0 if kind != "oblique" else 1e-3) and result.labels.dtype == np.uint8
    for name in MAPS:
        np.testing.assert_allclose(result.maps[name], maps[name], atol=0 if kind != "oblique" else 1e-3)

    for image in (str(tmp_path / "image.nii"), tmp_path / "image.nii"):
        result = segment(image, model, maps="residual, attention")
        assert np.array_equal(sitk.GetArrayFromImage(result.labels), labels)

    source = sitk.ReadImage(str(tmp_path / "image.mha"))
    result = segment(source, model, maps=MAPS)
    found = sitk.GetArrayFromImage(result.labels)
    assert np.array_equal(found, by_kind["image.mha"]["labels"])
    residual = sitk.GetArrayFromImage(result.maps["residual"])
    assert np.array_equal(residual.transpose(2, 1, 0, 3), by_kind["image.mha"]["residual"])
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(result.labels, part)() == getattr(source, part)()
        assert getattr(result.maps["attention"], part)() == getattr(source, part)()


def test_shipped_model_on_a_real_case(tmp_path, hippocampus_image):
    arguments = ["segment", hippocampus_image, "--model", "hippocampus", "--output", tmp_path / "o", "--precision"]
    assert main([*map(str, arguments), "fp32", "--device", "cpu", "--threads", "1"]) == 0
    expected = read_volume(tmp_path / "o" / "segmentation.nii.gz")
    report = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    phases = []
    result = conresnet.segment(
        nibabel.load(hippocampus_image),
        "hippocampus",
        device="cpu",
        precision="fp32",
        threads=1,
        progress=lambda phase, fraction, left: phases.append((phase, fraction)),
    )
    assert np.array_equal(np.asanyarray(result.labels.dataobj), expected.array.T)
    assert result.volumes_ml == report["volumes_ml"] and result.warnings == report["warnings"]
    assert {phase for phase, _ in phases} >= {"reading", "preparing", "segmenting", "writing"}
    assert set(conresnet.segment(hippocampus_image, conresnet.read_model("hippocampus")).report) == set(result.report)


def test_saved_files_match_those_of_command_line(tmp_path, model):
    of = volume("plain")
    write_volume(of.array, of.grid, tmp_path / "image.nii")
    segmented_by_the_command_line(tmp_path / "image.nii", model, tmp_path / "by command")
    result = segment(tmp_path / "image.nii", model, maps=MAPS)
    result.save(tmp_path / "by call")
    refusal("results-exist", result.save, tmp_path / "by call")
    refusal("output-not-folder", result.save, "")
    result.save(tmp_path / "by call", overwrite=True)
    from_call, from_command = (
        {path.name: path for path in (tmp_path / name).iterdir()} for name in ("by call", "by command")
    )
    assert set(from_call) == set(from_command)
    for name, path in from_call.items():
        if name != "report.json":
            # Compressed files contain the time of their creation.
            assert gzip.decompress(path.read_bytes()) == gzip.decompress(from_command[name].read_bytes())
    reports = [json.loads(files["report.json"].read_text(encoding="utf-8")) for files in (from_call, from_command)]
    for report in reports:
        assert set(report.pop("seconds")) == {"loading", "reading", "preparing", "segmenting", "writing", "total"}
        report["passes"][0].pop("seconds")
    assert reports[0] == reports[1]


def test_channels_by_name_in_order_or_in_one_image(tmp_path, pair):
    first, second = (random_volume(GRIDS["plain"], seed=seed) for seed in (1, 2))
    affine = first.grid.affine
    arrays = [one.array.T for one in (first, second)]
    write_volume(second.array, second.grid, tmp_path / "t2.nii")
    write_volume(first.array, first.grid, tmp_path / "t1.nii")
    write_volume(np.stack([first.array, second.array]), first.grid, tmp_path / "both.nii")
    expected = segment([tmp_path / "t1.nii", tmp_path / "t2.nii"], pair)
    found = {
        "named": segment(None, pair, channels={"t2": tmp_path / "t2.nii", "T1": (arrays[0], affine)}).labels,
        "4D": segment((np.stack(arrays, axis=-1), affine), pair).labels,
    }
    labels = sitk.GetArrayFromImage(expected.labels)
    assert len(np.unique(labels)) == 3
    for how, array in found.items():
        assert np.array_equal(array, labels.T), how
    image = nibabel.load(tmp_path / "both.nii")
    assert np.array_equal(np.asanyarray(segment(image, pair).labels.dataobj), labels.T)
    assert np.array_equal(sitk.GetArrayFromImage(segment(tmp_path / "both.nii", pair).labels), labels)


def test_exchanged_or_repeated_images_get_a_warning(tmp_path, pair):
    for name, seed in (("t1", 1), ("t2", 2)):
        one = random_volume(GRIDS["plain"], seed=seed)
        write_volume(one.array, one.grid, tmp_path / f"p_{name}.nii")
    t1, t2 = tmp_path / "p_t1.nii", tmp_path / "p_t2.nii"
    usual = segment([t1, t2], pair).warnings
    exchanged = segment(None, pair, channels={"T1": t2, "T2": nibabel.load(t1)}).warnings
    assert len(exchanged) == len(usual) + 2 and sum("suggests T" in text for text in exchanged) == 2
    assert any("are the same" in text for text in segment([t1, t1], pair).warnings)


def test_roi_is_accepted_in_each_form(tmp_path, model):
    of = volume("plain")
    write_volume(of.array, of.grid, tmp_path / "image.nii")
    center = of.grid.center
    bounds = [value + side for value in center for side in (-6, 6)]
    markup = {"type": "ROI", "coordinateSystem": "RAS", "center": list(center), "size": [12, 12, 12]}
    (tmp_path / "box.mrk.json").write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    rois = [bounds, ",".join(map(str, bounds)), tmp_path / "box.mrk.json"]
    found = [sitk.GetArrayFromImage(segment(tmp_path / "image.nii", model, roi=roi).labels) for roi in rois]
    assert found[0].any() and all(np.array_equal(one, found[0]) for one in found[1:])


def test_invalid_arguments_are_refused(tmp_path, model, pair):
    array, affine = np.random.default_rng(0).random((8, 9, 10)), np.eye(4)
    refusal("channel-unknown", segment, None, pair, channels={"T1": (array, affine), "PD": (array, affine)})
    refusal("channel-missing", segment, None, pair, channels={"T1": (array, affine)})
    refusal("channel-repeated", segment, None, pair, channels={"T1": (array, affine), "t1": (array, affine)})
    refusal("channel-missing", segment, None, pair, channels={})
    refusal("image-components", segment, (np.stack([array] * 3, axis=-1), affine), pair)
    refusal("wrong-channel-count", segment, [(array, affine)] * 3, pair)
    assert "its type is ndarray" in refusal("image-kind", segment, array, model)
    refusal("image-not-found", segment, "", model)
    refusal("wrong-channel-count", segment, ("a.nii", Path("b.nii")), model)
    refusal("array-shape", segment, (array[0], affine), model)
    for wrong in ([["a"] * 4] * 4, affine + 0j, [1, [2]], None):
        refusal("array-shape", segment, (array, wrong), model)
    refusal("array-shape", segment, nibabel.AnalyzeImage(array.astype(np.float32), None), model)
    refusal("image-kind", segment, ([[[1, 2], [3]]], affine), model)
    refusal("channel-unknown", segment, None, pair, channels={1: (array, affine), "T2": (array, affine)})
    refusal("image-constant", segment, (np.ones((8, 9, 10)), affine), model)
    refusal("map-unknown", segment, (array, affine), model, maps=["rezidual"])
    refusal("device-unknown", conresnet.segment, (array, affine), model, device="cpu:")
    refusal("model-not-found", segment, (array, affine), "nobody")
    refusal("image-name-not-text", segment, "a\0", model)
    refusal("bad-roi", segment, (array, affine), model, roi={})
    refusal("image-color", segment, sitk.Image([8, 9, 10], sitk.sitkVectorUInt8, 3), model)
    with pytest.raises(TypeError, match=r"^segment\(\) got an unexpected option 'map'$"):
        segment((array, affine), model, map=["residual"])
    with pytest.raises(TypeError):
        segment(None, model)


@pytest.mark.parametrize(
    "options",
    [
        *({"threads": -1}, {"threads": 1.5}, {"threads": "2"}, {"drop_below": "1"}, {"drop_below": -1.0}),
        *({"device": None}, {"fast": "yes"}, {"report_name": 3}, {"maps": [1]}),
    ],
    ids=str,
)
def test_option_of_wrong_type_is_named(model, options):
    message = refusal("bad-option", conresnet.segment, (np.ones((4, 4, 4)), np.eye(4)), model, **options)
    assert next(iter(options)) in message


def test_threads_are_limited_to_number_of_cores(model):
    image = volume("plain")
    result = conresnet.segment((image.array.T, image.grid.affine), model, threads=np.int64(10**6))
    assert result.report["threads"] == os.cpu_count()


def test_transposed_matrix_is_refused(model):
    image = volume("plain")
    assert "transposed" in refusal("bad-matrix", segment, (image.array.T, image.grid.affine.T), model)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_masked_voxels_are_refused_rather_than_segmented(model, dtype):
    of = volume("plain")
    array = np.ma.MaskedArray(of.array.T.astype(dtype))
    expected = segment((array.data, of.grid.affine), model).labels
    assert np.array_equal(segment((array, of.grid.affine), model).labels, expected), "nothing is masked yet"
    array[3:5, 4, 5] = np.ma.masked
    assert "2 of its voxels" in refusal("array-masked", segment, (array, of.grid.affine), model)
    refusal("array-masked", segment, nibabel.spatialimages.SpatialImage(array, of.grid.affine), model)


@pytest.mark.parametrize("kind", ["array", "nibabel"])
def test_result_is_independent_of_later_changes_to_image_and_labels(tmp_path, model, kind):
    of = volume("plain")
    array = of.array.T.copy()
    image = (array, of.grid.affine) if kind == "array" else nibabel.Nifti1Image(array, of.grid.affine)
    expected = segment(image, model)
    rows, picture = expected.statistics, expected.picture()
    result = segment(image, model)
    array[:] = 0
    (result.labels if kind == "array" else np.asanyarray(result.labels.dataobj))[:] = 0
    assert result.statistics == rows and result.picture() == picture
    result.save(tmp_path / "o")
    saved = read_volume(tmp_path / "o" / "segmentation.nii.gz").array
    assert saved.any() and {row["voxels"] for row in rows} == {(saved == label).sum() for label in (10, 20)}


def test_calls_from_several_threads_are_serialized(model, pair):
    of = volume("plain")
    image, two = (of.array.T, of.grid.affine), (np.stack([of.array.T, of.array.T**2], axis=-1), of.grid.affine)
    calls = {"a": (image, model), "b": (two, pair), "c": (image, model)}
    expected = {name: segment(*call).labels for name, call in calls.items()}
    calls = []

    def labels(name: str) -> np.ndarray:
        def listen(phase, fraction, left):
            calls.append(name)
            time.sleep(0.01)

        return segment(*calls[name], progress=listen).labels

    with ThreadPoolExecutor(3) as executor:
        found = dict(zip(calls, executor.map(labels, calls), strict=True))
    assert [name for name, _ in itertools.groupby(calls)] == list(dict.fromkeys(calls))
    assert all(np.array_equal(found[name], expected[name]) for name in calls)


def test_progress_callback_may_segment_with_another_model(model, pair):
    of = volume("plain")
    image, two = (of.array.T, of.grid.affine), (np.stack([of.array.T, of.array.T**2], axis=-1), of.grid.affine)
    expected, inner = [segment(image, model).labels, segment(two, pair).labels], []

    def nested(phase, fraction, left):
        if phase == "segmenting" and not inner:
            inner.append(None)
            inner[0] = segment(two, pair).labels

    assert np.array_equal(segment(image, model, progress=nested).labels, expected[0])
    assert np.array_equal(inner[0], expected[1])


def test_progress_callback_may_segment_with_the_same_model(model, monkeypatch):
    # Even a fast pass reports progress.
    monkeypatch.setattr(Tracker, "_SECONDS_BETWEEN_REPORTS", 0.0)
    of = volume("plain")
    image, other = (of.array.T, of.grid.affine), (of.array.T[::-1] ** 2, of.grid.affine)
    expected, inner = [segment(image, model).labels, segment(other, model).labels], []

    def nested(phase, fraction, left):
        # In the middle of a pass.
        if phase == "segmenting" and fraction > 0.4 and not inner:
            inner.append(segment(other, model).labels)

    assert np.array_equal(segment(image, model, progress=nested).labels, expected[0])
    assert np.array_equal(inner[0], expected[1])


def test_image_whose_file_changed_since_nibabel_opened_it_is_refused(tmp_path, model):
    of = volume("plain")
    opened = {}
    for name in ("gone.nii", "cut.nii.gz"):
        write_volume(of.array, of.grid, tmp_path / name)
        opened[name] = nibabel.load(tmp_path / name)
    (tmp_path / "gone.nii").unlink()
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:-500])
    for name, code in (("gone.nii", "image-not-found"), ("cut.nii.gz", "image-damaged")):
        assert name in refusal(code, segment, opened[name], model)


@pytest.mark.parametrize("make", [lambda array: array.bfloat16(), lambda array: array.requires_grad_()])
def test_tensor_that_is_not_an_array_is_refused(model, make):
    of = volume("plain")
    assert "Tensor" in refusal("image-kind", segment, (make(torch.tensor(of.array)), of.grid.affine), model)


def test_simpleitk_label_map_is_refused(repository, model):
    """In a separate process, because SimpleITK used to crash."""
    lines = [
        "import sys, SimpleITK as sitk, conresnet",
        "image = sitk.Cast(sitk.Image(9, 9, 9, sitk.sitkUInt8), sitk.sitkLabelUInt8)",
        "conresnet.segment(image, sys.argv[1])",
    ]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines), str(model)], capture_output=True, text=True)
    assert "contains label of" in ended.stderr and ended.returncode == 1


def test_empty_result_gets_a_warning(hippocampus_image):
    result = conresnet.segment(hippocampus_image, "hippocampus", roi=(-10, 10, -10, 10, -10, 10))
    assert not any(result.volumes_ml.values())
    assert [text.partition(";")[0] for text in result.warnings] == ["The model found nothing in the ROI"]


def test_exception_in_progress_callback_ends_segmentation(model):
    def stop(phase, fraction, left):
        if phase == "segmenting":
            raise KeyboardInterrupt

    of = volume("plain")
    with pytest.raises(KeyboardInterrupt):
        segment((of.array.T, of.grid.affine), model, progress=stop)


FORKING = """
import multiprocessing, os, sys, threading, numpy as np, conresnet
from conresnet.images.files import read_volume

def labels(threads, progress=None):
    options = {"device": "cpu", "precision": "fp32", "threads": threads, "progress": progress}
    return conresnet.segment((array, affine), sys.argv[1], **options).labels

def same(threads):
    return np.array_equal(labels(threads), expected)

def in_a_fork(threads):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(same, [threads]).get(60)

volume = read_volume(sys.argv[2])
array, affine = volume.array.T, volume.grid.affine
expected, children = labels(1), []

def fork(phase, fraction, left):
    if phase == "segmenting" and not children:
        children.append(os.fork())

is_same = np.array_equal(labels(1, fork), expected)
if children == [0]:
    os._exit(0 if is_same else 1)
assert is_same and os.waitpid(children[0], 0)[1] == 0, "by its progress callback"
labels(2)
assert in_a_fork(2), "after several threads"
begun, goes_on = threading.Event(), threading.Event()

def wait(phase, fraction, left):
    if phase == "segmenting":
        begun.set()
        goes_on.wait()

thread = threading.Thread(target=labels, args=(1, wait))
thread.start()
begun.wait()
assert in_a_fork(1), "while another thread is at work"
goes_on.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_segmentation_works_in_a_forked_process(tmp_path, model):
    of = volume("plain")
    write_volume(of.array, of.grid, tmp_path / "image.nii")
    arguments = [sys.executable, "-c", FORKING, str(model), str(tmp_path / "image.nii")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_fast_and_api_has_three_names(repository):
    code = (
        "import sys, conresnet; assert not {'torch', 'SimpleITK', 'numpy', 'click'} & set(sys.modules); "
        "print(conresnet.__all__); conresnet.segment; conresnet.read_model; conresnet.load_network"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository / "ConResSegmentation")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == "['load_network', 'read_model', 'segment']", done.stderr
    with pytest.raises(UserError):
        conresnet.read_model("nobody")
