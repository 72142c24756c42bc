"""Reading model packages: valid ones are read, damaged and malicious ones are refused, and no code is executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conresnet.errors import UserError
from conresnet.package import reader
from conresnet.package.reader import read_package
from engine.package_cases import WEIGHTS, document, make_folder, refusal, safetensors_bytes


def make_zip(path: Path, folder: Path, top: str = "") -> Path:
    """Create a zip file of a package folder, below `top` if it is given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in folder.iterdir():
            # On Windows, ZipInfo would turn backslashes in the name into slashes.
            item = zipfile.ZipInfo()
            item.filename = item.orig_filename = f"{top}{file.name}"
            made.writestr(item, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def add_to_zip(path: Path, name: str | zipfile.ZipInfo, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "modèle d'organe")


@pytest.fixture
def archived(tmp_path: Path, folder: Path) -> Path:
    return make_zip(tmp_path / "modèle d'organe.zip", folder)


def test_folder_is_read(folder: Path) -> None:
    package = read_package(folder)
    assert package.description.name == "organ"
    assert package.read_file(WEIGHTS) == safetensors_bytes()
    assert package.tensor_shapes(WEIGHTS) == {"weight": (8,)}
    assert package.count_parameters(WEIGHTS) == 8


@pytest.mark.parametrize("top", ["", "organ/", "organ\\", "./", "./organ/"])
def test_zip_file_is_read_without_unpacking(tmp_path: Path, folder: Path, top: str) -> None:
    package = read_package(make_zip(tmp_path / "organ.zip", folder, top))
    assert package.description == read_package(folder).description
    assert package.read_file(WEIGHTS) == safetensors_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "organ.zip"}


def test_files_added_by_macos_are_ignored(tmp_path: Path, folder: Path) -> None:
    path = make_zip(tmp_path / "organ.zip", folder, "organ/")
    add_to_zip(path, "__MACOSX/organ/._model.json")
    add_to_zip(path, "organ/.DS_Store")
    assert read_package(path).description.name == "organ"


def test_other_files_in_an_archive_may_have_any_name(archived: Path) -> None:
    for name in ("notes: draft.txt", "more\\notes.txt", "folder\\"):
        item = zipfile.ZipInfo()
        item.filename = item.orig_filename = name
        add_to_zip(archived, item)
    assert read_package(archived).description.name == "organ"


def test_missing_package_is_reported(tmp_path: Path) -> None:
    assert "nowhere" in refusal("package-not-found", read_package, tmp_path / "nowhere")


def test_folder_that_is_not_a_package_is_refused(tmp_path: Path) -> None:
    assert "no model.json" in refusal("package-without-description", read_package, tmp_path)


@pytest.mark.parametrize("name", ["weights.pth", "last.ckpt", "a.safetensors", "renamed.zip"])
def test_checkpoint_is_not_a_damaged_package(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as made:
        made.writestr("archive/data.pkl", b"")
    assert name in refusal("model-is-checkpoint", read_package, tmp_path / name)


def test_checkpoint_in_old_format_is_recognized_by_name(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02\x8a")
    refusal("model-is-checkpoint", read_package, tmp_path / "weights.pth")


def test_training_run_gets_a_hint_to_export(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"")
    refusal("import-of-run", read_package, tmp_path)


def test_file_that_is_not_a_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"not a zip file")
    assert "model.zip" in refusal("package-damaged", read_package, path)


def test_description_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "model.json").write_bytes(b"\x00\x01")
    assert "model.json" in refusal("package-json", read_package, folder)


def test_description_of_absurd_size_is_refused(folder: Path) -> None:
    with (folder / "model.json").open("wb") as file:
        file.truncate(reader.MOST_DESCRIPTION_BYTES + 1)
    refusal("package-unsafe", read_package, folder)


def test_missing_weights_are_reported(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refusal("package-file-missing", read_package, folder, verify=False)


def test_lfs_pointer_and_web_page_are_identified(tmp_path: Path, folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    (folder / WEIGHTS).write_bytes(pointer)
    assert WEIGHTS in refusal("file-lfs-pointer", read_package, folder, verify=False)
    (tmp_path / "model.zip").write_bytes(b"<!DOCTYPE html><html></html>")
    refusal("file-web-page", read_package, tmp_path / "model.zip")


def test_weights_not_listed_in_description_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "organ", files={"other.safetensors": safetensors_bytes()})
    assert "not among the files" in refusal("package-description", read_package, folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors_bytes()[:-1])
    message = refusal("package-truncated", read_package, folder, verify=False)
    assert WEIGHTS in message and str(folder) in message


def test_wrong_checksum_is_found_on_reading_and_on_verifying(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors_bytes()[:-1] + b"\x01")
    assert WEIGHTS in refusal("package-checksum", read_package, folder)
    package = read_package(folder, verify=False)
    refusal("package-checksum", package.read_file, WEIGHTS)


@pytest.mark.parametrize("name", ["model.json", "organ.tar.gz", "image.nii"])
def test_file_that_is_not_a_zip_file_is_not_called_damaged(folder: Path, name: str) -> None:
    if name != "model.json":
        (folder / name).write_bytes(b"\x1f\x8b of any kind")
    assert name in refusal("package-not-zip", read_package, folder / name)


def test_truncated_zip_file_is_refused(archived: Path) -> None:
    archived.write_bytes(archived.read_bytes()[:-40])
    assert "zip" in refusal("package-damaged", read_package, archived)


def test_zip_file_damaged_in_the_middle_is_refused(archived: Path) -> None:
    data = bytearray(archived.read_bytes())
    place = data.index(WEIGHTS.encode()) + len(WEIGHTS) + 4
    data[place : place + 20] = bytes(20)
    archived.write_bytes(data)
    assert "modèle" in refusal("package-damaged", read_package, archived)


def test_damaged_archive_is_detected_with_any_compression(tmp_path: Path, folder: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "organ.zip", "w", method) as made:
            made.write(folder / "model.json", "model.json")
        assert "organ" in refusal("package-file-missing", read_package, tmp_path / "organ.zip")
        data = bytearray((tmp_path / "organ.zip").read_bytes())
        data[60:120] = b"\xff" * 60
        (tmp_path / "organ.zip").write_bytes(data)
        refusal("package-damaged", read_package, tmp_path / "organ.zip")


class Exploding:
    def __reduce__(self):
        return os.abort, ()


def test_pickle_named_as_weights_is_not_executed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "organ", files={WEIGHTS: pickle.dumps(Exploding()) + bytes(100)})
    assert "safetensors" in refusal("package-weights", read_package, folder)


def one_tensor(shape: str, name: str = "a", offsets: str = "[0, 0]", more: str = "") -> bytes:
    header = f'{{"{name}": {{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}{more}}}'.encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0{}",
        b"\xff" * 8 + b"{}",
        safetensors_bytes() + b"extra",
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x0b\0\0\0\0\0\0\0" + b'{"a": null}',
        pytest.param(one_tensor("[" + "2," * 200_000 + "0]"), id="many dimensions"),
        pytest.param(one_tensor("[0.5, 0]"), id="half a row"),
        pytest.param(one_tensor("[0]", offsets="[0.0, 0]"), id="fractional offset"),
        pytest.param(one_tensor("[0]", offsets="[0, false]"), id="offset is not a number"),
        pytest.param(one_tensor("[0]", name="\\ud800"), id="name is not text"),
        pytest.param(one_tensor("[0]", more=', "__metadata__": {"a": 1}'), id="metadata are not text"),
        pytest.param(one_tensor("[0]", more=', "a": {}'), id="duplicate tensor"),
    ],
)
def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    folder = make_folder(tmp_path / "organ", files={WEIGHTS: data})
    refusal("package-weights", read_package, folder)


NAMES = ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:/evil.txt", "evil\0.txt"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_path_traversal_in_zip_file_is_refused(archived: Path, name: str) -> None:
    info = zipfile.ZipInfo("placeholder" if "\0" in name else name)
    info.filename = name
    add_to_zip(archived, info)
    assert "leads out" in refusal("package-unsafe", read_package, archived)


def test_link_in_zip_file_is_refused(archived: Path) -> None:
    link = zipfile.ZipInfo("LICENSE.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "link" in refusal("package-unsafe", read_package, add_to_zip(archived, link, b"/etc/passwd"))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_link_in_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(safetensors_bytes())
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert WEIGHTS in refusal("package-unsafe", read_package, folder)


def test_path_traversal_in_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    data = safetensors_bytes()
    (tmp_path / WEIGHTS).write_bytes(data)
    text = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    text["files"][f"../{WEIGHTS}"] = entry
    (folder / "model.json").write_text(json.dumps(text), encoding="utf-8")
    assert "../" in refusal("package-description", read_package, folder)


def test_duplicate_name_in_zip_file_is_refused(archived: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        add_to_zip(archived, "model.json")
    assert "twice" in refusal("package-unsafe", read_package, archived)


def test_two_packages_in_one_zip_file_are_refused(archived: Path) -> None:
    assert "2 files named" in refusal("package-damaged", read_package, add_to_zip(archived, "second/model.json"))


def test_archive_bomb_is_refused_without_reading(archived: Path) -> None:
    add_to_zip(archived, "bomb.txt", bytes(reader.SWELLING_IGNORED_BYTES + 1))
    assert "expand" in refusal("package-unsafe", read_package, archived)


def test_archive_with_too_many_files_is_refused(archived: Path) -> None:
    with zipfile.ZipFile(archived, "a") as made:
        for index in range(reader.MOST_MEMBERS):
            made.writestr(f"{index}.txt", b"")
    assert "files" in refusal("package-unsafe", read_package, archived)


def test_archive_with_excessive_total_size_is_refused(archived: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_UNPACKED_BYTES", 100)
    assert "expand" in refusal("package-unsafe", read_package, archived)


def test_zip_member_larger_than_declared_is_refused(tmp_path: Path, folder: Path) -> None:
    path = make_zip(tmp_path / "organ.zip", folder)
    honest = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    honest["files"][WEIGHTS]["bytes"] -= 1
    (folder / "model.json").write_text(json.dumps(honest), encoding="utf-8")
    refusal("package-truncated", read_package, make_zip(path, folder))


def test_encrypted_zip_file_is_refused(archived: Path) -> None:
    data = bytearray(archived.read_bytes())
    # Flag bits are at offset 8 in each entry of the central directory, which begins with PK 1 2.
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archived.write_bytes(data)
    assert "encrypted" in refusal("package-unsafe", read_package, archived)


@given(st.data())
def test_any_damaged_zip_file_is_read_correctly_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = make_zip(
        tmp_path_factory.mktemp("zip") / "organ.zip", make_folder(tmp_path_factory.mktemp("made") / "organ")
    )
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])
    try:
        assert read_package(path).read_file(WEIGHTS) == safetensors_bytes()
    except UserError as error:
        assert "\n" not in error.message


def test_package_with_newer_format_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "organ", document(format_version=99, charm=1))
    assert "update ConResNet" in refusal("package-newer", read_package, folder)


def test_reader_imports_only_the_standard_library(repository: Path) -> None:
    code = (
        "import sys, conresnet.package, conresnet.package.store; print({'torch', 'numpy', 'click'} & set(sys.modules))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=repository / "ConResSegmentation", capture_output=True, text=True, timeout=60
    )
    assert finished.stdout.strip() == "set()", finished.stderr


@pytest.mark.parametrize("archived", [False, True])
def test_package_without_read_permission_is_not_called_damaged(tmp_path: Path, monkeypatch, archived: bool) -> None:
    """Root may read any file, so the error is simulated."""
    path = make_folder(tmp_path / "organ")
    if archived:
        path = make_zip(tmp_path / "organ.zip", path)

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(*((zipfile, "ZipFile") if archived else (Path, "open")), refuse)
    assert str(path) in refusal("cannot-access", read_package, path)
