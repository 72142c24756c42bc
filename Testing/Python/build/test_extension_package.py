"""The extension as installed and packaged by CMake: complete, and with the layout that Slicer's installer requires."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

MODULES = ["ConResSegmentation", "ConResTraining"]


def files_below(folder: Path) -> set[str]:
    """Every file below ``folder`` by its relative path, without the files that Python creates."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def list_in_cmake(repository: Path, module: str, variable: str) -> list[str]:
    """File names in ``set(<variable> ...)`` in a module's CMakeLists.txt."""
    text = (repository / module / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"set\({variable}\s(.*?)\)", text, re.DOTALL)
    assert found, f"{module}/CMakeLists.txt does not set {variable}"
    return found.group(1).replace("${MODULE_NAME}", module).split()


@pytest.mark.parametrize("module", MODULES)
def test_every_file_of_a_module_is_listed_in_cmake(repository: Path, module: str) -> None:
    present = files_below(repository / module) - {"CMakeLists.txt"}
    scripts = list_in_cmake(repository, module, "MODULE_PYTHON_SCRIPTS")
    resources = list_in_cmake(repository, module, "MODULE_PYTHON_RESOURCES")
    python_files = {name for name in present if name.endswith(".py")}
    assert sorted(python_files - set(scripts)) == [], "not in MODULE_PYTHON_SCRIPTS"
    assert sorted(present - python_files - set(resources)) == [], "not in MODULE_PYTHON_RESOURCES"
    assert sorted(set(scripts + resources) - present) == [], "listed but missing"
    assert scripts == sorted(scripts) and resources == sorted(resources), "keep the lists sorted"


def test_installed_files_are_exactly_those_of_the_modules(repository: Path, extension) -> None:
    sources: dict[str, Path] = {}
    for module in MODULES:
        names = files_below(repository / module) - {"CMakeLists.txt"}
        assert not names & sources.keys(), "installed, all modules share one folder"
        sources |= {name: repository / module / name for name in names}
    assert files_below(extension.modules) == sources.keys()
    for name, source in sources.items():
        assert source.read_bytes() == (extension.modules / name).read_bytes(), name


def test_all_installed_files_are_tracked_by_git(repository: Path, extension) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *MODULES], cwd=repository, capture_output=True, text=True, check=True
    )
    tracked = {name.split("/", 1)[1] for name in listed.stdout.split("\0") if name}
    assert sorted(files_below(extension.modules) - tracked) == []


def members(archive: Path) -> dict[str, bytes]:
    """Files of a .tar.gz or .zip by their path in the archive."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as opened:
        assert all(member.isfile() or member.isdir() for member in opened), "links and devices are not allowed"
        return {member.name: opened.extractfile(member).read() for member in opened if member.isfile()}


@pytest.mark.parametrize(("built", "suffix"), [("extension", ".tar.gz"), ("windows_extension", ".zip")])
def test_archive_can_be_installed_from_a_file(built: str, suffix: str, request: pytest.FixtureRequest) -> None:
    built_extension = request.getfixturevalue(built)
    slicer = built_extension.slicer
    assert re.fullmatch(
        rf"[\w.]+-(linux|win)-amd64-ConResNet-git\w+-\d{{4}}-\d\d-\d\d{re.escape(suffix)}", built_extension.archive.name
    )
    files = members(built_extension.archive)
    assert len({PurePosixPath(name).parts[0] for name in files}) == 1, "exactly one top-level folder"
    inside = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in files}
    assert inside == files_below(built_extension.installed)
    scripted = f"lib/Slicer-{slicer}/qt-scripted-modules/"
    description = f"share/Slicer-{slicer}/ConResNet.s4ext"
    assert {name for name in inside if not name.startswith(scripted)} == {description}
    assert {f"{scripted}{module}.py" for module in MODULES} <= inside


def test_extension_description_has_one_key_and_value_per_line(extension) -> None:
    text = (extension.installed / "share" / "Slicer-5.12" / "ConResNet.s4ext").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = dict(line.split(" ", 1) for line in lines)
    assert len(values) == len(lines), "duplicate key"
    assert values["depends"] == "PyTorch"
    assert values["enabled"] == "1"
    assert values["homepage"].startswith("https://")
    assert all(value.strip() for value in values.values())
