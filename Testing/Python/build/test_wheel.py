"""The wheel: one distribution with the engine, the training backend and the shipped models."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conresnet import __version__


@pytest.fixture(scope="module")
def wheel_names(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, "."],
        cwd=repository,
        check=True,
        timeout=300,
    )
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"conresnet-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


@pytest.mark.parametrize("package", ["ConResSegmentation/conresnet", "ConResTraining/conresnet_training"])
def test_wheel_contains_every_file_of_the_package(repository: Path, wheel_names: set[str], package: str) -> None:
    root = (repository / package).parent
    expected = {
        path.relative_to(root).as_posix()
        for path in (repository / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected
    assert {name for name in wheel_names if name.startswith(f"{Path(package).name}/")} == expected


def test_wheel_contains_licenses_of_code_and_models(repository: Path, wheel_names: set[str]) -> None:
    models = (repository / "ConResSegmentation" / "conresnet" / "models").glob("*/LICENSE.txt")
    expected = {"LICENSE.txt", *(path.relative_to(repository).as_posix() for path in models)}
    folder = f"conresnet-{__version__}.dist-info/licenses/"
    assert len(expected) > 1
    assert {name.removeprefix(folder) for name in wheel_names if name.startswith(folder)} == expected


def test_wheel_contains_no_slicer_modules(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"conresnet", "conresnet_training", f"conresnet-{__version__}.dist-info"}
