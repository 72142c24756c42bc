"""Result folders: they contain all files of one run or are unchanged, and only ConResNet's files are replaced."""

import gzip
import itertools
import json
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conresnet import results as result_folder
from conresnet.errors import UserError
from conresnet.request import SegmentOptions
from conresnet.results import REPORT_FILE, SEGMENTATION_FILE, check_replaceable, filling, image_state

REPORT = {"conresnet": "0.1.0", "model": {"name": "m"}, "volumes_ml": {}}


def write(folder: Path, text: str, maps: tuple[str, ...] = ()) -> None:
    """Write the files of a run, all of which contain the text."""
    files = [SEGMENTATION_FILE, *(f"{name}.nii.gz" for name in maps)]
    for name in files:
        (folder / name).write_text(text)
    (folder / REPORT_FILE).write_text(json.dumps({**REPORT, "files": [*files, REPORT_FILE], "text": text}))


def fill(folder: Path, text: str = "s", maps: tuple[str, ...] = (), **options) -> Path:
    """Write results into a folder; returns the temporary folder used meanwhile."""
    with filling(folder, SegmentOptions(maps=maps), overwrite=True, **options) as temporary:
        write(temporary, text, maps)
    return temporary


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def refused(code: str, function, *arguments, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert caught.value.code == code
    return caught.value


def test_temporary_files_are_inside_the_folder(tmp_path):
    # So that it may be a mounted disk, or be inside a folder that the user cannot write to.
    assert tmp_path / "one" / "two" in fill(tmp_path / "one" / "two").parents
    assert sorted(content(tmp_path / "one" / "two")) == sorted([SEGMENTATION_FILE, REPORT_FILE])


def test_results_are_written_to_target_of_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    fill(tmp_path / "link")
    assert SEGMENTATION_FILE in content(tmp_path / "disk")


def test_results_can_be_written_to_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("."))
    assert SEGMENTATION_FILE in content(tmp_path)


def test_failed_run_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), filling(tmp_path / "one" / "two", SegmentOptions(), overwrite=False) as temporary:
        write(temporary, "new")
        raise KeyError
    assert content(tmp_path) == {}


def test_failed_run_leaves_folder_unchanged(tmp_path):
    fill(tmp_path)
    before = content(tmp_path)
    with pytest.raises(KeyError), filling(tmp_path, SegmentOptions(), overwrite=True) as temporary:
        write(temporary, "new")
        raise KeyError
    assert content(tmp_path) == before


def test_results_written_meanwhile_are_kept(tmp_path):
    def work() -> None:
        with filling(tmp_path, SegmentOptions(), overwrite=False) as temporary:
            write(temporary, "late")
            (tmp_path / SEGMENTATION_FILE).write_text("s")

    refused("results-exist", work)
    assert content(tmp_path) == {SEGMENTATION_FILE: "s"}


def test_name_that_the_system_rejects_is_reported(tmp_path):
    assert (
        "n" * 300
        in refused("cannot-write", check_replaceable, tmp_path / ("n" * 300), SegmentOptions(), overwrite=True).message
    )


def test_maps_of_an_earlier_run_are_removed(tmp_path):
    fill(tmp_path, "old", ("residual", "features"))
    fill(tmp_path, "new", ("residual",))
    assert sorted(content(tmp_path)) == sorted([SEGMENTATION_FILE, "residual.nii.gz", REPORT_FILE])


def test_files_not_listed_in_a_report_are_not_replaced(tmp_path):
    (tmp_path / SEGMENTATION_FILE).write_text("an expert's")
    (tmp_path / "features.nii.gz").write_text("an expert's")
    error = refused("results-not-ours", fill, tmp_path)
    assert error.values["files"] == SEGMENTATION_FILE
    (tmp_path / REPORT_FILE).write_text('{"volumes_ml": "another program\'s"}')
    assert REPORT_FILE in refused("results-not-ours", fill, tmp_path).values["files"]
    assert (tmp_path / SEGMENTATION_FILE).read_text() == "an expert's"


def test_broken_link_is_not_replaced(tmp_path):
    link = tmp_path / "results" / SEGMENTATION_FILE
    link.parent.mkdir()
    link.symlink_to(tmp_path / "unplugged disk")
    refused("results-exist", check_replaceable, link.parent, SegmentOptions(), overwrite=False)
    refused("results-not-ours", fill, link.parent)
    refused("output-not-folder", fill, link)
    assert link.is_symlink()


def test_file_named_like_an_unwritten_map_is_kept(tmp_path):
    (tmp_path / "features.nii.gz").write_text("an expert's")
    fill(tmp_path, "one")
    fill(tmp_path, "two")
    assert content(tmp_path)["features.nii.gz"] == "an expert's"
    assert content(tmp_path)[SEGMENTATION_FILE] == "two"


@pytest.mark.parametrize("name", ["features.nii.gz", SEGMENTATION_FILE])
def test_input_is_never_replaced(tmp_path, name):
    fill(tmp_path, "old", ("features",))
    before = content(tmp_path)
    link = tmp_path / "link.nii.gz"
    link.symlink_to(tmp_path / name)
    for image in (tmp_path / name, link):
        assert refused("input-in-the-way", fill, tmp_path, inputs=[tmp_path / "none", image]).values["file"] == str(
            image
        )
    link.unlink()
    assert content(tmp_path) == before


def test_report_without_list_of_files_owns_files_of_version_0_1(tmp_path):
    fill(tmp_path, "old", ("residual",))
    (tmp_path / REPORT_FILE).write_text(json.dumps(REPORT))
    fill(tmp_path, "new")
    assert sorted(content(tmp_path)) == sorted([SEGMENTATION_FILE, REPORT_FILE])


def kill_at(folder: Path, number: int) -> bool:
    """Run ``filling`` in a process that exits at the given change of the folder; returns whether it got that far."""
    if (child := os.fork()) == 0:
        with filling(folder, SegmentOptions(maps=("residual",)), overwrite=True) as temporary:
            write(temporary, "new", ("residual",))
            changes = itertools.count(1)

            def look(event: str, arguments: tuple) -> None:
                if event in ("os.rename", "os.remove", "os.rmdir") and next(changes) == number:
                    os._exit(9)

            sys.addaudithook(look)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_report_matches_files_next_to_it_whenever_run_is_killed(tmp_path):
    file_counts = []
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        fill(folder, "old", ("residual", "attention"))
        (folder / "notes.txt").write_text("mine")
        killed = kill_at(folder, number)
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        if REPORT_FILE in files:
            text = json.loads(files[REPORT_FILE].read_text())["text"]
            assert {path.read_text() for name, path in files.items() if name.endswith(".gz")} == {text}
        # As the command line does before it reads any input.
        check_replaceable(folder, SegmentOptions(), overwrite=True)
        # The next run finds the old results complete, unless the new ones are, and no leftovers.
        with pytest.raises(KeyError), filling(folder, SegmentOptions(), overwrite=True):
            names = {path.name for path in folder.iterdir() if path.is_file()}
            file_counts.append(len(names))
            raise KeyError
        fill(folder, "next")
        assert sorted(content(folder)) == sorted(["notes.txt", SEGMENTATION_FILE, REPORT_FILE])
        if not killed:
            break
    # The old results with the notes, then the new ones with one map fewer.
    assert number > 12 and file_counts == sorted(file_counts, reverse=True) and set(file_counts) == {5, 4}


@pytest.mark.parametrize("second", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_old_results_survive_a_failed_undo(tmp_path, monkeypatch, second):
    """For example after a second Ctrl-C, or if a disk fails twice. The next run restores them."""
    for first in range(1, 6):
        folder = tmp_path / str(first)
        folder.mkdir()
        fill(folder, "old", ("residual",))
        moves = itertools.count(1)

        def failing(source: Path, target: Path, moves=moves, first=first) -> None:
            if (number := next(moves)) >= first + 1:
                raise second
            if number == first and first > 1:
                raise KeyboardInterrupt
            os.replace(source, target)

        monkeypatch.setattr(result_folder, "move", failing)
        with pytest.raises((KeyboardInterrupt, UserError)):
            fill(folder, "new", ("residual", "attention"))
        monkeypatch.undo()
        check_replaceable(folder, SegmentOptions(), overwrite=True)
        assert {
            json.loads(text)["text"] if name == REPORT_FILE else text for name, text in content(folder).items()
        } == {"old"}
        assert sorted(content(folder)) == sorted([SEGMENTATION_FILE, "residual.nii.gz", REPORT_FILE])


def test_state_of_an_image_changes_with_any_of_its_files(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"1")
    (tmp_path / "head.mhd").write_text("header")
    (tmp_path / "head.raw").write_bytes(b"voxels")
    for image, file in (("series", "series/1.dcm"), ("series", "series/2.dcm"), ("head.mhd", "head.raw")):
        before = image_state(tmp_path / image)
        assert before == image_state(tmp_path / image) != ""
        (tmp_path / file).write_bytes(b"replaced by others")
        assert image_state(tmp_path / image) != before
    before = image_state(tmp_path / "series"), image_state(tmp_path / "head.raw")
    (tmp_path / "series" / ".DS_Store").write_bytes(b"")
    fill(tmp_path / "series", "ours", ("residual",))
    for name in ("review.csv", "report.html", "cohort.csv"):
        (tmp_path / "series" / name).write_text("ours")
    (tmp_path / "head.mhd").write_text("not part of head.raw")
    assert (image_state(tmp_path / "series"), image_state(tmp_path / "head.raw")) == before
    assert image_state(tmp_path / "none.nii") == ""


def write_pair(folder: Path) -> Path:
    header, voxels = folder / "head.hdr", folder / "head.img"
    nibabel.save(nibabel.Nifti1Pair(np.zeros((4, 5, 3), np.int16), np.eye(4)), header)
    (folder / "head.img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
    voxels.unlink()
    return folder / "head.img.gz"


def write_list(folder: Path, name: str, text: str) -> Path:
    files = [folder / f"slice{number}.raw" for number in range(3)]
    for file in files:
        file.write_bytes(bytes(20))
    (folder / name).write_text(text + "".join(f"{file.name}\n" for file in files))
    return files[-1]


META = "NDims = 3\nDimSize = 4 5 3\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = LIST\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 3\nspacings: 1 1 1\nencoding: raw\ndata file: LIST\n"


@pytest.mark.parametrize(
    ("image", "write"),
    [
        ("head.hdr", write_pair),
        ("head.mhd", lambda folder: write_list(folder, "head.mhd", META)),
        ("head.nrrd", lambda folder: write_list(folder, "head.nrrd", NRRD)),
    ],
)
def test_state_of_an_image_depends_on_all_files_with_its_voxels(tmp_path, image, write):
    file = write(tmp_path)
    before = image_state(tmp_path / image)
    assert before == image_state(tmp_path / image) != ""
    os.utime(file, (1, 1))
    assert image_state(tmp_path / image) != before


def test_folder_in_use_by_another_run_does_not_count_as_abandoned(tmp_path):
    with filling(tmp_path, SegmentOptions(), overwrite=True) as first:
        fill(tmp_path, "second")
        write(first, "first")
    assert content(tmp_path)[SEGMENTATION_FILE] == "first"
