"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from conresnet.atomic_file import replacing
from conresnet.errors import UserError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "Bericht ä.nii.gz"
    path.write_text("old")
    return path


def contents(path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in path.parent.iterdir()}


def test_the_file_appears_when_all_went_well(path):
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
def test_what_the_system_refuses_is_one_sentence(path, number, code):
    with pytest.raises(UserError) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert contents(path) == {path.name: "old"}


def test_any_other_fault_leaves_the_old_file_too(path):
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(path) == {path.name: "old"}
