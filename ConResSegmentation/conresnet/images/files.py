"""Image files: reading what the user names, writing results. The only door to the readers of single formats.

What kind of file an image is, its first bytes decide. NIfTI is read in this process, everything else in the reader
process (`conresnet.images.reader_process`), since the libraries that read it can crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images.checks import check_channel_count, check_volume
from conresnet.images.file_kinds import kind_of
from conresnet.images.grid import Grid, ImageFile, Volume


def read_volume(path: str | Path) -> Volume:
    """Read one 3-D image: NIfTI, NRRD, MetaImage or anything else SimpleITK reads, or a folder with one DICOM series.

    Raises:
        UserError: with one sentence that names the file, as `read_channels`.
    """
    return read_channels([path], ["image"])[0]


def read_channels(paths: Sequence[str | Path], channel_names: Sequence[str]) -> list[Volume]:
    """Read a case: one file per channel in the model's order, or one 4-D file with all of them.

    Args:
        paths: files, or folders with one DICOM series each.
        channel_names: the model's, for messages.

    Raises:
        UserError: "wrong-channel-count", "wrong-component-count", "image-4d", those of `check_volume`, and those of
            `read_image`.
    """
    if len(paths) == 1 and len(channel_names) > 1:
        path = Path(paths[0])
        image = read_image(path)
        count = len(image.components)
        if count != len(channel_names):
            raise UserError(
                "wrong-component-count",
                path=str(path),
                given=count,
                wanted=len(channel_names),
                channels=", ".join(channel_names),
            )
        labels = [f"{path} ({name})" for name in channel_names]
        volumes = [Volume(array, image.grid, label) for array, label in zip(image.components, labels, strict=True)]
        volumes[0].warnings = image.warnings
    else:
        check_channel_count([str(path) for path in paths], channel_names)
        volumes = [read_single(Path(path)) for path in paths]
    for volume in volumes:
        check_volume(volume)
    return volumes


def read_single(path: Path) -> Volume:
    """Read a file that must contain one 3-D image, whatever its values are.

    Raises:
        UserError: "image-4d", or as `read_image`.
    """
    image = read_image(path)
    if len(image.components) != 1:
        raise UserError("image-4d", path=str(path), count=len(image.components))
    return Volume(image.components[0], image.grid, str(path), image.warnings)


def read_image(path: Path) -> ImageFile:
    """Read a file, or a folder with one DICOM series, whatever its values are; a label map may well be constant.

    Raises:
        UserError: "image-not-found", "cannot-read", "image-name-not-text", "image-out-of-memory", and those of
            `conresnet.images.file_kinds.kind_of`, of the format's reader and of its process.
    """
    kind = _kind(path)
    try:
        if kind == "nifti":
            from conresnet.images.nifti import read_nifti

            return read_nifti(path)
        from conresnet.images.reader_process import read_in_process

        return read_in_process(path, kind if kind in ("folder", "dicom") else "file")
    except MemoryError as error:
        raise UserError("image-out-of-memory", path=str(path)) from error


def read_grid(path: Path) -> Grid:
    """The grid of an image, without its voxels where the format allows that. Raises as `read_image` does."""
    kind = _kind(path)
    if kind == "nifti":
        from conresnet.images.nifti import read_nifti_grid

        return read_nifti_grid(path)
    from conresnet.images.reader_process import read_in_process

    return read_in_process(path, kind if kind in ("folder", "dicom") else "header").grid


def _kind(path: Path) -> str:
    """ "folder", or the kind of a file; both exist, can be opened, and have names that ITK can take."""
    _check_name(path)
    try:
        if path.is_dir():
            for file in path.iterdir():
                _check_name(file)
                # Any of them may be a slice, which must not be missing without a word.
                if not os.access(file, os.R_OK) and file.is_file():
                    raise UserError("cannot-read", path=str(file), reason=os.strerror(errno.EACCES))
            return "folder"
        return kind_of(path)
    except FileNotFoundError as error:
        raise UserError("image-not-found", path=str(path)) from error
    except OSError as error:
        raise UserError("cannot-read", path=str(path), reason=error.strerror or str(error)) from error


def _check_name(path: Path) -> None:
    """Refuse a name that is not text: ITK ends the whole process over it, and no report can contain it."""
    try:
        is_text = b"\0" not in str(path).encode("utf-8")
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        shown = str(path).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
        raise UserError("image-name-not-text", path=shown)


def write_volume(array: np.ndarray, grid: Grid, path: str | Path) -> None:
    """Write one or several 3-D images as .nii or .nii.gz, completely or not at all.

    Args:
        array: [k, j, i], or [c, k, j, i], which becomes a 4-D file with the components last. Booleans are written as
            uint8 and half precision as float32, which NIfTI knows.
        grid: of each component. One that was read from a NIfTI file brings that file's qform, sform, codes and units.
        path: its folder must exist.

    Raises:
        UserError: "output-not-nifti", "disk-full" or "cannot-write".
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError("output-not-nifti", path=str(path))
    from conresnet.images.nifti import write_nifti

    write_nifti(array, grid, path)
