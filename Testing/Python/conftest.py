"""Fixtures for all tests: paths of the repository and its real cases, and a models folder separate from the user's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Qt: tests render off screen.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "Testing" / "Data"


# The slowest files. If they were started last, the other processes would be idle.
LONG_FILES = (
    "test_training_place.py",
    "test_synthesis.py",
    "test_panel_choices.py",
    "test_panel_models.py",
    "test_engine_server.py",
    "test_engine_failures.py",
    "test_scene_case.py",
    "test_large_results.py",
    "test_review.py",
    "test_panel_loading.py",
    "test_panel_moved.py",
    "test_panel_run.py",
    "test_stopping.py",
    "test_systems_training.py",
    "test_training_module.py",
    "test_planning_systems.py",
    "test_cohort.py",
    "test_training_run.py",
    "test_several_runs.py",
    "test_export.py",
    "test_panel_engine.py",
    "test_processes.py",
    "test_devices.py",
    "test_planning.py",
    "test_preparation.py",
    "test_training_data_set.py",
    "test_segmentation.py",
    "test_map_3d.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files; `make test` distributes files to its processes in this order."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the real cases (Testing/Data)."""
    return DATA


@pytest.fixture(scope="session")
def hippocampus_image(data_folder: Path) -> Path:
    """A T1 MR crop around one hippocampus, 1 mm, float32; not seen in training."""
    return data_folder / "MSD_Task04_Hippocampus" / "imagesTr" / "hippocampus_004.nii.gz"


@pytest.fixture(scope="session")
def hippocampus_label(data_folder: Path) -> Path:
    """The expert's label of ``hippocampus_image``: 1 anterior, 2 posterior."""
    return data_folder / "MSD_Task04_Hippocampus" / "labelsTr" / "hippocampus_004.nii.gz"


@pytest.fixture(scope="session")
def head_image(data_folder: Path) -> Path:
    """A whole-head T1 MR at 2 mm, stored with axes posterior, superior, right; float64."""
    return data_folder / "IXI_T1_2mm" / "IXI034.nii.gz"


@pytest.fixture(scope="session")
def head_label(data_folder: Path) -> Path:
    """Silver tissue labels of ``head_image``: 1 CSF, 2 gray matter, 3 white matter."""
    return data_folder / "IXI_T1_2mm" / "IXI034_tissue.nii.gz"


@pytest.fixture(scope="session")
def ct_image(data_folder: Path) -> Path:
    """Thirty slices of an abdominal CT at 3 mm, int16 HU."""
    return data_folder / "CT_Abdomen_3mm" / "ct.nii.gz"


@pytest.fixture(scope="session")
def ct_label(data_folder: Path) -> Path:
    """Silver organ labels of ``ct_image``: 5 liver, 1 spleen, 2 and 3 kidneys, ..."""
    return data_folder / "CT_Abdomen_3mm" / "ct_organs.nii.gz"


@pytest.fixture(scope="session")
def tumor_images(data_folder: Path) -> list[Path]:
    """T1, T1ce, T2 and FLAIR of a brain with a tumor at 4 mm, int16, named as in BraTS (until 2021)."""
    folder = data_folder / "UPENN_GBM_4mm" / "pat2"
    return [folder / f"pat2_{word}.nii.gz" for word in ("t1", "t1ce", "t2", "flair")]


@pytest.fixture(scope="session")
def tumor_label(data_folder: Path) -> Path:
    """A label map of ``tumor_images`` by thresholds: 1 necrosis, 2 edema, 4 enhancing."""
    return data_folder / "UPENN_GBM_4mm" / "pat2" / "pat2_seg.nii.gz"


@pytest.fixture(scope="session")
def models_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of new folders in one temporary folder; pytest would search all earlier folders for each new number."""
    parent = tmp_path_factory.mktemp("models")
    return (parent / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def no_models_of_the_user(monkeypatch: pytest.MonkeyPatch, models_folders: Iterator[Path]) -> None:
    """Keep tests from using models that a developer has installed, and from installing models for them."""
    folder = next(models_folders)
    folder.mkdir()
    monkeypatch.setenv("CONRESNET_MODELS", str(folder))


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute windows and mirrored copies one by one, even if they are small."""
    monkeypatch.setattr("conresnet.inference.devices._CPU_BATCH", 1)
