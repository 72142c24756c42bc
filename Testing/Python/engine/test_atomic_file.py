"""A file is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from conresnet import files
from conresnet.errors import UserError
from conresnet.files import replacing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "Bericht ä.nii.gz"
    path.write_text("old")
    return path


def contents(path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in path.parent.iterdir()}


def test_file_appears_once_complete(path):
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        assert path.read_text() == "old"
    assert contents(path) == {path.name: "new"}


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EFBIG, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EACCES, "cannot-write"),
        (errno.EROFS, "cannot-write"),
    ],
)
def test_error_of_the_system_is_reported(path, number, code):
    with pytest.raises(UserError) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert contents(path) == {path.name: "old"}


def test_any_other_error_keeps_old_file(path):
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(path) == {path.name: "old"}


@pytest.mark.parametrize(("refusals", "seconds", "kept"), [(2, 30.0, "new"), (1, 0.0, "old")])
def test_replacing_an_open_file_is_retried_on_windows(path, monkeypatch, refusals, seconds, kept):
    """Windows refuses to replace a file that a virus scanner has open."""
    left = [PermissionError(errno.EACCES, "Access is denied")] * refusals
    replace = os.replace

    def refuse(*paths):
        if left:
            raise left.pop()
        replace(*paths)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(files, "_SECONDS_TO_TRY", seconds)
    with contextlib.suppress(UserError), replacing(path) as temporary:
        temporary.write_text("new")
    assert contents(path) == {path.name: kept}


def test_partial_file_of_killed_process_is_removed_after_a_day(tmp_path: Path) -> None:
    for name in (".part-1-a[1].txt", ".part-2-a[1].txt", ".part-3-other.txt"):
        (tmp_path / name).write_text("half")
    for name in (".part-1-a[1].txt", ".part-3-other.txt"):
        os.utime(tmp_path / name, (1e9, 1e9))
    with replacing(tmp_path / "a[1].txt") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].txt", ".part-2-a[1].txt", ".part-3-other.txt"}
