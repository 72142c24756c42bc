"""Images in files: reading what the user gives, writing what we answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.checks import check_channel_count, check_kind, check_volume, not_an_image
from conresnet.images.dicom import read_series
from conresnet.images.grid import Grid, Volume
from conresnet.images.itk import ImageFile, grid_of, quiet_itk


def read_volume(path: str | Path) -> Volume:
    """Read one 3-D image: NIfTI, NRRD, MetaImage or whatever else SimpleITK reads, or a folder with one DICOM series.

    Raises:
        UserError: with one sentence that names the file, as ``read_channels``.
    """
    return read_channels([path], ["image"])[0]


def read_channels(paths: Sequence[str | Path], channel_names: Sequence[str]) -> list[Volume]:
    """Read a case: one file a channel in the model's order, or one 4-D file that holds them all.

    Args:
        paths: files, or folders with one DICOM series each.
        channel_names: the model's, for messages.

    Raises:
        UserError: "wrong-channel-count", "wrong-component-count", "image-not-found", "cannot-read", "not-an-image",
            "image-2d", "image-4d", "image-color", "image-complex", those of ``check_volume``, and for folders those of
            ``conresnet.images.dicom``.
    """
    names = ", ".join(channel_names)
    if len(paths) == 1 and len(channel_names) > 1:
        path = Path(paths[0])
        image = read_image(path)
        count = len(image.components)
        if count != len(channel_names):
            raise UserError(
                "wrong-component-count",
                f"{path} holds {count} {'image' if count == 1 else 'images'}, but the model takes {len(channel_names)} "
                f"channels ({names}); give one file a channel, or a 4-D file that holds them all.",
                path=str(path),
                given=count,
                wanted=len(channel_names),
            )
        labels = [f"{path} ({name})" for name in channel_names]
        volumes = [Volume(array, image.grid, label) for array, label in zip(image.components, labels, strict=True)]
    else:
        check_channel_count([str(path) for path in paths], channel_names)
        volumes = [read_single(Path(path)) for path in paths]
    for volume in volumes:
        check_volume(volume)
    return volumes


def read_image(path: Path) -> ImageFile:
    """Read a file, or a folder with one DICOM series, whatever its values are; a label map may well be constant.

    Raises:
        UserError: as ``read_channels``, but for those of ``check_volume``.
    """
    _check_name(path)
    try:
        is_folder = path.is_dir()
        if is_folder:
            for file in path.iterdir():
                _check_name(file)
        else:
            with path.open("rb") as file:
                file.read(1)
    except FileNotFoundError as error:
        raise UserError("image-not-found", f"The image {path} does not exist.", path=str(path)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError("cannot-read", f"The image {path} cannot be read ({reason}).", path=str(path)) from error
    if is_folder:
        return read_series(path)
    if _is_nifti(path):
        from conresnet.images.nifti import read_nifti

        return read_nifti(path)
    return _read_with_itk(path)


def _check_name(path: Path) -> None:
    """Refuse a name that is no text: ITK ends the whole process over it, and no report can hold it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
        raise UserError(
            "cannot-read", f"The image {shown} cannot be read (its name is no UTF-8 text); rename it.", path=shown
        ) from error


def read_single(path: Path) -> Volume:
    """Read a file that must hold one 3-D image, whatever its values are.

    Raises:
        UserError: "image-4d", or as ``read_image``.
    """
    image = read_image(path)
    if len(image.components) != 1:
        raise UserError(
            "image-4d",
            f"{path} holds {len(image.components)} images where one 3-D image is wanted; split it first.",
            path=str(path),
            count=len(image.components),
        )
    return Volume(image.components[0], image.grid, str(path))


def write_volume(array: np.ndarray, grid: Grid, path: str | Path) -> None:
    """Write one or several 3-D images as .nii or .nii.gz, whole or not at all.

    Args:
        array: [k, j, i], or [c, k, j, i], which becomes a 4-D file with the components last. Booleans are written as
            uint8 and half precision as float32, which NIfTI knows.
        grid: of each component.
        path: its folder must exist.

    Raises:
        UserError: "output-not-nifti", "disk-full" or "cannot-write".
    """
    path = Path(path)
    if not _is_nifti(path):
        raise UserError("output-not-nifti", f"{path} cannot be written: name it .nii or .nii.gz.", path=str(path))
    from conresnet.images.nifti import write_nifti

    write_nifti(array, grid, path)


def _read_with_itk(path: Path) -> ImageFile:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
            check_kind(path, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
            image = reader.Execute()
    except RuntimeError as error:
        raise not_an_image(path) from error
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    return ImageFile(array.reshape(-1, *array.shape[-3:]), grid_of(image))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))
