"""Reading with ITK: NRRD, MetaImage and the other formats it knows, DICOM, and where the images are in the patient.

ITK trusts what a header says, and a damaged file can end the process. So files from outside are read in a process of
their own, whose stderr is not shown: call `conresnet.images.files`, not this.

DICOM is one series from a folder, or one file with many frames, refused unless its slices form a regular volume.
Headers are read with pydicom, pixels with ITK. ITK alone makes up what a header does not state (1 mm, the order of
frames), and does not check a file with many frames. Here, every frame of every file is one slice with a position,
and all slices get the same checks.
"""

from __future__ import annotations

import contextlib
import locale
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images import LPS_TO_RAS, Grid, ImageFile, absurd_spacing, affine_of
from conresnet.images.checks import check_memory, check_text_header, kind_of, truncated
from conresnet.images.dicom_headers import (
    Slice,
    check_left_out,
    is_inverted,
    object_kind,
    patient_ids,
    patient_of,
    read_header,
    series_name,
    series_uid,
    slices_of,
    subfolder_with_dicom,
    unreadable,
)
from conresnet.messages import sentence

if TYPE_CHECKING:
    from pydicom import Dataset

if os.name == "nt":
    # ITK's readers open a path, which comes as UTF-8, by the code page of the C library. Without this they do not find
    # a file whose path has non-ASCII characters, such as a user's name.
    with contextlib.suppress(locale.Error):  # Windows before version 1803 of 10
        locale.setlocale(locale.LC_CTYPE, ".UTF8")

#: By the first bytes of a file: the reader that ITK would take by its name, and the names it would take it for.
_READERS = {"nrrd": ("NrrdImageIO", (".nrrd", ".nhdr")), "meta": ("MetaImageIO", (".mha", ".mhd"))}
#: How far the length of a direction vector may be from 1; headers round to a few digits.
_UNIT_LENGTH = 0.01
#: Formats of pictures, which have no distance between slices. ITK gives them 1 mm.
_WITHOUT_SPACING = ("TIFFImageIO", "PNGImageIO", "JPEGImageIO", "BMPImageIO")
#: Formats for which ITK checks that a file is complete. For others, it makes up what is missing from a truncated one.
_CHECKED = ("NrrdImageIO", "MetaImageIO", "HDF5ImageIO", "MINCImageIO")


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of a SimpleITK image or reader of three or more dimensions."""
    dimensions = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    columns = direction * np.array(image.GetSpacing()[:3])
    return Grid(image.GetSize()[2::-1], affine_of(LPS_TO_RAS @ columns, LPS_TO_RAS @ image.GetOrigin()[:3]))


def read_with_itk(path: Path, header_only: bool = False) -> ImageFile:
    """Read an image file with ITK; with ``header_only``, leave ``components`` empty.

    Raises:
        UserError: "not-an-image", "image-2d", "image-color", "image-complex", "image-empty", "image-no-spacing",
            "image-header", "absurd-spacing", "image-unchecked-format", "image-data-file", "image-truncated",
            "image-damaged" or "image-beyond-memory".
    """
    kind = kind_of(path)
    warnings, unit, _files = check_text_header(path, kind) if kind in _READERS else ([], 1.0, [])
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if kind in _READERS and not path.name.lower().endswith(_READERS[kind][1]):
        reader.SetImageIO(_READERS[kind][0])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError("not-an-image", path=str(path)) from error
    check_kind(path, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    size = reader.GetSize()
    if 0 in size:
        raise UserError("image-empty", name=str(path))
    format_name = reader.GetImageIOFromFileName(str(path))
    if format_name in _WITHOUT_SPACING:
        raise UserError("image-no-spacing", path=str(path))
    if kind not in _READERS and format_name not in _CHECKED:
        shown = format_name.removesuffix("ImageIO").upper()
        raise UserError("image-unchecked-format", path=str(path), format=shown)
    grid = _scaled_grid(path, reader, unit)
    count = int(np.prod(size, dtype=object)) * reader.GetNumberOfComponents()
    if header_only:
        return ImageFile(np.empty((0, *size[2::-1])), grid, tuple(warnings))
    check_memory(path, size, count * _BYTES.get(reader.GetPixelID(), 1))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError("image-damaged", path=str(path)) from error
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    # A copy, since a view's memory is the image's.
    return ImageFile(np.array(array, order="C").reshape(-1, *array.shape[-3:]), grid, tuple(warnings))


def _scaled_grid(path: Path, reader: sitk.ImageFileReader, unit: float) -> Grid:
    """The grid in mm of an image whose header is in units of ``unit`` mm. Its directions must be unit vectors."""
    dimensions = reader.GetDimension()
    lengths = np.linalg.norm(np.reshape(reader.GetDirection(), (dimensions, dimensions)), axis=0)
    if not np.isfinite(lengths).all():
        raise absurd_spacing(str(path), reader.GetSpacing())
    if not np.allclose(lengths, 1, atol=_UNIT_LENGTH):
        shown = " x ".join(f"{length:g}" for length in lengths)
        raise UserError("image-header", path=str(path), field="the length of the axes' direction vectors", value=shown)
    grid = grid_of(reader)
    return Grid(grid.shape, np.diag([unit, unit, unit, 1.0]) @ grid.affine)


_BYTES = {
    getattr(sitk, f"sitk{vector}{name}"): np.dtype(name.lower()).itemsize
    for name in "UInt8 Int8 UInt16 Int16 UInt32 Int32 UInt64 Int64 Float32 Float64".split()
    for vector in ("", "Vector")
}


def check_kind(path: Path, dimensions: int, pixel_id: int, components: int) -> None:
    """Refuse anything but one or several 3D gray images: "image-2d", "image-color", "image-complex"."""
    if dimensions < 3:
        raise UserError("image-2d", path=str(path))
    if pixel_id == sitk.sitkVectorUInt8 and components in (3, 4):
        raise UserError("image-color", path=str(path))
    if pixel_id in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise UserError("image-complex", path=str(path))


#: Objects that are made from a scan and are not it: segmentations, surfaces, doses.
_MADE_FROM_SCANS = [f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("66.4", "66.5", "66.7", "481.2")]
#: The share of the slice distance by which a slice may be off its regular place; headers round to a tenth of a mm.
_UNEVEN = 0.1
_SIBLINGS = 200
_SHOWN_SERIES = 5


def read_series(folder: Path) -> ImageFile:
    """Read the only series in a folder, its slices in order along the patient.

    Files that contain no image, such as reports, and objects made from scans (segmentations, doses) are left out. So
    are color pictures, such as screenshots, unless they are of the scan's own series.

    Raises:
        UserError: one whose code begins with "dicom-", "cannot-read", "file-empty", "image-damaged", "image-truncated",
            "image-color", "image-complex" or "image-beyond-memory".
    """
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    left_out, pictures = [], []
    for file in sorted(folder.iterdir()):
        try:
            header = read_header(file) if file.is_file() else None
        except UserError as error:
            if error.code != "image-color":
                raise
            pictures.append((series_uid(file), error))
            continue
        if header is not None:
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
        elif file.is_file() or (file.is_symlink() and not file.exists()):
            left_out.append(file)
    scans = {
        uid: files
        for uid, files in found.items()
        if any(header.get("SOPClassUID") not in _MADE_FROM_SCANS for _file, header in files)
    }
    for uid, error in pictures:
        if not scans or uid in scans:
            raise error
    if len(scans) > 1:
        shown = [
            f"series {series_name(*files[0])} ({len(files)} file{'s' * (len(files) > 1)}, first {files[0][0].name})"
            for files in list(scans.values())[:_SHOWN_SERIES]
        ]
        more = len(scans) - len(shown)
        listed = ", ".join(shown) + (f" and {more} more" if more else "")
        raise UserError("dicom-several", path=str(folder), count=len(scans), series=listed)
    if not scans:
        inner = subfolder_with_dicom(folder)
        if inner is not None:
            raise UserError("dicom-in-subfolder", path=str(folder), subfolder=str(inner.relative_to(folder)))
        if found:
            file = next(iter(found.values()))[0][0]
            raise UserError("dicom-not-scan", path=str(file), kind=object_kind(file))
        if image := next(filter(_is_other_image, left_out), None):
            raise UserError("folder-of-images", path=str(folder), file=image.name)
        raise UserError("dicom-none", path=str(folder))
    (files,) = scans.values()
    check_left_out(left_out, [file for file, _header in files])
    slices = [piece for file, header in files for piece in slices_of(file, header)]
    return _read(folder, slices, [header for _file, header in files])


def _is_other_image(path: Path) -> bool:
    try:
        return kind_of(path) in ("nifti", "nrrd", "meta")
    except (OSError, UserError):
        return False


def read_slice_file(path: Path) -> ImageFile:
    """Read one DICOM file: one with many frames, or the only slice of its series.

    Raises UserError "dicom-one-slice" if its folder contains more slices, "dicom-not-scan" for other DICOM objects, or
    as `read_series`.
    """
    header = read_header(path)
    if header is None or header.get("SOPClassUID") in _MADE_FROM_SCANS:
        if kind := object_kind(path):
            raise UserError("dicom-not-scan", path=str(path), kind=kind)
        raise UserError("not-an-image", path=str(path))
    slices = slices_of(path, header)
    if len(slices) == 1:
        uid = header.get("SeriesInstanceUID")
        for sibling in sorted(path.absolute().parent.iterdir())[:_SIBLINGS]:
            if sibling.name != path.name and uid and series_uid(sibling) == uid:
                raise UserError("dicom-one-slice", path=str(path), folder=str(path.absolute().parent))
    return _read(path, slices, [header])


def _read(path: Path, slices: list[Slice], headers: list[Dataset]) -> ImageFile:
    """The volume of a series' slices, checked and in order; ``path`` is what the user named."""
    slices = _in_order(path, slices)
    grid = _regular_grid(path, slices)
    for piece in slices:
        check_memory(piece.file, (*piece.size, len(slices)), piece.size[0] * piece.size[1] * len(slices) * 2)
    try:
        array = _frames(slices) if any(piece.frames > 1 for piece in slices) else _files(slices)
    except RuntimeError as error:
        raise unreadable(path, headers) from error
    array = array.reshape(-1, *array.shape[-2:])
    if array.shape != grid.shape:
        raise truncated(path, grid.shape[::-1])
    warnings = [sentence("warn-inverted", {"path": path})] if any(map(is_inverted, headers)) else []
    if len(patient_ids(headers) - {""}) > 1:
        warnings.append(sentence("warn-mixed-patients", {"path": path}))
    modality = str(headers[0].get("Modality", "")).strip()
    return ImageFile(_narrowed(array)[None], grid, tuple(warnings), modality, patient_of(headers))


def _files(slices: Sequence[Slice]) -> np.ndarray:
    """[k, j, i] of slices that are a file each."""
    names = [str(piece.file) for piece in slices]
    differ = len({(piece.scale, piece.stored) for piece in slices}) > 1
    kinds = [_kind(piece.file) for piece in (slices if differ else slices[:1])]
    if len(slices) == 1:
        return sitk.GetArrayFromImage(sitk.ReadImage(names[0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    if len(set(kinds)) > 1:
        # With a rescale slope per slice, as in PET, or in different types. ITK would convert all to the first one's.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    return sitk.GetArrayFromImage(reader.Execute())


def _frames(slices: Sequence[Slice]) -> np.ndarray:
    """[k, j, i] of slices some of which are frames of one file."""
    files = {}
    for piece in slices:
        if piece.file not in files:
            _kind(piece.file)
            if len({other.scale for other in slices if other.file == piece.file}) > 1:
                raise UserError("dicom-mixed-scale", path=str(piece.file))
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(piece.file)))
            files[piece.file] = array.reshape(-1, *array.shape[-2:])
            if len(files[piece.file]) != piece.frames:
                raise truncated(piece.file, (*piece.size, piece.frames))
    if len(files) == 1:
        (array,) = files.values()
        order = [piece.frame for piece in slices]
        return array if order == list(range(len(array))) else array[order]
    return np.stack([files[piece.file][piece.frame] for piece in slices])


def _kind(file: Path) -> int:
    """The pixel type as ITK sees it. Refuses colors and complex numbers."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    check_kind(file, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    return reader.GetPixelID()


def _narrowed(array: np.ndarray) -> np.ndarray:
    """The voxels in half the memory, if the smaller type can hold them: ITK widens the type of rescaled values."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    limits = np.iinfo(np.int16)
    if array.dtype == np.int32 and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int16)
    return array


def _belong_together(one: Slice, other: Slice) -> bool:
    """Whether two slices are parallel and of one size and spacing."""
    parallel = np.allclose([one.row, one.column], [other.row, other.column], atol=1e-3)
    return parallel and one.size == other.size and np.allclose(one.spacing, other.spacing, rtol=1e-3)


def _in_order(path: Path, slices: list[Slice]) -> list[Slice]:
    """Sorted along the normal of the slices, which must be parallel and of one size."""
    first = slices[0]
    others = [piece for piece in slices if not _belong_together(first, piece)]
    if others:
        # The slice that differs from most others, such as a localizer stored with its scan.
        odd = others[0] if 2 * len(others) < len(slices) else first
        raise UserError("dicom-mixed", path=str(path), file=odd.file.name)
    normal = np.cross(first.row, first.column)
    return sorted(slices, key=lambda piece: float(piece.position @ normal))


def _regular_grid(path: Path, slices: list[Slice]) -> Grid:
    """The grid on which the slices are. Raises UserError if they are not on one."""
    first = slices[0]
    normal = np.cross(first.row, first.column)
    if len(slices) == 1:
        if not first.thickness:
            raise UserError("dicom-no-spacing", path=str(path))
        distance = first.thickness
    else:
        distance = _slice_distance(path, slices, normal)
    columns = np.column_stack([first.row * first.spacing[0], first.column * first.spacing[1], normal * distance])
    affine = affine_of(LPS_TO_RAS @ columns, LPS_TO_RAS @ first.position)
    return Grid((len(slices), *reversed(first.size)), affine)


def _slice_distance(path: Path, slices: Sequence[Slice], normal: np.ndarray) -> float:
    """mm from slice to slice, of slices in order."""
    travels = np.array([piece.position - slices[0].position for piece in slices])
    heights = travels @ normal
    distance = float(heights[-1]) / (len(slices) - 1)
    if distance <= 0:
        raise UserError("dicom-same-place", path=str(path))
    _check_sideways(path, travels - np.outer(heights, normal), heights, min(slices[0].spacing) / 2)
    gaps = np.diff(heights)
    if np.abs(heights - distance * np.arange(len(slices))).max() > _UNEVEN * distance:
        # A single slice far away can make the distance arbitrarily large.
        if gaps.min() < _UNEVEN * min(distance, *slices[0].spacing):
            raise UserError("dicom-same-place", path=str(path))
        raise UserError("dicom-uneven", path=str(path), smallest=float(gaps.min()), largest=float(gaps.max()))
    return distance


def _check_sideways(path: Path, offsets: np.ndarray, heights: np.ndarray, allowed: float) -> None:
    """Refuse slices that are not above one another; ``offsets`` (n, 3) and ``heights`` (n,) are mm from the first."""
    largest = float(np.linalg.norm(offsets, axis=1).max())
    if largest <= allowed:
        return
    slope = heights @ offsets / (heights @ heights)
    if np.linalg.norm(offsets - np.outer(heights, slope), axis=1).max() > allowed:
        raise UserError("dicom-sideways", path=str(path), largest=largest)
    raise UserError("dicom-tilt", path=str(path), degrees=float(np.degrees(np.arctan(np.linalg.norm(slope)))))
