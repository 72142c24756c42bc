"""The repository does not depend on a specific computer, and its descriptions are consistent."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from conresnet import __version__

# Assembled from parts so that this file does not match its own search.
MACHINE_PATH = re.compile(r"(^|[^.A-Za-z0-9_-])/(" + "|".join(["work", "root", "home", "tmp"]) + r")/[A-Za-z.]")
SHARED_FOLDER = "/".join(["..", "shared"])
CATALOG_FIELDS = {
    "$schema",
    "build_dependencies",
    "build_subdirectory",
    "category",
    "enabled",
    "scm_revision",
    "scm_type",
    "scm_url",
    "tier",
}
ICONS = [
    "ConResNet.png",
    "ConResSegmentation/Resources/Icons/ConResSegmentation.png",
    "ConResTraining/Resources/Icons/ConResTraining.png",
]


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    """Files tracked by git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    return [repository / name for name in listed.stdout.split("\0") if name and (repository / name).is_file()]


def text_lines(path: Path) -> list[str]:
    """Lines of a text file; none for a binary file."""
    content = path.read_bytes()
    return [] if b"\0" in content else content.decode("utf-8").splitlines()


def requirement_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_no_tracked_file_contains_machine_specific_paths(tracked: list[Path], repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{number}"
        for path in tracked
        if path.name != ".gitignore"
        for number, line in enumerate(text_lines(path), 1)
        if MACHINE_PATH.search(line) or SHARED_FOLDER in line
    ]
    assert found == []


def test_repository_is_small(tracked: list[Path], repository: Path) -> None:
    """The Extensions Index accepts repositories of up to 100 MB; a shipped model may have up to 12 MB."""
    assert sum(path.stat().st_size for path in tracked) < 60e6
    assert [str(path.relative_to(repository)) for path in tracked if path.stat().st_size > 12e6] == []


def test_readme_names_source_and_license_of_every_real_case(data_folder: Path) -> None:
    readme = (data_folder / "README.md").read_text(encoding="utf-8")
    for folder in data_folder.iterdir():
        if folder.is_dir():
            section = re.search(rf"## {folder.name}\n(.*?)(\n## |\Z)", readme, re.DOTALL)
            assert section and "License:" in section.group(1) and "Source:" in section.group(1), folder.name


@pytest.mark.parametrize("icon", ICONS)
def test_icons_are_128_by_128_png_files(repository: Path, icon: str) -> None:
    header = (repository / icon).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (128, 128)


def test_catalog_entry_has_fields_of_extensions_index(repository: Path) -> None:
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    assert {"$schema", "category", "scm_url"} <= entry.keys() <= CATALOG_FIELDS
    assert entry["category"] == "Segmentation"
    assert entry["tier"] in {1, 3, 5}


def test_catalog_entry_lists_dependencies(repository: Path) -> None:
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    (depends,) = re.findall(r'set\(EXTENSION_DEPENDS "([^"]*)"\)', lists)
    assert entry["build_dependencies"] == depends.split() == ["PyTorch"]


def test_name_and_home_page_are_consistent(repository: Path) -> None:
    home = "https://github.com/ConResNet/SlicerConResNet"
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    assert project["urls"]["Homepage"] == home
    assert entry["scm_url"] == f"{home}.git"
    assert f'set(EXTENSION_HOMEPAGE "{home}")' in lists
    assert "project(ConResNet)" in lists
    assert home in (repository / "README.md").read_text(encoding="utf-8")


def test_screenshots_of_the_catalog_exist(repository: Path) -> None:
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    pictures = re.findall(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/main/([\w./-]+\.png)", lists)
    assert len(pictures) >= 3
    assert [name for name in pictures if not (repository / name).is_file()] == []


def test_requirements_are_pinned_exactly_once_and_cover_the_distribution(repository: Path) -> None:
    folder = repository / "requirements"
    names = ("torch.txt", "engine.txt", "training.txt", "tests.txt", "constraints.txt")
    lines = {name: requirement_lines(folder / name) for name in names}
    lines["benchmarks"] = requirement_lines(repository / "Testing" / "Benchmarks" / "requirements.txt")
    for name, entries in lines.items():
        assert [entry for entry in entries if not re.fullmatch(r"[\w.-]+==[\w.]+", entry)] == [], name
    pinned = {name: [normalized(entry.split("==")[0]) for entry in entries] for name, entries in lines.items()}
    counts = Counter(package for packages in pinned.values() for package in packages)
    assert [package for package, count in counts.items() if count > 1] == []
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def bare(requirements: list[str]) -> set[str]:
        return {normalized(re.split(r"[<>=!~ ]", requirement)[0]) for requirement in requirements}

    assert bare(project["dependencies"]) == {*pinned["torch.txt"], *pinned["engine.txt"]}
    assert bare(project["optional-dependencies"]["training"]) == set(pinned["training.txt"])


def normalized(package: str) -> str:
    """A package name, normalized as by pip."""
    return re.sub(r"[-_.]+", "-", package).lower()


def test_workflow_tests_all_supported_python_versions(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    assert tested == [f"3.{item.removeprefix(prefix)}" for item in project["classifiers"] if item.startswith(prefix)]
    assert project["requires-python"] == f">={tested[0]}"
    steps = workflow["jobs"]["test"]["steps"]
    assert any("requirements/debian.txt" in step.get("run", "") for step in steps)
    assert any(step.get("with", {}).get("python-version") == "${{ matrix.python }}" for step in steps)


def test_version_has_three_numbers_and_marks_development(repository: Path) -> None:
    """Results, engines and workers are compared by version, so development versions must differ from releases."""
    number, dev = re.fullmatch(r"(\d+\.\d+\.\d+)(\.dev\d+)?", __version__).groups()
    released = re.findall(r"^## \[(\d.*)\] - ", (repository / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (number in released) == (dev is None)


def test_release_has_archives_for_all_supported_slicer_versions(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert workflow[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads "on" as true
    steps = "\n".join(step.get("run", "") for step in workflow["jobs"]["release"]["steps"])
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    (newest,) = re.findall(r"^SLICER_VERSION \?= (.+)$", makefile, re.MULTILINE)
    (versions,) = re.findall(r"for version in (.+); do", steps)
    assert versions.split()[-1] == newest and "make PYTHON=python SLICER_VERSION=" in steps and "dist/*" in steps
    assert "requirements/debian.txt" in steps, "make refuses to work without these libraries"


def test_license_is_apache_2_with_copyright_line(repository: Path) -> None:
    text = (repository / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert re.search(r"^ +Copyright 20\d\d ConResNet for 3D Slicer contributors$", text, re.MULTILINE)


def test_distribution_lists_license_of_every_shipped_model(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    models = list((repository / "ConResSegmentation" / "conresnet" / "models").glob("*/model.json"))
    licenses = {json.loads(path.read_text(encoding="utf-8"))["license"] for path in models}
    assert licenses and set(project["license"].split(" AND ")) == {"Apache-2.0", *licenses}


def test_real_cases_are_unchanged(data_folder: Path) -> None:
    """A case edited by accident could still be read, and would silently change what the tests measure."""
    found = {
        path.relative_to(data_folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data_folder.rglob("*.nii.gz")
    }
    listed = (data_folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert found == {name: digest for digest, name in (line.split(maxsplit=1) for line in listed)}
