"""A small model and an image for the tests of the command."""

from pathlib import Path

import pytest

from conresnet.images.files import write_volume
from engine.model_cases import description, write_model
from engine.volumes import grid, random_volume


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "test", description()).path


@pytest.fixture
def image(tmp_path) -> Path:
    """A small image with a space and non-ASCII characters in its path."""
    folder = tmp_path / "Größe 1"
    folder.mkdir()
    volume = random_volume(grid((20, 22, 24), spacing=(1, 2, 3)))
    write_volume(volume.array, volume.grid, folder / "Kopf é.nii.gz")
    return folder / "Kopf é.nii.gz"
