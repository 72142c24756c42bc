"""Packages that the engine's Python must have, and the report of those that are missing."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conresnet.needs import ENGINE_PACKAGES, PYTHON, is_enough, problem_of, read_report, report
from worker.client import engine_environment


def test_requirements_match_the_distribution(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups() for need in project["dependencies"])
    assert listed.items() >= ENGINE_PACKAGES.items()
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
    assert report(ENGINE_PACKAGES, really_import=False)["problems"] == {}
    wanted = {"numpy": "1.26", "torch": "99.1", "no-such-package": "1.0"}
    found = report(wanted, really_import=False)
    assert list(found["problems"]) == ["torch", "no-such-package"] and list(found["packages"]) == ["numpy", "torch"]
    problem = problem_of(found, wanted, "python3")
    assert problem.code == "python-packages-missing" and problem.values["program"] == "python3"
    assert problem.values["wanted"] == '"torch>=99.1" "no-such-package>=1.0"'


@pytest.mark.parametrize("output", ["", "5", "hello", '{"python": "3.9.10"}'])
def test_output_without_a_report_is_not_from_python(output: str) -> None:
    assert problem_of(read_report(output), ENGINE_PACKAGES, "sh").code == "python-not-running"


def test_report_follows_what_packages_print() -> None:
    found = report(ENGINE_PACKAGES, really_import=False)
    assert read_report(f"a package's own line\n{json.dumps(found)}\n") == found


def ask(*options: str) -> dict:
    """Report of a Python started with these options."""
    command = [sys.executable, *options, "-m", "conresnet.needs"]
    return json.loads(subprocess.run(command, env=engine_environment(), capture_output=True, check=True).stdout)


def test_check_can_be_read_by_an_old_python(repository: Path) -> None:
    source = (repository / "ConResSegmentation" / "conresnet" / "needs.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_python_reports_installed_packages() -> None:
    found = ask()
    assert found["python_is_enough"] and found["problems"] == {} and found["packages"]["torch"]
    assert (found["platform"], found["machine"]) == (sys.platform, platform.machine())


def test_python_without_packages_is_reported() -> None:
    assert list(ask("-S")["problems"]) == list(ENGINE_PACKAGES)


def test_leftovers_of_removed_package_are_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    environment = engine_environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    command = [sys.executable, "-S", "-m", "conresnet.needs"]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert found["problems"]["torch"] == "only parts of it are installed"


def test_worker_needs_no_other_packages() -> None:
    """Without the command line's library and the one that reads files."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['click', 'nibabel', 'scipy', 'monai']))"
    code = f"{blocked}; import conresnet.worker.__main__; from conresnet.worker import server; server.Engine()"
    subprocess.run([sys.executable, "-c", code], env=engine_environment(), check=True)


@pytest.mark.parametrize("arguments", [["catalog", "https://example.org/catalog.json"], ["import", "x.pth"]])
def test_missing_package_ends_what_slicer_runs_with_one_sentence(arguments: list[str]) -> None:
    command = [sys.executable, "-S", "-m", "conresnet.worker", *arguments]
    finished = subprocess.run(command, env=engine_environment(), capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
