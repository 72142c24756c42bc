"""The repository as a stranger finds it: nothing of one machine in it, and what describes it agrees with itself."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import tomllib
from pathlib import Path

import pytest

from conresnet import __version__

# Put together so that this file does not hold what it looks for.
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
    """The files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    return [repository / name for name in listed.stdout.split("\0") if name and (repository / name).is_file()]


def text_lines(path: Path) -> list[str]:
    """The lines of a text file; of a binary one, none."""
    content = path.read_bytes()
    return [] if b"\0" in content else content.decode("utf-8").splitlines()


def requirement_lines(repository: Path, name: str) -> list[str]:
    lines = (repository / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_no_tracked_file_names_a_path_of_one_machine(tracked: list[Path], repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{number}"
        for path in tracked
        if path.name != ".gitignore"
        for number, line in enumerate(text_lines(path), 1)
        if MACHINE_PATH.search(line) or SHARED_FOLDER in line
    ]
    assert found == []


def test_the_repository_stays_small(tracked: list[Path], repository: Path) -> None:
    """The Extensions Index takes repositories up to 100 MB; a shipped model may have 12 of them."""
    assert sum(path.stat().st_size for path in tracked) < 40e6
    assert [str(path.relative_to(repository)) for path in tracked if path.stat().st_size > 12e6] == []


def test_every_real_case_has_its_license_written_beside_it(data_folder: Path) -> None:
    readme = (data_folder / "README.md").read_text(encoding="utf-8")
    for folder in data_folder.iterdir():
        if folder.is_dir():
            section = re.search(rf"## {folder.name}\n(.*?)(\n## |\Z)", readme, re.DOTALL)
            assert section and "License:" in section.group(1) and "Source:" in section.group(1), folder.name


@pytest.mark.parametrize("icon", ICONS)
def test_icons_are_png_of_128_by_128(repository: Path, icon: str) -> None:
    header = (repository / icon).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (128, 128)


def test_the_catalog_entry_has_the_fields_that_the_extensions_index_asks_for(repository: Path) -> None:
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    assert {"$schema", "category", "scm_url"} <= entry.keys() <= CATALOG_FIELDS
    assert entry["category"] == "Segmentation"
    assert entry["tier"] in {1, 3, 5}


def test_the_catalog_has_the_same_extensions_built_first_as_are_installed_with_ours(repository: Path) -> None:
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    (depends,) = re.findall(r'set\(EXTENSION_DEPENDS "([^"]*)"\)', lists)
    assert entry["build_dependencies"] == depends.split() == ["PyTorch"]


def test_one_home_page_and_one_name_everywhere(repository: Path) -> None:
    home = "https://github.com/ConResNet/SlicerConResNet"
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((repository / "ConResNet.json").read_text(encoding="utf-8"))
    assert project["urls"]["Homepage"] == home
    assert entry["scm_url"] == f"{home}.git"
    assert f'set(EXTENSION_HOMEPAGE "{home}")' in lists
    assert "project(ConResNet)" in lists
    assert home in (repository / "README.md").read_text(encoding="utf-8")


def test_the_pictures_that_the_catalog_shows_are_there(repository: Path) -> None:
    lists = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    pictures = re.findall(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/main/([\w./-]+\.png)", lists)
    assert len(pictures) >= 3
    assert [name for name in pictures if not (repository / name).is_file()] == []


def test_every_link_of_the_readme_into_the_repository_leads_somewhere(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", readme)
    assert targets
    assert [name for name in targets if not (repository / name).exists()] == []


def test_every_make_command_of_the_readme_exists(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]*`|```.*?```", readme, re.DOTALL))))
    assert {"demo", "test", "test-all"} <= commands
    assert [name for name in sorted(commands) if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_requirements_are_pinned_exactly_and_cover_the_distribution(repository: Path) -> None:
    names = ("torch.txt", "engine.txt", "training.txt", "tests.txt", "constraints.txt")
    lines = {name: requirement_lines(repository, name) for name in names}
    for name, entries in lines.items():
        assert [entry for entry in entries if not re.fullmatch(r"[\w.-]+==[\w.]+", entry)] == [], name
    pinned = {name: {entry.split("==")[0].lower() for entry in entries} for name, entries in lines.items()}
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def bare(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=!~ ]", requirement)[0].lower() for requirement in requirements}

    assert bare(project["dependencies"]) == pinned["torch.txt"] | pinned["engine.txt"]
    assert bare(project["optional-dependencies"]["training"]) == pinned["training.txt"]


def test_the_version_is_one_of_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_license_is_apache_2_with_our_own_copyright_line(repository: Path) -> None:
    text = (repository / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert re.search(r"^ +Copyright 20\d\d ConResNet for 3D Slicer contributors$", text, re.MULTILINE)


def test_the_distribution_names_the_license_of_every_model_that_it_carries(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    models = list((repository / "ConResSegmentation" / "conresnet" / "models").glob("*/model.json"))
    licenses = {json.loads(path.read_text(encoding="utf-8"))["license"] for path in models}
    assert licenses and set(project["license"].split(" AND ")) == {"Apache-2.0", *licenses}


def test_every_picture_of_a_case_has_its_license_in_the_readme(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## License")[2].partition("\n## ")[0]
    # The others show panels and curves, which are our own.
    own = {"panel.png", "training_curves.png", "training_panel.png"}
    pictures = {path.name for path in (repository / "Screenshots").iterdir()} - own
    assert pictures and [name for name in sorted(pictures) if f"`Screenshots/{name}`" not in section] == []


def test_the_real_cases_are_as_published(data_folder: Path) -> None:
    """A case that was edited by accident would still be read, and would quietly change what the tests measure."""
    found = {
        path.relative_to(data_folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data_folder.rglob("*.nii.gz")
    }
    listed = (data_folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert found == {name: digest for digest, name in (line.split(maxsplit=1) for line in listed)}
