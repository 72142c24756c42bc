"""The extension, configured, installed and packaged once by CMake with a stand-in for Slicer's macros."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CMAKE_FOLDER = Path(sys.executable).parent  # pip installs the cmake commands next to the interpreter


def run_tool(name: str, *arguments: str | Path, folder: Path) -> None:
    """Run ``cmake`` or ``cpack`` of this environment in ``folder``; on failure, fail the test with the output."""
    finished = subprocess.run(
        [CMAKE_FOLDER / name, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout


@dataclass(frozen=True)
class Extension:
    """A built extension: where it was installed, and the archive that Slicer installs from a file."""

    installed: Path
    archive: Path
    slicer: str

    @property
    def modules(self) -> Path:
        """The folder that Slicer puts on its module search path."""
        return self.installed / "lib" / f"Slicer-{self.slicer}" / "qt-scripted-modules"

    def python(self, *arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python outside the source tree, with the installed folder first on its path."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(self.modules), "PYTHONSAFEPATH": "1", **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )


def build_extension(repository: Path, folder: Path, slicer: str, system: str) -> Extension:
    """Configure, build, install and package the extension below ``folder`` for Slicer ``slicer`` on ``system``."""
    build = folder / "build"
    stand_in = repository / "Testing" / "CMake"
    run_tool(
        "cmake",
        *("-S", repository, "-B", build, "--toolchain", stand_in / "no_compiler.cmake", "-DBUILD_TESTING=ON"),
        *(f"-DSlicer_DIR={stand_in / 'SlicerStandIn'}", f"-DSlicer_VERSION={slicer}", f"-DSlicer_OS={system}"),
        folder=folder,
    )
    run_tool("cmake", "--build", build, folder=folder)
    run_tool("cmake", "--install", build, "--prefix", folder / "installed", folder=folder)
    run_tool("cpack", "--config", build / "CPackConfig.cmake", "-B", folder / "packages", folder=folder)
    (archive,) = [path for path in (folder / "packages").iterdir() if path.is_file()]
    return Extension(folder / "installed", archive, slicer)


@pytest.fixture(scope="session")
def extension(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Extension:
    """The extension built for a Linux Slicer 5.12."""
    return build_extension(repository, tmp_path_factory.mktemp("extension"), slicer="5.12", system="linux")


@pytest.fixture(scope="session")
def windows_extension(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Extension:
    """The extension built for a Windows Slicer 5.10; the files are the same, the archive is a .zip."""
    return build_extension(repository, tmp_path_factory.mktemp("windows extension"), slicer="5.10", system="win")
