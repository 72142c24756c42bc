"""The folder of a case's results: where the temporary one lies meanwhile, and that it holds all of them or none."""

from pathlib import Path

import pytest

from conresnet.cli import cases
from conresnet.cli.cases import REPORT_FILE, SEGMENTATION_FILE, check_replaceable, filling
from conresnet.errors import UserError


def fill(folder: Path) -> Path:
    """Results in a folder; where they lay meanwhile."""
    with filling(folder, overwrite=True) as temporary:
        (temporary / SEGMENTATION_FILE).write_text("s")
        (temporary / REPORT_FILE).write_text("r")
    assert sorted(path.name for path in folder.iterdir()) == sorted([SEGMENTATION_FILE, REPORT_FILE])
    return temporary


def test_a_folder_that_is_there_is_filled_from_within(tmp_path):
    # So that it may be a disk of its own, or lie in a folder that this user cannot write to.
    (tmp_path / "there").mkdir()
    assert fill(tmp_path / "there").parent == tmp_path / "there"
    assert fill(tmp_path / "one" / "two").parent == tmp_path


def test_a_link_is_filled_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert fill(tmp_path / "link").resolve().parent == tmp_path / "disk"


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("."))


def test_the_root_of_all_folders(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cases.tempfile, "mkdtemp", lambda prefix, dir: asked.append(dir) or str(tmp_path / "temporary"))
    monkeypatch.setattr(cases, "_move", lambda temporary, folder: None)
    with filling(Path("/"), overwrite=False):
        pass
    assert asked == [Path("/")]


def test_results_that_came_meanwhile_are_kept(tmp_path):
    with pytest.raises(UserError, match="already holds results"), filling(tmp_path, overwrite=False) as temporary:
        (temporary / SEGMENTATION_FILE).write_text("late")
        fill(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / SEGMENTATION_FILE).rename(tmp_path / SEGMENTATION_FILE)
    assert (tmp_path / SEGMENTATION_FILE).read_text() == "s"


def test_a_name_that_the_system_does_not_take_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        check_replaceable(tmp_path / ("n" * 300), overwrite=True)


def test_work_that_fails_leaves_the_folder_as_it_was(tmp_path):
    fill(tmp_path)
    with pytest.raises(KeyError), filling(tmp_path, overwrite=True) as temporary:
        (temporary / SEGMENTATION_FILE).write_text("new")
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([SEGMENTATION_FILE, REPORT_FILE])
    assert (tmp_path / SEGMENTATION_FILE).read_text() == "s"
