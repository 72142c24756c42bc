"""Preparation of cases for training: any orientation, labels on the image's grid, and complete files only."""

import gzip
import json
import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.files import read_channels
from conresnet.images.preparation import prepare
from conresnet.package import parse_description
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import file_stem, prepare_case
from conresnet_training.planning.plan import with_settings
from conresnet_training.planning.planner import make_plan
from peak_memory import REASON
from training.commands import refused
from training.data_folders import (
    MANY_VOXELS,
    SHAPE,
    brats,
    decathlon,
    label,
    many_cases,
    nnunet,
    peak_memory,
    save,
)


def prepared(folder, tmp_path, number=0, spacing=None, **options):
    data_set = read_data_set(folder)
    plan = make_plan(data_set, folder)[0]
    if spacing:
        plan = with_settings(plan, [f"model.preparation.spacing={list(spacing)}"])
    room = tmp_path / "prepared"
    room.mkdir(exist_ok=True)
    return prepare_case(data_set.cases[number], plan.model, room, data_set.labels, **options)


def test_channels_in_one_file_and_in_several_are_equivalent(tmp_path):
    together = prepared(decathlon(tmp_path / "d", channels=("T1", "T2")), tmp_path / "d")
    apart = prepared(nnunet(tmp_path / "n", channels=("T1", "T2")), tmp_path / "n")
    assert together.image.shape == (2, *SHAPE[::-1]) and together.image.dtype == np.float32
    assert not np.array_equal(together.image[0], together.image[1])
    np.testing.assert_array_equal(together.image, apart.image)
    np.testing.assert_array_equal(together.label, apart.label)
    # SAR of an RAS file: its axes in reverse.
    np.testing.assert_array_equal(together.label, label().T)


def test_case_is_prepared_again_if_its_files_or_the_plan_change(tmp_path):
    """A run that stopped at a broken label map continues with the corrected one."""
    folder = decathlon(tmp_path / "d")
    first = prepared(folder, tmp_path)
    assert prepared(folder, tmp_path) == first, "nothing has changed"
    corrected = label()
    corrected[:2] = 2
    save(corrected, folder / "labelsTr" / "case_0.nii.gz")
    changed = []
    again = prepared(folder, tmp_path, on_change=changed.append)
    assert changed == ["case_0"]
    shape = again.label.shape
    np.testing.assert_array_equal(again.label, corrected.T)
    assert prepared(folder, tmp_path, spacing=[2, 2, 2]).label.shape == tuple(side // 2 for side in shape)
    assert len(list((tmp_path / "prepared").iterdir())) == 3, "what is out of date takes no room"


def test_change_is_reported_again_if_the_changed_case_could_not_be_prepared(tmp_path):
    folder = decathlon(tmp_path / "d")
    first, file, changed = prepared(folder, tmp_path), folder / "labelsTr" / "case_0.nii.gz", []
    before = file.read_bytes(), file.stat()
    save(label((1, 2, 7)), file)
    with refused("unexpected-labels", case="case_0"):
        prepared(folder, tmp_path, on_change=changed.append)
    assert changed == ["case_0"] and first.is_whole(), "the file may come back"
    save(label((2, 1)), file)
    assert prepared(folder, tmp_path, on_change=changed.append) != first
    assert changed == ["case_0", "case_0"] and len(list((tmp_path / "prepared").iterdir())) == 3
    file.write_bytes(before[0])
    os.utime(file, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert prepared(folder, tmp_path) == first


@pytest.mark.parametrize(("ending", "voxels"), [(".mhd", ".raw"), (".nhdr", ".raw.gz")])
def test_case_is_prepared_again_if_its_separate_voxel_file_changes(tmp_path, ending, voxels):
    folder = nnunet(tmp_path / "set", cases=2, ending=ending)
    path = folder / "labelsTr" / f"case_0{ending}"
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=voxels.endswith(".gz"))
    file = path.with_name(f"case_0{voxels}")
    assert prepared(folder, tmp_path).label.max() == 2
    content = file.read_bytes()
    plain = (gzip.decompress(content) if voxels.endswith(".gz") else content).replace(b"\x02", b"\x01")
    file.write_bytes(gzip.compress(plain) if voxels.endswith(".gz") else plain)
    changed = []
    assert prepared(folder, tmp_path, on_change=changed.append).label.max() == 1
    assert changed == ["case_0"]


def test_prepared_case_is_kept_while_its_image_is_missing(tmp_path):
    folder = decathlon(tmp_path / "d")
    first, image_file, changed = prepared(folder, tmp_path), folder / "imagesTr" / "case_0.nii.gz", []
    case = read_data_set(folder).cases[0]
    image_file.rename(tmp_path / "aside.nii.gz")
    with refused("case-file-missing", path=str(case.images[0])):
        prepared(folder, tmp_path, on_change=changed.append)
    assert not changed and first.is_whole()
    (tmp_path / "aside.nii.gz").rename(image_file)
    assert prepared(folder, tmp_path) == first


def test_training_gets_same_copies_as_the_engine(tmp_path):
    folder = decathlon(tmp_path / "d", channels=("T1", "T2"))
    data_set = read_data_set(folder)
    model = make_plan(data_set, folder)[0].document()["model"]
    copy = [{"step": "subtract_gaussian", "sigma_mm": 5.0}, {"step": "equalize", "clip_limit": 0.01, "tiles": 8}]
    for item in model["inputs"]:
        item["copies"] = [[*copy, {"step": "z_score_slices", "over": "all", "outside": "keep"}]]
    model["system"]["networks"][0]["arguments"]["input_channels"] = 4
    description = parse_description(model)
    case = prepare_case(data_set.cases[0], description, tmp_path)
    engines = prepare(description, read_channels(list(data_set.cases[0].images), ["T1", "T2"]))
    np.testing.assert_array_equal(case.image, engines.block((0, 0, 0), engines.shape))
    assert case.image.shape[0] == 4 and len(np.unique(case.image[1])) > 100


def test_prepared_files_are_memory_mapped_and_made_once(tmp_path, monkeypatch):
    folder = decathlon(tmp_path / "d")
    first = prepared(folder, tmp_path)
    assert isinstance(first.image, np.memmap) and isinstance(first.label, np.memmap)
    monkeypatch.setattr("conresnet_training.data.preparation.read_channels", None)
    np.testing.assert_array_equal(prepared(folder, tmp_path).image, first.image)
    assert all(path.name.startswith("case_0_") for path in (tmp_path / "prepared").iterdir())


def test_channel_on_another_grid_is_resampled_by_position(tmp_path):
    folder = nnunet(tmp_path / "n", channels=("T1", "T2"))
    ramp = np.add.outer(np.add.outer(np.arange(20.0), 2 * np.arange(18.0)), 4 * np.arange(16.0)).astype(np.float32)
    save(ramp, folder / "imagesTr" / "case_0_0000.nii.gz")
    # The same ramp, stored in the opposite direction, shifted by 3 voxels.
    cut = ramp[3:][::-1]
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = 19
    save(np.ascontiguousarray(cut), folder / "imagesTr" / "case_0_0001.nii.gz", affine)
    case = prepared(folder, tmp_path)
    one, other = (np.asarray(channel[..., 4:], np.float64).ravel() for channel in case.image)
    assert np.corrcoef(one, other)[0, 1] > 0.9999


def test_resampled_labels_keep_their_values_and_volume(tmp_path):
    folder = decathlon(tmp_path / "d")
    case = prepared(folder, tmp_path, spacing=[0.5, 0.5, 0.5])
    assert set(np.unique(case.label)) == {0, 1, 2}
    for value in (1, 2):
        assert (case.label == value).sum() / 8 == pytest.approx(90, rel=0.1)


def test_empty_label_map_is_accepted(tmp_path):
    folder = decathlon(tmp_path / "d")
    save(np.zeros(SHAPE, np.uint8), folder / "labelsTr" / "case_0.nii.gz")
    assert not prepared(folder, tmp_path).label.any()


def test_scaled_label_map_is_rounded(tmp_path):
    folder = decathlon(tmp_path / "d")
    save(label().astype(np.float32) * np.float32(0.99995), folder / "labelsTr" / "case_0.nii.gz")
    np.testing.assert_array_equal(prepared(folder, tmp_path).label, label().T)


@pytest.mark.parametrize(
    ("array", "code", "values"),
    [
        (label() * 0.5, "label-not-whole", {"value": 0.5}),
        (label().astype(np.int16) * 200, "label-range", {"value": 400}),
        (-label().astype(np.int16), "label-range", {"value": -1}),
        (label((1, 7)), "unexpected-labels", {"found": "7 (90)", "known": "1, 2"}),
        (np.full(SHAPE, np.nan, np.float32), "label-not-whole", {}),
        (np.zeros((5, 5, 5), np.uint8), "label-grid-differs", {}),
    ],
)
def test_unusable_label_is_named_with_its_case(tmp_path, array, code, values):
    folder = decathlon(tmp_path / "d")
    save(array, folder / "labelsTr" / "case_0.nii.gz")
    with pytest.raises(UserError) as raised:
        prepared(folder, tmp_path)
    assert raised.value.code == code and raised.value.values["case"] == "case_0"
    assert raised.value.values | values == raised.value.values
    assert raised.value.message.startswith("Case case_0: ")
    assert list((tmp_path / "prepared").iterdir()) == []


def test_missing_file_is_named_with_its_case(tmp_path):
    folder = brats(tmp_path / "b")
    data_set = read_data_set(folder)
    model = make_plan(data_set, folder)[0].model
    (folder / "BraTS_1" / "BraTS_1_t2.nii.gz").unlink()
    with pytest.raises(UserError, match=r"^The case BraTS_1 has no file .*BraTS_1_t2\.nii\.gz"):
        prepare_case(data_set.cases[0], model, tmp_path)


def test_full_disk_leaves_no_partial_case(tmp_path, monkeypatch):
    folder = decathlon(tmp_path / "d")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with refused("disk-full"):
        prepared(folder, tmp_path)
    monkeypatch.undo()
    (left,) = (tmp_path / "prepared").iterdir()
    assert left.name.endswith("_image.npy")
    assert prepared(folder, tmp_path).label.any()


@pytest.mark.parametrize(("shift", "is_used"), [(0.035, True), (0.1, True), (0.2, False)])
def test_slightly_shifted_label_map_is_aligned_with_its_image(tmp_path, shift, is_used):
    folder = decathlon(tmp_path / "d")
    affine = np.eye(4)
    affine[:3, 3] = shift
    save(label(), folder / "labelsTr" / "case_0.nii.gz", affine)
    if is_used:
        np.testing.assert_array_equal(prepared(folder, tmp_path).label, label().T)
    else:
        with refused("label-grid-differs"):
            prepared(folder, tmp_path)


def test_case_names_become_safe_file_names():
    assert file_stem("hippocampus_004") == "hippocampus_004"
    assert file_stem("Müller.1-a") == "Müller.1-a"
    unsafe = [file_stem(name) for name in ("a/b", "a:b", "../b", "x" * 300, "ä" * 200)]
    assert len(set(unsafe)) == len(unsafe)
    for stem in unsafe:
        assert "/" not in stem and ":" not in stem and len(stem.encode()) < 130


def test_long_non_ascii_paths_work(tmp_path):
    """Paths with spaces, non-ASCII letters, and more than 260 characters are supported."""
    long = tmp_path / "Patientenstudie mit Umlauten äöü" / ("ein langer Ordnername 脳 " * 6) / ("мозг и " * 15)
    folder = nnunet(long / "Dataset 1", channels=("T1", "T2"))
    assert len(str(folder)) > 260
    case = prepared(folder, long, number=2)
    assert case.label.any()


@pytest.mark.parametrize("part", ["image", "label", "places"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "other", "folder", "gone"])
def test_damaged_prepared_files_are_made_again(tmp_path, part, damage):
    folder = decathlon(tmp_path / "d")
    complete = prepared(folder, tmp_path)
    before = [np.array(one) for one in (complete.image, complete.label, complete.places.counts)]
    file = getattr(complete, f"{part}_file")
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "other":
        np.save(file, np.zeros((3, 3)))
    elif damage != "gone":
        file.write_bytes(content[:200] if damage == "cut" else b"")
    again = prepared(folder, tmp_path)
    for one, other in zip(before, (again.image, again.label, again.places.counts), strict=True):
        np.testing.assert_array_equal(one, other)


MANY = """
import json, sys
from pathlib import Path
from conresnet.package import parse_description
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import prepare_case

folder, room, model = Path(sys.argv[1]), Path(sys.argv[2]), parse_description(json.loads(sys.argv[3]))
cases = [prepare_case(case, model, room) for case in read_data_set(folder).cases]
assert all(case.label.any() for case in cases)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    """All cases can be accessed, but none is kept in memory."""
    peaks = []
    for count in (5, 40):
        folder, room = many_cases(tmp_path / str(count), count), tmp_path / f"prepared {count}"
        room.mkdir()
        model = json.dumps(make_plan(read_data_set(folder), folder)[0].document()["model"])
        peaks.append(peak_memory(MANY, folder, room, model))
    assert peaks[1] - peaks[0] < 10 * 4 * MANY_VOXELS
