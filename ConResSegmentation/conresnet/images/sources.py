"""Images in memory as well as in files: their voxels for the engine, and results in the same kind and axis order.

SimpleITK images, nibabel images, and pairs of an array and its affine. Paths are read by `conresnet.images.files`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.checks import check_channel_count
from conresnet.images.files import read_channels
from conresnet.images.grid import LPS_TO_RAS, Grid, ImageFile, Volume
from conresnet.images.itk import check_kind, grid_of

Wrap = Callable[[np.ndarray], Any]
"""From an array [k, j, i] or [c, k, j, i] on an image's grid to an object of the image's kind."""


def is_path(image: object) -> bool:
    """Whether an image is given as a path."""
    return isinstance(image, str | os.PathLike)


def read_sources(images: Sequence[object], channel_names: Sequence[str]) -> tuple[list[Volume], Wrap]:
    """The images of a case, each of any kind, and a function that makes results of the first one's kind.

    Args:
        images: one per channel, in the model's order, or a single one with all channels.
        channel_names: the model's.

    Raises:
        UserError: "image-kind", "array-shape", "wrong-channel-count", "image-components", or as ``read_channels``.
    """
    if all(map(is_path, images)):
        volumes = read_channels([Path(image) for image in images], channel_names)
        return volumes, _wrap_as_itk(volumes[0].grid)
    holds_all = len(images) == 1 and len(channel_names) > 1
    if not holds_all:
        check_channel_count([_name(image, "image") for image in images], channel_names)
    volumes, wraps = [], []
    for image, name in zip(images, channel_names, strict=False):
        if is_path(image):
            read = read_channels([Path(image)], [name])
            volumes, wraps = volumes + read, [*wraps, _wrap_as_itk(read[0].grid)]
            continue
        found, wrap = _open(image, _name(image, name))
        wanted = channel_names if holds_all else [name]
        if len(found.components) != len(wanted):
            counts = {"given": len(found.components), "wanted": len(wanted)}
            raise UserError("image-components", name=_name(image, name), channels=", ".join(wanted), **counts)
        warnings = [found.warnings, *([()] * (len(wanted) - 1))]
        volumes += [
            Volume(array, found.grid, _name(image, label), about)
            for array, label, about in zip(found.components, wanted, warnings, strict=True)
        ]
        wraps.append(wrap)
    return volumes, wraps[0]


def _name(image: object, channel: str) -> str:
    """What messages call an image: its file where it has one, else its channel."""
    if is_path(image):
        return str(image)
    return getattr(image, "get_filename", lambda: None)() or channel


def _open(image: object, name: str) -> tuple[ImageFile, Wrap]:
    if isinstance(image, sitk.Image):
        return _open_itk(image, name)
    # Only a program that has imported nibabel can have one of its images.
    nibabel = sys.modules.get("nibabel")
    if nibabel and isinstance(image, nibabel.spatialimages.SpatialImage):
        return _open_nibabel(image, name)
    if isinstance(image, tuple) and len(image) == 2:
        return _open_array(*image, name)
    raise UserError("image-kind", name=name, kind=type(image).__name__)


def _open_itk(image: sitk.Image, name: str) -> tuple[ImageFile, Wrap]:
    check_kind(Path(name), image.GetDimension(), image.GetPixelID(), image.GetNumberOfComponentsPerPixel())
    array, grid = sitk.GetArrayFromImage(image), grid_of(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    geometry = image.GetSpacing()[:3], image.GetOrigin()[:3], image.GetDirection()
    if image.GetDimension() == 3:
        return ImageFile(array.reshape(-1, *grid.shape), grid), _wrap_as_itk(grid, *geometry)
    return ImageFile(array.reshape(-1, *grid.shape), grid), _wrap_as_itk(grid)


def _wrap_as_itk(grid: Grid, spacing: Any = None, origin: Any = None, direction: Any = None) -> Wrap:
    """Results as SimpleITK images on a grid, or with exactly this geometry of it."""

    def wrap(array: np.ndarray) -> sitk.Image:
        has_components = array.ndim == 4
        image = sitk.GetImageFromArray(
            np.ascontiguousarray(np.moveaxis(array, 0, -1)) if has_components else array, isVector=has_components
        )
        image.SetSpacing(spacing or [float(size) for size in grid.spacing])
        image.SetOrigin(origin or [float(value) for value in LPS_TO_RAS @ grid.affine[:3, 3]])
        image.SetDirection(direction or [float(value) for value in (LPS_TO_RAS @ grid.direction).ravel()])
        return image

    return wrap


def _open_nibabel(image: Any, name: str) -> tuple[ImageFile, Wrap]:
    import nibabel

    from conresnet.images.nifti import nifti_grid, stored_voxels

    if len(image.shape) < 3:
        raise UserError("image-2d", path=name)
    if nibabel.is_proxy(image.dataobj) and hasattr(image.dataobj, "get_unscaled"):
        components = stored_voxels(image)
    else:
        components = np.asanyarray(image.dataobj).T.reshape(-1, *image.shape[2::-1])
    if isinstance(image, nibabel.Nifti1Image):
        # By the rules for files: two transforms may disagree, and units may not be mm.
        grid, warnings = nifti_grid(image.header, name)
    else:
        grid, warnings = Grid(components.shape[1:], image.affine), []

    def wrap(array: np.ndarray) -> nibabel.spatialimages.SpatialImage:
        stored = np.moveaxis(array, 0, -1).transpose(2, 1, 0, 3) if array.ndim == 4 else array.T
        if not isinstance(image, nibabel.Nifti1Image):
            return nibabel.Nifti1Image(stored, image.affine)
        header = image.header.copy()
        header.set_data_dtype(stored.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        return type(image)(stored, image.affine, header)

    return ImageFile(components, grid, tuple(warnings)), wrap


def _open_array(array: Any, affine: Any, name: str) -> tuple[ImageFile, Wrap]:
    array, affine = np.asanyarray(array), np.asanyarray(affine)
    if array.ndim not in (3, 4) or affine.shape != (4, 4):
        raise UserError("array-shape", name=name, array=array.shape, affine=affine.shape)
    components = array.T if array.ndim == 4 else array.T[None]

    def wrap(result: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(result.T)

    return ImageFile(components, Grid(components.shape[1:], affine)), wrap
