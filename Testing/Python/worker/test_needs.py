"""Packages that the engine's Python must have, and the report of those that are missing."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conresnet.needs import PACKAGES, PYTHON, is_enough, missing_packages
from worker.client import engine_environment


def test_requirements_match_the_distribution(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups() for need in project["dependencies"])
    assert listed.items() >= PACKAGES.items()
    assert project["requires-python"] == f">={PYTHON}"


@pytest.mark.parametrize(
    ("version", "least", "enough"),
    [
        ("2.13.0+cpu", "2.6", True),
        ("2.6", "2.6", True),
        ("2.5.1+cu118", "2.6", False),
        ("10.0", "9.1", True),
        ("", "1", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, least: str, enough: bool) -> None:
    assert is_enough(version, least) == enough


def test_missing_and_outdated_packages_are_listed() -> None:
    assert missing_packages(dict(PACKAGES)) == []
    assert missing_packages({**PACKAGES, "torch": "1.13"}) == ["torch"]
    assert missing_packages({}) == list(PACKAGES)


def ask(*options: str) -> dict:
    """Report of a Python started with these options."""
    command = [sys.executable, *options, "-m", "conresnet.needs"]
    return json.loads(subprocess.run(command, env=engine_environment(), capture_output=True, check=True).stdout)


def test_python_reports_installed_packages() -> None:
    report = ask()
    assert report["python_is_enough"] and report["missing"] == [] and report["packages"]["torch"]
    assert (report["platform"], report["machine"]) == (sys.platform, platform.machine())


def test_python_without_packages_is_reported() -> None:
    assert ask("-S")["missing"] == list(PACKAGES)


def test_leftovers_of_removed_package_are_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    environment = engine_environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    command = [sys.executable, "-S", "-m", "conresnet.needs"]
    report = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert "torch" in report["missing"]


def test_worker_needs_no_other_packages() -> None:
    """Without the command line's library and the one that reads files."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['click', 'nibabel', 'scipy', 'monai']))"
    code = f"{blocked}; import conresnet.worker.__main__; from conresnet.worker import server; server.Engine()"
    subprocess.run([sys.executable, "-c", code], env=engine_environment(), check=True)
