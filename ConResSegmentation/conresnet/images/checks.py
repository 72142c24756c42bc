"""Refusing, in one sentence that names it, what is no usable image; shared by every reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.grid import Volume

_SPACING_RANGE = (1e-3, 1e2)
_MOST_SHEAR = float(np.sin(np.radians(1)))
_LARGEST_VALUE = 1e30


def check_channel_count(given: Sequence[str], channels: Sequence[str]) -> None:
    """Refuse another number of images than a model has channels.

    Args:
        given: the images, as messages name them.
        channels: the model's.

    Raises:
        UserError: "wrong-channel-count".
    """
    if len(given) != len(channels):
        images, names = ", ".join(given), ", ".join(channels)
        were = "1 image was" if len(given) == 1 else f"{len(given)} images were"
        raise UserError(
            "wrong-channel-count",
            f"{were} given ({images}), but the model takes {len(channels)} ({names}).",
            images=images,
            given=len(given),
            wanted=len(channels),
            channels=names,
        )


def check_volume(volume: Volume) -> None:
    """Refuse an image no model can use.

    Raises:
        UserError: "image-empty", "image-type", "absurd-spacing", "image-sheared", "image-not-finite",
            "intensity-range" or "image-constant".
    """
    name, array = volume.name, volume.array
    _check_grid(volume)
    if array.dtype.kind not in "biuf":
        raise UserError(
            "image-type",
            f"{name} holds {array.dtype} values where real numbers are wanted.",
            name=name,
            type=str(array.dtype),
        )
    low, high, bad = np.inf, -np.inf, 0
    for block in array:
        if block.dtype.kind == "f":
            bad += int(block.size - np.isfinite(block).sum())
        if not bad:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if bad:
        raise UserError(
            "image-not-finite",
            f"{name} has {bad} {'voxel that is' if bad == 1 else 'voxels that are'} NaN or infinite; "
            "replace them, for example by the background's value.",
            name=name,
            count=bad,
        )
    if max(-low, high) > _LARGEST_VALUE:
        raise UserError(
            "intensity-range",
            f"{name} has values up to {max(-low, high):.1e}, which no scanner gives; check how it was made.",
            name=name,
            value=max(-low, high),
        )
    if low == high:
        raise UserError(
            "image-constant",
            f"{name} is empty: all its voxels are {low:g}; choose another image.",
            name=name,
            value=low,
        )


def _check_grid(volume: Volume) -> None:
    name, grid = volume.name, volume.grid
    if 0 in grid.shape:
        raise UserError("image-empty", f"{name} has no voxels.", name=name)
    spacing = grid.spacing
    low, high = _SPACING_RANGE
    if not np.isfinite(grid.affine).all() or not ((spacing >= low) & (spacing <= high)).all():
        raise absurd_spacing(name, spacing)
    directions = grid.direction
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MOST_SHEAR:
        raise UserError(
            "image-sheared",
            f"{name} has axes that are not at right angles to each other; resample it to a regular grid first.",
            name=name,
        )


def absurd_spacing(name: str, spacing: Sequence[float]) -> UserError:
    """The sentence for a voxel size that cannot be right."""
    size = " x ".join(f"{value:g}" for value in spacing)
    return UserError(
        "absurd-spacing",
        f"{name} has a voxel size of {size} mm, which cannot be right; correct its header.",
        name=name,
        size=size,
    )


def check_kind(path: Path, dimensions: int, pixel_id: int, components: int) -> None:
    """Refuse what is not one or several 3-D gray images: "image-2d", "image-color", "image-complex"."""
    if dimensions < 3:
        raise UserError("image-2d", f"{path} is a 2-D image; a 3-D volume is wanted.", path=str(path))
    if pixel_id == sitk.sitkVectorUInt8 and components in (3, 4):
        raise color_image(path)
    if pixel_id in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise complex_image(path)


def color_image(path: Path) -> UserError:
    """The sentence for RGB images."""
    return UserError("image-color", f"{path} is a color (RGB) image; a gray-scale scan is wanted.", path=str(path))


def complex_image(path: Path) -> UserError:
    """The sentence for complex numbers."""
    return UserError("image-complex", f"{path} holds complex numbers; save its magnitude first.", path=str(path))


def not_an_image(path: Path) -> UserError:
    """The sentence for a file that no reader understands, or that ends too early."""
    return UserError(
        "not-an-image",
        f"{path} is damaged or is not an image of a kind that can be read (NIfTI, NRRD, MetaImage, DICOM folder).",
        path=str(path),
    )
