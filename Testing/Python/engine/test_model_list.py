"""Where models are found, how names are resolved, and that a broken model does not hide others."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conresnet.cli import main
from conresnet.errors import UserError
from conresnet.package import store
from conresnet.package.store import find_model, install_model, list_models, model_folders
from engine.package_cases import WEIGHTS, document, make_folder, refusal
from engine.test_package_reader import make_zip


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my models"
    monkeypatch.setenv("CONRESNET_MODELS", str(folder))
    return folder


@pytest.fixture
def shipped_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    monkeypatch.setattr(store, "SHIPPED_FOLDER", folder)
    return folder


@pytest.fixture
def folders(user_folder: Path, shipped_folder: Path) -> tuple[Path, Path]:
    return user_folder, shipped_folder


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make folders unreadable. Root can read any folder, so it is simulated."""
    folders: list[Path] = []
    iterdir = Path.iterdir

    def closed(path: Path):
        if path in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    return folders.append


def test_list_is_empty_without_models(folders: tuple[Path, Path]) -> None:
    assert list_models() == []
    assert "none" in refusal("model-not-found", find_model, "organ")


def test_models_of_every_folder_are_listed_in_order(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    make_folder(shipped / "c", document(name="third"))
    make_folder(user / "b", document(name="second"))
    make_zip(user / "zipped.zip", make_folder(tmp_path / "z", document(name="zipped")))
    make_folder(tmp_path / "extra" / "a", document(name="first"))
    found = [(entry.kind, entry.name) for entry in list_models(tmp_path / "extra")]
    assert found == [("extra", "first"), ("user", "second"), ("user", "zipped"), ("shipped", "third")]
    assert find_model("zipped") == user / "zipped.zip"
    assert find_model("first", tmp_path / "extra") == tmp_path / "extra" / "a"


def test_extra_path_may_be_a_package(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    package = make_folder(tmp_path / "anything")
    assert [entry.path for entry in list_models(package)] == [package]
    refusal("models-folder-not-found", list_models, tmp_path / "nowhere")


def test_broken_package_does_not_hide_others(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    make_folder(user / "newer", document(format_version=9))
    (make_folder(user / "cut") / WEIGHTS).write_bytes(b"")
    (make_folder(user / "garbage") / "model.json").write_bytes(b"\xff")
    (user / "text.zip").write_text("no zip", encoding="utf-8")
    make_folder(shipped / "organ")
    entries = {entry.name: entry for entry in list_models()}
    problems = {name: entry.problem.code for name, entry in entries.items() if entry.problem}
    assert problems == {
        "cut": "package-truncated",
        "garbage": "package-json",
        "newer": "package-newer",
        "text.zip": "package-damaged",
    }
    assert find_model("organ") == shipped / "organ"
    refusal("package-newer", find_model, "newer")


def test_other_files_in_models_folder_are_ignored(folders: tuple[Path, Path]) -> None:
    user, _ = folders
    (user / "notes").mkdir(parents=True)
    (user / "README.md").write_text("mine", encoding="utf-8")
    make_folder(user / ".conresnet-half")
    assert list_models() == []


def test_user_model_overrides_shipped_model(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    make_folder(user / "mine", document(version="2.0.0"))
    make_folder(shipped / "organ", document(version="1.0.0"))
    mine, hidden = list_models()
    assert (mine.kind, mine.hidden_by) == ("user", None)
    assert (hidden.kind, hidden.hidden_by) == ("shipped", user / "mine")
    assert find_model("organ") == user / "mine"
    assert find_model(shipped / "organ") == shipped / "organ"


def test_broken_user_model_does_not_hide_shipped_model(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    (make_folder(user / "organ") / WEIGHTS).unlink()
    make_folder(shipped / "organ")
    assert find_model("organ") == shipped / "organ"


def test_names_refer_to_models_and_paths_to_packages(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, _ = folders
    make_folder(user / "organ")
    make_folder(tmp_path / "here" / "organ")
    monkeypatch.chdir(tmp_path / "here")
    assert find_model("organ") == user / "organ"
    assert find_model(f".{os.sep}organ") == Path("organ")


def test_home_folder_in_path_is_expanded(tmp_path: Path, user_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_folder(tmp_path / "organ")
    assert find_model("~/organ") == tmp_path / "organ"


def test_empty_name_is_not_current_folder(tmp_path: Path, user_folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "organ"))
    refusal("model-not-found", find_model, "")


@pytest.mark.parametrize("model", [None, 3, b"organ", [], {"name": "organ"}])
def test_object_that_is_not_a_model_is_refused(user_folder: Path, model: object) -> None:
    assert f"not {type(model).__name__}." in refusal("model-kind", store.read_model, model)


def test_name_too_long_for_a_file_is_reported(user_folder: Path) -> None:
    refusal("cannot-access", find_model, "x" * 5000)


def test_folder_that_cannot_be_read_is_listed(folders: tuple[Path, Path], unreadable) -> None:
    """Otherwise, a shipped model would silently replace the user's."""
    user, shipped = folders
    make_folder(shipped / "organ")
    make_folder(user / "organ", document(version="9.0.0"))
    unreadable(user)
    problem, entry = list_models()
    assert (problem.path, problem.problem.code, entry.kind) == (user, "cannot-access", "shipped")


def test_model_that_takes_the_place_of_unreadable_ones_is_reported(folders, unreadable, tmp_path, caplog) -> None:
    """The user's models folder, or a damaged model in it, may hold a newer version."""
    user, shipped = folders
    make_folder(shipped / "organ")
    make_folder(user / "organ", document(version="9.0.0"))
    make_folder(user / "other", document(name="other", format_version=99))
    assert find_model("organ") == user / "organ" and not caplog.messages
    (user / "organ" / WEIGHTS).unlink()
    assert find_model("organ") == shipped / "organ"
    (message,) = caplog.messages
    assert str(user / "organ") in message and WEIGHTS in message and str(shipped / "organ") in message
    caplog.clear()
    make_zip(user / "organ.zip", make_folder(tmp_path / "packed")).write_bytes(b"PK")
    shutil.rmtree(user / "organ")
    assert find_model("organ") == shipped / "organ" and "organ.zip" in caplog.text
    caplog.clear()
    unreadable(user)
    assert find_model("organ") == shipped / "organ"
    (message,) = caplog.messages
    assert f"{user} cannot be accessed" in message and str(shipped / "organ") in message


def test_similar_name_is_suggested(folders: tuple[Path, Path]) -> None:
    make_folder(folders[0] / "organ")
    assert 'did you mean "organ"?' in refusal("model-not-found-near", find_model, "Organ")
    assert "models are: organ" in refusal("model-not-found", find_model, "brain/tumor")


def test_several_folders_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONRESNET_MODELS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    make_folder(tmp_path / "two" / "organ")
    assert find_model("organ") == tmp_path / "two" / "organ"
    assert install_model(tmp_path / "two" / "organ").path == tmp_path / "one" / "organ"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "conresnet/models"),
        ("win32", "LOCALAPPDATA", "conresnet/models"),
        ("darwin", "HOME", "Library/Application Support/conresnet/models"),
    ],
)
def test_user_folder_follows_platform_conventions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, expected: str
) -> None:
    monkeypatch.delenv("CONRESNET_MODELS")
    monkeypatch.setattr(store.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert dict(model_folders())["user"] == tmp_path / expected


@pytest.mark.parametrize("archived", [False, True])
def test_model_is_installed_under_its_name(tmp_path: Path, user_folder: Path, archived: bool) -> None:
    source = make_folder(tmp_path / "download")
    if archived:
        source = make_zip(tmp_path / "download.zip", source)
    package = install_model(source)
    assert package.path == user_folder / "organ" == find_model("organ")
    # The command has no option for it.
    assert "another name" not in refusal("package-exists", install_model, source)
    install_model(source, overwrite=True)
    assert [path.name for path in user_folder.iterdir()] == ["organ"]


def test_installing_over_the_name_of_a_shipped_model_is_reported(tmp_path: Path, folders, capsys) -> None:
    user_folder, shipped_folder = folders
    source, shipped = make_folder(tmp_path / "download"), make_folder(shipped_folder / "organ")
    assert main(["models", "install", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"as {user_folder / 'organ'}.") and f"instead of {shipped}," in lines[1]


@pytest.mark.parametrize("archived", [False, True])
def test_damaged_installed_model_can_be_removed(folders, monkeypatch, capsys, archived: bool) -> None:
    user_folder, shipped_folder = folders
    shipped = make_folder(shipped_folder / "organ")
    package = make_folder(user_folder / "organ")
    other = make_folder(user_folder / "other", document(name="other"))
    (package / WEIGHTS).unlink()
    if archived:
        package = make_zip(user_folder / "organ.zip", package)
        shutil.rmtree(user_folder / "organ")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert main(["models", "remove", package.name]) == 130 and package.exists(), "not confirmed"
    assert main(["models", "remove", package.name, "--yes"]) == 0
    assert not package.exists() and other.exists() and find_model("organ") == shipped
    capsys.readouterr()
    for name in ("organ", str(shipped)):
        assert main(["models", "remove", name, "--yes"]) == 2 and shipped.exists()
        assert UserError("model-not-removable", path=str(shipped)).message in capsys.readouterr().err
    monkeypatch.chdir(user_folder)
    assert main(["models", "remove", "./other", "--yes"]) == 0 and not other.exists()


@pytest.mark.parametrize("archived", [False, True])
def test_nothing_is_installed_into_a_package(tmp_path: Path, user_folder: Path, capsys, archived: bool) -> None:
    """CONRESNET_MODELS may name a package, which is then used. A model inside it would not even be found."""
    source = make_folder(tmp_path / "download", document(name="other"))
    make_folder(user_folder)
    if archived:
        make_zip(tmp_path / "one.zip", user_folder)
        shutil.rmtree(user_folder)
        (tmp_path / "one.zip").rename(user_folder)
    refusal("models-folder-not-folder", install_model, source)
    assert find_model("organ") == user_folder and (archived or not (user_folder / "other").exists())
    assert main(["models", "list"]) == 0
    assert "CONRESNET_MODELS" in capsys.readouterr().out


@pytest.mark.parametrize("archived", [False, True])
def test_installed_model_replaces_model_with_same_name(tmp_path: Path, user_folder: Path, archived: bool) -> None:
    """Regardless of the old folder's name, which may come first in the order and hide the new model."""
    older = make_folder(user_folder / "a", document(version="1.0.0"))
    if archived:
        older = make_zip(user_folder / "a.zip", older)
        shutil.rmtree(user_folder / "a")
    source = make_folder(tmp_path / "download", document(version="2.0.0"))
    assert str(older) in refusal("package-exists", install_model, source)
    assert install_model(source, overwrite=True).path == older == find_model("organ")
    assert list(user_folder.iterdir()) == [older] and list_models()[0].description.version == "2.0.0"


def test_link_to_a_model_is_not_replaced(tmp_path: Path, user_folder: Path) -> None:
    source = make_folder(tmp_path / "download")
    user_folder.mkdir()
    (user_folder / "organ").symlink_to(source)
    refusal("package-exists", install_model, source)
    assert "another name" not in refusal("package-is-link", install_model, source, overwrite=True)


def test_broken_model_is_not_installed(tmp_path: Path, user_folder: Path) -> None:
    source = make_folder(tmp_path / "download")
    (source / WEIGHTS).write_bytes(b"")
    refusal("package-truncated", install_model, source)
    assert not user_folder.exists()


def test_only_packages_in_the_models_folder_are_removed(user_folder: Path, capsys) -> None:
    """Neither other folders there, nor what the folder itself is in."""
    (user_folder / "notes").mkdir(parents=True)
    for path in (user_folder / "notes", f"{user_folder}/..", f"{user_folder}/notes/.."):
        assert main(["models", "remove", str(path), "--yes"]) == 2 and (user_folder / "notes").exists()
        assert UserError("model-not-removable", path=str(path)).message in capsys.readouterr().err


@pytest.mark.parametrize("is_damaged", [False, True])
def test_model_is_not_removed_along_with_other_files(user_folder: Path, capsys, monkeypatch, is_damaged: bool) -> None:
    package = make_folder(user_folder / "organ")
    if is_damaged:
        (package / "model.json").write_text("{", encoding="utf-8")
        (package / "LICENSE.txt").touch()
    (package / ".DS_Store").touch()
    (package / "my notes").mkdir()
    (package / "my notes" / "thesis.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for arguments in ((), ("--yes",)):
        assert main(["models", "remove", "organ", *arguments]) == 2
        printed = capsys.readouterr()
        assert "(my notes)" in printed.err and not printed.out, "it is refused before the user is asked"
    refusal("model-other-files", store.remove_model, package)
    assert (package / WEIGHTS).exists() and (package / "my notes" / "thesis.txt").exists()
    shutil.rmtree(package / "my notes")
    assert main(["models", "remove", "organ", "--yes"]) == 0 and not package.exists()


def test_link_to_a_model_is_removed_without_its_files(tmp_path: Path, user_folder: Path) -> None:
    source = make_folder(tmp_path / "download")
    (source / "notes.txt").touch()
    user_folder.mkdir()
    (user_folder / "organ").symlink_to(source)
    assert main(["models", "remove", "organ", "--yes"]) == 0
    assert not list(user_folder.iterdir()) and len(list(source.iterdir())) == 3
