"""DICOM: one series from a folder, or one file with many frames, refused unless its slices form a regular volume.

Headers are read with pydicom, pixels with ITK. ITK alone makes up what a header does not say (1 mm, the order of
frames), and applies no check to a file with many frames. Here, every frame of every file is one slice with a position,
and all slices get the same checks. The functions run in the reader process, see `conresnet.images.reader_process`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.checks import check_memory, truncated
from conresnet.images.grid import LPS_TO_RAS, Grid, ImageFile
from conresnet.images.itk import check_kind, quiet_itk

if TYPE_CHECKING:
    from pydicom import Dataset

#: Of what a DICOMDIR and the objects made from a scan are; none is a slice of it.
_DIRECTORY = "1.2.840.10008.1.3.10"
_MADE_FROM_SCANS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.2")
#: The share of the slice distance by which a slice may be off its regular place; headers round to a tenth of a mm.
_UNEVEN = 0.1
_UNDEFINED_LENGTH = 0xFFFFFFFF
_SIBLINGS = 200
_DEEPEST, _MOST_FOLDERS = 3, 300


@dataclass(frozen=True, eq=False)
class _Slice:
    """What a header says of one frame: LPS mm, and unit vectors along a row and a column.

    Args:
        frame: index in its file, which has ``frames`` of them.
        size: columns, rows.
        spacing: mm from column to column and from row to row.
        thickness: mm, None if unknown.
        scale: rescale slope and intercept, as the header writes them.
    """

    file: Path
    frame: int
    frames: int
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    size: tuple[int, int]
    spacing: tuple[float, float]
    thickness: float | None
    scale: tuple[str, str]


def read_series(folder: Path) -> ImageFile:
    """Read the only series in a folder, its slices in order along the patient.

    Files that contain no image, such as reports, and objects made from scans (segmentations, doses) are left out.

    Raises:
        UserError: "dicom-none", "dicom-in-subfolder", "dicom-several", "dicom-no-position", "dicom-no-spacing",
            "dicom-mixed", "dicom-mixed-scale", "dicom-tilt", "dicom-uneven", "dicom-same-place", "dicom-sideways",
            "cannot-read", "image-damaged", "image-truncated", "image-color", "image-complex" or "image-beyond-memory".
    """
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and (header := _header(file)) is not None:
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    scans = {
        uid: files
        for uid, files in found.items()
        if any(header.get("SOPClassUID") not in _MADE_FROM_SCANS for _file, header in files)
    }
    if len(scans) > 1:
        listed = "; ".join(f"{_description(*files[0])}, {len(files)} files" for files in scans.values())
        raise UserError("dicom-several", path=str(folder), count=len(scans), series=listed)
    if not scans:
        inner = _subfolder_with_dicom(folder)
        if inner is not None:
            raise UserError("dicom-in-subfolder", path=str(folder), subfolder=str(inner.relative_to(folder)))
        raise UserError("dicom-none", path=str(folder))
    (files,) = scans.values()
    return _read(folder, [piece for file, header in files for piece in _slices(file, header)])


def read_slice_file(path: Path) -> ImageFile:
    """Read one DICOM file: one with many frames, or the only slice of its series.

    Raises:
        UserError: "dicom-one-slice" if further slices are next to it; otherwise as `read_series`.
    """
    header = _header(path)
    if header is None:
        raise UserError("not-an-image", path=str(path))
    slices = list(_slices(path, header))
    if len(slices) == 1:
        uid = header.get("SeriesInstanceUID")
        for sibling in sorted(path.absolute().parent.iterdir())[:_SIBLINGS]:
            if sibling.name != path.name and uid and _series_uid(sibling) == uid:
                raise UserError("dicom-one-slice", path=str(path), folder=str(path.absolute().parent))
    return _read(path, slices)


def _header(file: Path) -> Dataset | None:
    """A DICOM image's header, checked against its file; None for anything else, such as a report or a text.

    Raises:
        UserError: "cannot-read", "image-damaged" or "image-truncated".
    """
    pydicom = _pydicom(file)
    try:
        with file.open("rb") as opened:
            beginning = opened.read(132)
            is_dicom = beginning[128:132] == b"DICM"
            # Old files have no preamble and begin with their first group of elements.
            if not is_dicom and beginning[:2] not in (b"\x08\0", b"\x02\0"):
                return None
            opened.seek(0)
            header = _parsed(pydicom, opened, file, is_dicom)
            if header is None:
                return None
            kind = str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
            element = opened.read(12)
            tag = int.from_bytes(element[:2], "little"), int.from_bytes(element[2:4], "little")
            if {tag, tag[::-1]} & {(0x7FE0, 0x0010), (0x7FE0, 0x1000)} or _is_big_pixels(element):
                _check_pixels(file, header, opened, element)
                return header
    except OSError as error:
        raise UserError("cannot-read", path=str(file), reason=error.strerror or str(error)) from error
    # An image without pixels was cut off. Any other object never had them.
    if kind != _DIRECTORY and "Image Storage" in (pydicom.uid.UID(kind).name if kind else "Image Storage"):
        raise UserError("image-damaged", path=str(file))
    return None


def _pydicom(file: Path) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise UserError("reader-needs-package", path=str(file), package="pydicom") from error
    return pydicom


def _parsed(pydicom: Any, opened: BinaryIO, file: Path, is_dicom: bool) -> Dataset | None:
    """All elements before the pixels, where the file then stands; None for what only resembles DICOM."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(opened, stop_before_pixels=True, force=not is_dicom)
            if not is_dicom and "SOPClassUID" not in header:
                return None
            # Values are parsed when they are first asked for, so ask here, where a damaged one is noticed.
            for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"):
                if header.get(name) is not None:
                    int(header[name].value)
            list(header)
        return header
    except OSError:
        raise
    except Exception as error:  # pydicom raises what its parts raise: struct.error, KeyError, RecursionError, ...
        if is_dicom:
            raise UserError("image-damaged", path=str(file)) from error
        return None


def _is_big_pixels(element: bytes) -> bool:
    return element[:4] == b"\x7f\xe0\x00\x10"


def _check_pixels(file: Path, header: Dataset, opened: BinaryIO, element: bytes) -> None:
    """Compare the size that a header describes with the pixels that its file holds.

    Args:
        opened: behind the first 12 bytes of the element of pixels, which are ``element``.
    """
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    try:
        rows, columns, samples = int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1))
        frames = _frame_count(header)
        claimed = rows * columns * samples * frames * int(header.BitsAllocated) // 8
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError("image-damaged", path=str(file)) from error
    if min(rows, columns, frames) < 1:
        raise UserError("image-damaged", path=str(file))
    if samples in (3, 4) or str(header.get("PhotometricInterpretation", "")).strip() == "PALETTE COLOR":
        raise UserError("image-color", path=str(file))
    shape = (columns, rows, frames)
    order = "big" if _is_big_pixels(element) else "little"
    if element[4:6].isalpha():
        length = int.from_bytes(element[8:12], order)
    else:
        length = int.from_bytes(element[4:8], order)
        opened.seek(-4, 1)
    begin = opened.tell()
    held = file.stat().st_size - begin
    if length == _UNDEFINED_LENGTH:
        # Compressed; one fragment per frame at least, behind the table of their places.
        if _fragments(opened, begin + held) - 1 < frames:
            raise truncated(file, shape)
    elif not (syntax and syntax.is_deflated) and (length < claimed or held < claimed):
        raise truncated(file, shape)
    check_memory(file, shape, claimed)


def _fragments(opened: BinaryIO, end: int) -> int:
    """How many whole items a sequence of fragments has."""
    count = 0
    while True:
        item = opened.read(8)
        if len(item) < 8 or item[:4] != b"\xfe\xff\x00\xe0":
            return count
        length = int.from_bytes(item[4:], "little")
        if opened.tell() + length > end:
            return count
        opened.seek(length, 1)
        count += 1


def _frame_count(header: Dataset) -> int:
    value = header.get("NumberOfFrames")
    return 1 if value in (None, "") else int(value)


def _series_uid(file: Path) -> str | None:
    pydicom = _pydicom(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID")
    except Exception:  # whatever is wrong with it, it is not the same series
        return None


def _description(file: Path, header: Dataset) -> str:
    parts = (str(header.get(name, "")).strip() for name in ("SeriesNumber", "SeriesDescription"))
    return " ".join(part for part in parts if part and part != "None") or file.name


def _subfolder_with_dicom(folder: Path) -> Path | None:
    """The first subfolder, not many levels down, in which a file begins like DICOM."""
    level, looked = [folder], 0
    for _ in range(_DEEPEST):
        inner = []
        for parent in level:
            try:
                inner += sorted(entry for entry in parent.iterdir() if entry.is_dir())
            except OSError:
                continue
        for candidate in inner[: _MOST_FOLDERS - looked]:
            if any(_begins_like_dicom(file) for file in _some_files(candidate)):
                return candidate
        looked += len(inner)
        level = inner
        if looked >= _MOST_FOLDERS:
            break
    return None


def _some_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())[:20]
    except OSError:
        return
    for entry in entries:
        if entry.is_file():
            yield entry


def _begins_like_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _slices(file: Path, header: Dataset) -> Iterator[_Slice]:
    """Every frame of a file. Raises UserError("dicom-no-position" or "dicom-no-spacing")."""
    frames = _frame_count(header)
    for frame in range(frames):
        places = _groups(header, frame)
        position = _numbers(places, "PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = _numbers(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        if position is None or orientation is None:
            raise UserError("dicom-no-position", path=str(file))
        row, column = orientation[:3], orientation[3:]
        lengths = [abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column)]
        if not np.isfinite([*position, *lengths]).all() or max(lengths) > 0.01:
            raise UserError("dicom-no-position", path=str(file))
        # ImagerPixelSpacing is that of the detector, not of the patient, so it does not help out.
        spacing = _numbers(places, "PixelMeasuresSequence", "PixelSpacing", 2)
        if spacing is None or not (np.isfinite(spacing).all() and (spacing > 0).all()):
            raise UserError("dicom-no-spacing", path=str(file))
        thickness = _numbers(places, "PixelMeasuresSequence", "SpacingBetweenSlices", 1)
        if thickness is None:
            thickness = _numbers(places, "PixelMeasuresSequence", "SliceThickness", 1)
        yield _Slice(
            file,
            frame,
            frames,
            position,
            row,
            column,
            (int(header.Columns), int(header.Rows)),
            (float(spacing[1]), float(spacing[0])),
            None if thickness is None else abs(float(thickness[0])),
            tuple(str(_value(places, "PixelValueTransformationSequence", f"Rescale{name}")) for name in _SCALE),
        )


_SCALE = ("Slope", "Intercept")


def _groups(header: Dataset, frame: int) -> list[Dataset]:
    """Where to look for what is said of a frame: its own groups, those of all frames, and a single frame's header."""
    own = header.get("PerFrameFunctionalGroupsSequence")
    shared = header.get("SharedFunctionalGroupsSequence")
    places = [own[frame]] if own is not None and frame < len(own) else []
    places += [shared[0]] if shared else []
    return places if _frame_count(header) > 1 else [*places, header]


def _value(places: Sequence[Dataset], sequence: str, name: str) -> Any:
    for place in places:
        items = place.get(sequence)
        for item in (items[0] if items else None, place):
            if item is not None and item.get(name) not in (None, ""):
                return item.get(name)
    return None


def _numbers(places: Sequence[Dataset], sequence: str, name: str, count: int) -> np.ndarray | None:
    try:
        values = np.array(_value(places, sequence, name), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _read(path: Path, slices: list[_Slice]) -> ImageFile:
    """The volume of a series' slices, checked and in order.

    Args:
        path: what the user named, for messages.
    """
    slices = _in_order(path, slices)
    grid = _regular_grid(path, slices)
    for piece in slices:
        check_memory(piece.file, (*piece.size, len(slices)), piece.size[0] * piece.size[1] * len(slices) * 2)
    with quiet_itk():
        try:
            array = _frames(slices) if any(piece.frames > 1 for piece in slices) else _files(slices)
        except RuntimeError as error:
            raise UserError("image-damaged", path=str(path)) from error
    array = array.reshape(-1, *array.shape[-2:])
    if array.shape != grid.shape:
        raise truncated(path, grid.shape[::-1])
    return ImageFile(_narrowed(array)[None], grid)


def _files(slices: Sequence[_Slice]) -> np.ndarray:
    """[k, j, i] of slices that are a file each."""
    names = [str(piece.file) for piece in slices]
    kinds = [_kind(piece.file) for piece in (slices if len({piece.scale for piece in slices}) > 1 else slices[:1])]
    if len(slices) == 1:
        return sitk.GetArrayFromImage(sitk.ReadImage(names[0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    if len(set(kinds)) > 1:
        # With a rescale slope per slice, as in PET. ITK would convert them all to the first one's type.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    return sitk.GetArrayFromImage(reader.Execute())


def _frames(slices: Sequence[_Slice]) -> np.ndarray:
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
    """In half the memory where that holds the values: ITK widens what a rescale slope or intercept touches."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    limits = np.iinfo(np.int16)
    if array.dtype == np.int32 and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int16)
    return array


def _in_order(path: Path, slices: list[_Slice]) -> list[_Slice]:
    """Sorted along the normal of the slices, which must be parallel and of one size."""
    first = slices[0]
    for piece in slices[1:]:
        parallel = np.allclose([piece.row, piece.column], [first.row, first.column], atol=1e-3)
        if not parallel or piece.size != first.size or not np.allclose(piece.spacing, first.spacing, rtol=1e-3):
            raise UserError("dicom-mixed", path=str(path))
    normal = np.cross(first.row, first.column)
    return sorted(slices, key=lambda piece: float(piece.position @ normal))


def _regular_grid(path: Path, slices: list[_Slice]) -> Grid:
    """The grid on which the slices are. Raises UserError if they are not on one."""
    first = slices[0]
    normal = np.cross(first.row, first.column)
    if len(slices) == 1:
        if not first.thickness:
            raise UserError("dicom-no-spacing", path=str(path))
        distance = first.thickness
    else:
        distance = _slice_distance(path, slices, normal)
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.column_stack(
        [first.row * first.spacing[0], first.column * first.spacing[1], normal * distance]
    )
    affine[:3, 3] = LPS_TO_RAS @ first.position
    return Grid((len(slices), *reversed(first.size)), affine)


def _slice_distance(path: Path, slices: Sequence[_Slice], normal: np.ndarray) -> float:
    """mm from slice to slice, of slices in order."""
    travels = np.array([piece.position - slices[0].position for piece in slices])
    heights = travels @ normal
    distance = float(heights[-1]) / (len(slices) - 1)
    if distance <= 0:
        raise UserError("dicom-same-place", path=str(path))
    _check_sideways(path, travels - np.outer(heights, normal), heights, min(slices[0].spacing) / 2)
    gaps = np.diff(heights)
    if np.abs(heights - distance * np.arange(len(slices))).max() > _UNEVEN * distance:
        if gaps.min() < _UNEVEN * distance:
            raise UserError("dicom-same-place", path=str(path))
        raise UserError("dicom-uneven", path=str(path), smallest=float(gaps.min()), largest=float(gaps.max()))
    return distance


def _check_sideways(path: Path, offsets: np.ndarray, heights: np.ndarray, allowed: float) -> None:
    """Refuse slices that are not above one another.

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
        raise UserError("dicom-sideways", path=str(path), largest=largest)
    raise UserError("dicom-tilt", path=str(path), degrees=float(np.degrees(np.arctan(np.linalg.norm(slope)))))
