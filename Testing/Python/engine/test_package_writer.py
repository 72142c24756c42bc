"""Writing model packages: complete, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conresnet.errors import UserError
from conresnet.files import move
from conresnet.package import ModelDescription, parse_description, store
from conresnet.package.reader import read_package
from conresnet.package.store import find_model, write_package
from engine.package_cases import WEIGHTS, document, make_folder, refusal, safetensors_bytes


@pytest.fixture
def description() -> ModelDescription:
    return parse_description(document())


@contextlib.contextmanager
def limited_file_size() -> Iterator[None]:
    """Limit the size of files that this process writes to 4 kB, which simulates a full disk.

    Not a fixture, because pytest would then write its own report under the limit.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["organ", "organ.zip", "un modèle/organ v1"])
def test_written_package_is_read_back(tmp_path: Path, description: ModelDescription, name: str) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(safetensors_bytes())
    written = write_package(description, {WEIGHTS: weights, "metrics.json": b"{}"}, tmp_path / name)
    package = read_package(tmp_path / name)
    assert package.description == written.description
    assert set(package.description.files) == {WEIGHTS, "metrics.json", "LICENSE.txt"}
    assert package.read_file(WEIGHTS) == safetensors_bytes()
    assert package.read_file("LICENSE.txt") == b"CC-BY-4.0\n"
    assert [path for path in tmp_path.rglob(".*")] == []


def test_zip_file_is_reproducible(tmp_path: Path, description: ModelDescription) -> None:
    for name in ("a.zip", "b.zip"):
        write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("name", ["organ", "organ.zip"])
def test_package_is_replaced_only_on_request(tmp_path: Path, description: ModelDescription, name: str) -> None:
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / name)
    newer = dataclasses.replace(description, version="2.0.0")
    assert name in refusal("package-exists", write_package, newer, {WEIGHTS: safetensors_bytes(9)}, tmp_path / name)
    assert read_package(tmp_path / name).description.version == "1.2.0"
    write_package(newer, {WEIGHTS: safetensors_bytes(9)}, tmp_path / name, overwrite=True)
    assert read_package(tmp_path / name).description.version == "2.0.0"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("last_move", [0, 1, 2])
@pytest.mark.parametrize("next_is_written", [False, True])
def test_no_package_is_lost_if_replacement_is_killed(
    tmp_path: Path,
    description: ModelDescription,
    monkeypatch: pytest.MonkeyPatch,
    last_move: int,
    next_is_written: bool,
) -> None:
    """The next search for models, or the next package written there, finds no leftovers."""
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ")
    moves = []

    def move_or_die(made: Path, path: Path) -> None:
        if len(moves) == last_move:
            os._exit(9)
        moves.append(path)
        move(made, path)

    newer = dataclasses.replace(description, version="2.0.0")
    if (child := os.fork()) == 0:
        monkeypatch.setattr(store, "move", move_or_die)
        monkeypatch.setattr(store.OwnedFolder, "remove", lambda folder: os._exit(9))
        write_package(newer, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ", overwrite=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if next_is_written:
        write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "other")
    else:
        monkeypatch.setenv("CONRESNET_MODELS", str(tmp_path))
        find_model("organ")
    assert read_package(tmp_path / "organ").description.version == ("2.0.0" if last_move == 2 else "1.2.0")
    assert {path.name for path in tmp_path.iterdir()} == {"organ", *(["other"] if next_is_written else [])}


@pytest.mark.parametrize("name", ["new.tar", "new.TAR.gz", "new.pth"])
def test_path_that_looks_like_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    """The package would be a folder with this name. One that exists may be replaced."""
    refusal("package-path-ending", store.check_package_path, tmp_path / name, False)
    make_folder(tmp_path / name)
    store.check_package_path(tmp_path / name, True)
    store.check_package_path(tmp_path / "hippocampus-1.0", False)


def test_other_files_are_never_replaced(tmp_path: Path, description: ModelDescription) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"1")
    (tmp_path / "notes").write_text("n", encoding="utf-8")
    for name in ("photos", "notes"):
        files = {WEIGHTS: safetensors_bytes()}
        refusal("package-path-taken", write_package, description, files, tmp_path / name, overwrite=True)
    assert (tmp_path / "photos" / "one.png").exists() and (tmp_path / "notes").exists()


def test_file_that_only_looks_like_a_package_is_never_replaced(tmp_path: Path, description: ModelDescription) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("holiday.jpg", b"1")
    (tmp_path / "notes.zip").write_text("notes", encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.json").write_text('{"my": "other json"}', encoding="utf-8")
    (tmp_path / "other" / "thesis.docx").write_bytes(b"thesis")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("photos.zip", "notes.zip", "other"):
        for overwrite in (True, False):
            files = {WEIGHTS: safetensors_bytes()}
            refusal("package-path-taken", write_package, description, files, tmp_path / name, overwrite)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["organ", "organ.zip"])
def test_package_with_user_files_is_not_replaced(tmp_path: Path, description: ModelDescription, name: str) -> None:
    files = {WEIGHTS: safetensors_bytes()}
    write_package(description, files, tmp_path / name)
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "a") as archive:
            archive.writestr("thesis.docx", b"thesis")
    else:
        (tmp_path / name / "thesis.docx").write_bytes(b"thesis")
    message = refusal("package-other-files", write_package, description, files, tmp_path / name, overwrite=True)
    assert "(thesis.docx)" in message
    if name == "organ":
        # macOS puts such files into folders.
        (tmp_path / name / "thesis.docx").rename(tmp_path / name / ".DS_Store")
        (tmp_path / name / "._model.json").write_bytes(b"mac")
        write_package(description, files, tmp_path / name, overwrite=True)


def test_damaged_package_may_be_replaced(tmp_path: Path, description: ModelDescription) -> None:
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ")
    (tmp_path / "organ" / WEIGHTS).unlink()
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ", overwrite=True)
    read_package(tmp_path / "organ")


def test_archive_that_the_reader_refuses_is_not_written(tmp_path: Path, description: ModelDescription) -> None:
    """Weights of only zeros compress like an archive bomb."""
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ.zip")
    before = (tmp_path / "organ.zip").read_bytes()
    files = {WEIGHTS: safetensors_bytes(2 * 2**20)}
    message = refusal("package-unsafe", write_package, description, files, tmp_path / "organ.zip", overwrite=True)
    assert str(tmp_path / "organ.zip") in message and ".part" not in message
    assert (tmp_path / "organ.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["organ.zip"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_no_package_is_lost_if_replacement_is_interrupted(
    tmp_path: Path, description: ModelDescription, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ")
    newer = dataclasses.replace(description, version="2.0.0")
    failures = [2]

    def move_or_fail(made: Path, path: Path) -> None:
        failures[0] -= 1
        if failures[0] in range(-lasts, 1):
            raise error
        move(made, path)

    monkeypatch.setattr(store, "move", move_or_fail)
    for lasts in (0, 1):
        failures = [2]
        with pytest.raises((UserError, KeyboardInterrupt)):
            write_package(newer, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ", overwrite=True)
        # What cannot be moved back immediately stays in the hidden folder until models are searched next.
        place = tmp_path / "organ" if not lasts else next(tmp_path.glob(".part-*")) / "replaced" / "organ"
        assert read_package(place).description.version == "1.2.0"


@pytest.mark.parametrize("name", ["../evil.txt", "code.py", "model.json", "Network.safetensors"])
def test_file_not_allowed_in_a_package_is_not_written(tmp_path: Path, description: ModelDescription, name: str) -> None:
    files = {WEIGHTS: safetensors_bytes(), name: b"{}"}
    refusal("package-description", write_package, description, files, tmp_path / "sub" / "organ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_that_are_not_safetensors_are_not_written(tmp_path: Path, description: ModelDescription) -> None:
    refusal("package-weights", write_package, description, {WEIGHTS: b"weights"}, tmp_path / "organ")
    assert list(tmp_path.iterdir()) == []


def test_invalid_description_is_not_written(tmp_path: Path, description: ModelDescription) -> None:
    wrong = dataclasses.replace(description, version="one")
    refusal("package-description", write_package, wrong, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["organ", "organ.zip"])
def test_full_disk_leaves_no_files(tmp_path: Path, description: ModelDescription, name: str) -> None:
    with pytest.raises(UserError) as caught, limited_file_size():
        write_package(description, {WEIGHTS: safetensors_bytes(2000)}, tmp_path / name)
    assert caught.value.code == "disk-full" and name in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_old_package(tmp_path: Path, description: ModelDescription) -> None:
    write_package(description, {WEIGHTS: safetensors_bytes()}, tmp_path / "organ")
    files = {WEIGHTS: safetensors_bytes(2000)}
    with limited_file_size():
        refusal("disk-full", write_package, description, files, tmp_path / "organ", overwrite=True)
    assert read_package(tmp_path / "organ").read_file(WEIGHTS) == safetensors_bytes()


def test_unwritable_folder_is_reported(tmp_path: Path, description: ModelDescription) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = {WEIGHTS: safetensors_bytes()}
    refusal("cannot-write", write_package, description, files, tmp_path / "file" / "organ")
