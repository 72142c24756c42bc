"""One DICOM series from a folder, refused where its slices do not make a regular volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.checks import check_kind, not_an_image
from conresnet.images.grid import LPS_TO_RAS, Grid
from conresnet.images.itk import ImageFile, grid_of, quiet_itk

_POSITION, _ORIENTATION, _DESCRIPTION, _NUMBER = "0020|0032", "0020|0037", "0008|103e", "0020|0011"
#: What a DICOMDIR says it is; it lists a disk's files and holds no slice.
_DIRECTORY = b"1.2.840.10008.1.3.10"
#: Part of the slice distance by which a slice may lie off its regular place; headers round to a tenth of a mm.
_UNEVEN = 0.1


@dataclass(frozen=True, eq=False)
class _Slice:
    """What one file's header says: LPS mm and unit vectors along a row and a column."""

    file: str
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    size: tuple[int, int]
    spacing: tuple[float, float]
    pixel_type: int


def read_series(folder: Path) -> ImageFile:
    """Read the one series in a folder, its slices in order along the patient.

    Raises:
        UserError: "dicom-none", "dicom-several", "dicom-no-position", "dicom-mixed", "dicom-tilt", "dicom-uneven",
            "not-an-image", "image-color" or "image-complex".
    """
    with quiet_itk():
        files = _only_series(folder)
        if len(files) == 1:
            return _read_one(folder, files[0])
        slices = _in_order(folder, [_header(Path(file)) for file in files])
        grid = _regular_grid(folder, slices)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([piece.file for piece in slices])
        if len({piece.pixel_type for piece in slices}) > 1:
            # With a rescale slope a slice, as in PET. ITK would bring them all into the first one's type.
            reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise not_an_image(folder) from error
    array = _narrowed(sitk.GetArrayFromImage(image))
    return ImageFile(array[None], Grid(array.shape, grid.affine))


def _narrowed(array: np.ndarray) -> np.ndarray:
    """In half the memory where that holds the values: ITK widens what a rescale slope or intercept touches."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    limits = np.iinfo(np.int16)
    if array.dtype == np.int32 and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int16)
    return array


def _only_series(folder: Path) -> list[str]:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise UserError(
            "dicom-none",
            f"The folder {folder} holds no DICOM series; give an image file or a folder with one series.",
            path=str(folder),
        )
    files = {identity: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), identity) for identity in series}
    if len(series) > 1:
        found = "; ".join(f"{_describe(names[0])} ({len(names)} files)" for names in files.values())
        raise UserError(
            "dicom-several",
            f"The folder {folder} holds {len(series)} DICOM series ({found}); "
            "put the wanted one in a folder of its own.",
            path=str(folder),
            series=list(series),
        )
    listed = {Path(name).name for name in files[series[0]]}
    for file in sorted(folder.iterdir()):
        if file.name not in listed and file.is_file() and _is_broken_dicom(file):
            raise not_an_image(file)
    return list(files[series[0]])


def _is_broken_dicom(file: Path) -> bool:
    """Whether a file that GDCM lists nowhere begins like a DICOM object: it ends too early, and a slice would lack."""
    with file.open("rb") as opened:
        beginning = opened.read(1024)
    return beginning[128:132] == b"DICM" and _DIRECTORY not in beginning


def _open(file: str | Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def _text(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""


def _describe(file: str) -> str:
    reader = _open(file)
    number, description = _text(reader, _NUMBER), _text(reader, _DESCRIPTION)
    return " ".join(part for part in (number, description) if part) or Path(file).name


def _read_one(folder: Path, file: str) -> ImageFile:
    """One file: a single slice, or a multi-frame object, whose geometry ITK knows."""
    try:
        reader = _open(file)
        check_kind(folder, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
        image = reader.Execute()
    except RuntimeError as error:
        raise not_an_image(folder) from error
    return ImageFile(_narrowed(sitk.GetArrayFromImage(image))[None], grid_of(image))


def _header(file: Path) -> _Slice:
    try:
        reader = _open(file)
    except RuntimeError as error:
        raise not_an_image(file) from error
    check_kind(file, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    try:
        position = np.array([float(part) for part in _text(reader, _POSITION).split("\\")])
        orientation = np.array([float(part) for part in _text(reader, _ORIENTATION).split("\\")])
        row, column = orientation.reshape(2, 3)
        position = position.reshape(3)
    except ValueError as error:
        raise UserError(
            "dicom-no-position", f"{file} does not say where in the patient its slice lies.", path=str(file)
        ) from error
    return _Slice(str(file), position, row, column, reader.GetSize()[:2], reader.GetSpacing()[:2], reader.GetPixelID())


def _in_order(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    """Along the normal of the slices, which must be parallel and of one size."""
    first = slices[0]
    for piece in slices[1:]:
        parallel = np.allclose([piece.row, piece.column], [first.row, first.column], atol=1e-3)
        if not parallel or piece.size != first.size or not np.allclose(piece.spacing, first.spacing, rtol=1e-3):
            raise UserError(
                "dicom-mixed",
                f"The DICOM slices in {folder} differ in size or direction; put one scan in a folder of its own.",
                path=str(folder),
            )
    normal = np.cross(first.row, first.column)
    return sorted(slices, key=lambda piece: float(piece.position @ normal))


def _regular_grid(folder: Path, slices: list[_Slice]) -> Grid:
    """The grid on which the slices lie. Raises UserError where they do not lie on one."""
    first = slices[0]
    normal = np.cross(first.row, first.column)
    travels = np.array([piece.position - first.position for piece in slices])
    heights = travels @ normal
    distance = float(heights[-1]) / (len(slices) - 1)
    if distance <= 0:
        raise _uneven(folder, "several lie at the same place")
    _check_sideways(folder, travels - np.outer(heights, normal), heights, min(first.spacing) / 2)
    gaps = np.diff(heights)
    if np.abs(heights - distance * np.arange(len(slices))).max() > _UNEVEN * distance:
        if gaps.min() < _UNEVEN * distance:
            raise _uneven(folder, "several lie at the same place")
        raise _uneven(folder, f"they are {gaps.min():.2f} to {gaps.max():.2f} mm apart")
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.column_stack(
        [first.row * first.spacing[0], first.column * first.spacing[1], normal * distance]
    )
    affine[:3, 3] = LPS_TO_RAS @ first.position
    return Grid((len(slices), *reversed(first.size)), affine)


def _check_sideways(folder: Path, offsets: np.ndarray, heights: np.ndarray, allowed: float) -> None:
    """Refuse slices that do not lie one above the other.

    Args:
        offsets: (n, 3) mm of each slice from its place above the first one.
        heights: (n,) mm above the first one.
        allowed: mm.
    """
    largest = float(np.linalg.norm(offsets, axis=1).max())
    if largest <= allowed:
        return
    slope = heights @ offsets / (heights @ heights)
    if np.linalg.norm(offsets - np.outer(heights, slope), axis=1).max() > allowed:
        raise _uneven(folder, f"some lie up to {largest:.2f} mm beside the first")
    tilt = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    raise UserError(
        "dicom-tilt",
        f"The DICOM slices in {folder} are sheared by {tilt:.{1 if tilt > 0.5 else 2}f} degrees of gantry tilt; "
        "correct it first, for example with Slicer's DICOM module.",
        path=str(folder),
        degrees=tilt,
    )


def _uneven(folder: Path, how: str) -> UserError:
    return UserError(
        "dicom-uneven",
        f"The DICOM slices in {folder} are not evenly spaced ({how}); slices may be missing, or several scans mixed.",
        path=str(folder),
    )
