"""Image files for the engine's tests, and a check of how invalid ones are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.files import read_channels
from engine.volumes import grid, rotation

TILTED = grid((7, 8, 9), (0.7, 1.1, 2.5), (-31.5, 12.25, 100), rotation(20) @ rotation(-7, axis=0))


def refused(code: str, *paths: Path, channels=("image",)) -> UserError:
    """Check that reading raises a UserError with this code and a one-sentence message that names the first file."""
    with pytest.raises(UserError) as caught:
        read_channels(list(paths), list(channels))
    message = caught.value.message
    assert caught.value.code == code
    assert str(paths[0]) in message
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message
    return caught.value


def write_with_itk(volume: Volume, path: Path) -> Path:
    """Write a volume with ITK; the extension selects the format."""
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1, -1, 1, 1]) @ volume.grid.affine
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.grid.spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def save_nifti(path: Path, array: np.ndarray, affine=None, **header) -> Path:
    """Write a NIfTI file with axes i, j, k and the given header fields."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def ramp(shape=(4, 5, 6), dtype=np.int16) -> np.ndarray:
    """An array in which every voxel has a different value."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def sitk_affine(path: Path) -> np.ndarray:
    """Affine (4, 4) from voxel index (i, j, k, 1) to RAS in mm, as SimpleITK reads it from a file."""
    image = sitk.ReadImage(str(path))
    corners = [image.TransformIndexToPhysicalPoint(index) for index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    origin, *ends = np.array(corners) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.column_stack([end - origin for end in ends]), origin
    return affine
