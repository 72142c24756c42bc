"""What the installer lays down works by itself: no file is missing, and nothing leans on the source tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TORCH_FREE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "monai", "lightning", "slicer", "nibabel"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import conresnet.geometry, conresnet.model_list, conresnet.package, conresnet.protocol
print(conresnet.__file__)
print(sorted(entry.name for entry in conresnet.model_list.list_models()))
"""


def test_the_core_is_found_where_it_was_installed_and_lists_the_models_without_torch(extension, tmp_path: Path) -> None:
    finished = extension.python("-c", TORCH_FREE, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    place, models = finished.stdout.splitlines()
    assert Path(place).is_relative_to(extension.modules)
    assert "hippocampus" in models


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["models", "--help"], ["models", "list"]])
def test_the_command_line_answers_from_the_installed_folder(extension, tmp_path: Path, arguments: list[str]) -> None:
    finished = extension.python("-m", "conresnet", *arguments, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
    assert "Traceback" not in finished.stderr


def test_a_real_case_is_segmented_from_the_installed_folder(extension, tmp_path: Path, hippocampus_image: Path) -> None:
    output = tmp_path / "output"
    finished = extension.python(
        "-m", "conresnet", "segment", hippocampus_image, "--model", "hippocampus", "--output", output, folder=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert (output / "segmentation.nii.gz").stat().st_size > 0
    assert json.loads((output / "report.json").read_text(encoding="utf-8"))
