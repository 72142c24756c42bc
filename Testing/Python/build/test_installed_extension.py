"""The installed extension works without the source tree, and no file is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

# The hippocampus model's segments and their label values.
SEGMENTS = {"Anterior hippocampus": 1, "Posterior hippocampus": 2}

TORCH_FREE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "monai", "lightning_fabric", "slicer", "nibabel"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import conresnet.images.geometry, conresnet.package.store, conresnet.package, conresnet.worker
print(conresnet.__file__)
print(sorted(entry.name for entry in conresnet.package.store.list_models()))
"""


def test_installed_core_lists_models_without_torch(extension, tmp_path: Path) -> None:
    finished = extension.python("-c", TORCH_FREE, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    place, models = finished.stdout.splitlines()
    assert Path(place).is_relative_to(extension.modules)
    assert "hippocampus" in models


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["models", "--help"], ["models", "list"]])
def test_installed_command_line_runs(extension, tmp_path: Path, arguments: list[str]) -> None:
    finished = extension.python("-m", "conresnet", *arguments, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--help"], ["plan", "--help"]])
def test_installed_training_backend_runs(extension, tmp_path: Path, arguments: list[str]) -> None:
    finished = extension.python("-m", "conresnet_training", *arguments, folder=tmp_path)
    assert finished.returncode == 0 and finished.stdout.strip(), finished.stderr


@pytest.fixture(scope="module")
def output(extension, hippocampus_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the command in the installed folder, run with a shipped model."""
    folder = tmp_path_factory.mktemp("segmented")
    finished = extension.python(
        *("-m", "conresnet", "segment", hippocampus_image, "--model", "hippocampus", "--output", folder / "output"),
        folder=folder,
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "output"


def labels_in(output: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(output / "segmentation.nii.gz"))


def test_installed_command_segments_a_real_case(output: Path) -> None:
    labels = labels_in(output)
    assert set(np.unique(labels)) == {0, 1, 2}
    volumes = json.loads((output / "report.json").read_text(encoding="utf-8"))["volumes_ml"]
    assert volumes == pytest.approx(
        {name: np.count_nonzero(labels == label) / 1000 for name, label in SEGMENTS.items()}, abs=1e-3
    )


def test_installed_modules_give_same_result_as_the_command(
    extension, output: Path, repository: Path, tmp_path: Path, hippocampus_image: Path
) -> None:
    """A new application, its module and the engine's process use only installed files."""
    result = tmp_path / "labels.npz"
    script = Path(__file__).with_name("run_installed_module.py")
    finished = extension.python(
        *(script, extension.modules, hippocampus_image, result),
        folder=tmp_path,
        PYTHONPATH=os.pathsep.join([str(extension.modules), str(repository / "Testing" / "SlicerHost")]),
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    outside = {name: place for name, place in report["files"].items() if not is_below(place, extension.modules)}
    assert outside == {}
    assert report["engine_path"] == report["training_path"] == str(extension.modules)
    assert "ConResTrainingLib" in report["files"]
    assert not {"torch", "yaml", "pydantic", "lightning_fabric", "monai"} & set(report["modules"])
    assert report["maps"] == [["residual", "Anterior hippocampus"], ["residual", "Posterior hippocampus"]]
    labels = labels_in(output)
    with np.load(result) as segments:
        assert set(segments) == set(SEGMENTS)
        for name, label in SEGMENTS.items():
            np.testing.assert_array_equal(segments[name] > 0, labels == label)


def is_below(place: str, folder: Path) -> bool:
    return Path(place).resolve().is_relative_to(folder.resolve())
