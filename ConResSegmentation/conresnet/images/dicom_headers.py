"""DICOM headers, read with pydicom and compared with their files: which files are images, and where each frame is."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from conresnet.errors import UserError
from conresnet.images.checks import check_memory, truncated

if TYPE_CHECKING:
    from pydicom import Dataset

_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
# What ITK decodes: uncompressed, JPEG, JPEG-LS, JPEG 2000 and RLE.
_DECODED = {f"1.2.840.10008.1.2{kind}" for kind in ("", ".1", ".2", ".5")} | {
    f"1.2.840.10008.1.2.4.{kind}" for kind in (50, 51, 57, 70, 80, 81, 90, 91)
}
_FLOAT_PIXELS = ((0x7FE0, 0x0008), (0x7FE0, 0x0009))
_COLORS = ("PALETTE COLOR", "RGB", "YBR")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_SCALE = ("Slope", "Intercept")
_STORED = ("BitsAllocated", "BitsStored", "PixelRepresentation")
_DEEPEST, _MOST_FOLDERS = 3, 300


@dataclass(frozen=True, eq=False)
class Slice:
    """What a header says of one frame: LPS mm, and unit vectors along a row and a column.

    Args:
        frame: index in its file, which has ``frames`` of them.
        size: columns, rows.
        spacing: mm from column to column and from row to row.
        thickness: mm, None if unknown.
        scale: rescale slope and intercept, as the header writes them.
        stored: bits allocated and stored, and whether there are negative values, as the header writes them.
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
    stored: tuple[str, ...]


def read_header(file: Path) -> Dataset | None:
    """A DICOM image's header, checked against its file; None for anything else, such as a report or a text.

    Raises:
        UserError: "cannot-read", "image-damaged", "image-truncated", "image-color", "dicom-inverted" or
            "dicom-pixels".
    """
    pydicom = _pydicom(file)
    try:
        with file.open("rb") as opened:
            beginning = opened.read(132)
            is_dicom = beginning[128:132] == b"DICM"
            if not _may_be_dicom(beginning):
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
        if getattr(header, "file_meta", {}).get("TransferSyntaxUID") == _DEFLATED:
            raise UserError("dicom-pixels", path=str(file), what="Deflated Explicit VR Little Endian")
        if tag in _FLOAT_PIXELS:
            raise UserError("dicom-pixels", path=str(file), what="floating-point numbers")
        raise UserError("image-damaged", path=str(file))
    return None


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(132)


def _may_be_dicom(beginning: bytes) -> bool:
    # Old files have no preamble and begin with their first group of elements.
    return beginning[128:132] == b"DICM" or beginning[:2] in (b"\x08\0", b"\x02\0")


def check_left_out(files: Sequence[Path], slices: Sequence[Path]) -> None:
    """Refuse a file that is named like a slice but is empty, damaged at its beginning, or a broken link.

    Without this, such a file at the end of a series would shorten the scan unnoticed. ``files`` are those of a folder
    in which no image was found, ``slices`` those of the series. Raises UserError "cannot-read", "file-empty" or
    "image-damaged".
    """
    names = {_kind_of_name(file) for file in slices}
    for file in files:
        # macOS adds files such as ._0001.dcm.
        if file.name.startswith(".") or _kind_of_name(file) not in names:
            continue
        try:
            beginning = _beginning(file)
        except OSError as error:
            raise UserError("cannot-read", path=str(file), reason=error.strerror or str(error)) from error
        if not beginning:
            raise UserError("file-empty", path=str(file))
        if not _may_be_dicom(beginning):
            raise UserError("image-damaged", path=str(file))


def _kind_of_name(file: Path) -> str:
    """What the names of a series' files have in common: their suffix, or without one, all except the numbers."""
    suffix = file.suffix.lower()
    return suffix if re.search("[a-z]", suffix) else re.sub(r"\d+", "#", file.name)


def is_inverted(header: Dataset) -> bool:
    """Whether the lowest values are meant to look white. ITK then inverts all values, as Slicer does."""
    return str(header.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1"


def patient_of(headers: Sequence[Dataset]) -> str:
    """A checksum of the PatientID; empty if it is missing or the headers differ."""
    found = patient_ids(headers)
    known = found.pop() if len(found) == 1 else ""
    return hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest() if known else ""


def patient_ids(headers: Sequence[Dataset]) -> set[str]:
    """Every PatientID, including the empty one."""
    return {str(header.get("PatientID") or "").strip() for header in headers}


def _pydicom(file: Path) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise UserError("reader-needs-package", path=str(file), package="pydicom") from error
    return pydicom


def _parsed(pydicom: Any, opened: BinaryIO, file: Path, is_dicom: bool) -> Dataset | None:
    """All elements before the pixels, leaving the file there; None for a file that only resembles DICOM."""
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
    """Compare the size that a header describes with the pixels that its file holds behind the 12 bytes ``element``."""
    try:
        rows, columns, samples = int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1))
        frames = _frame_count(header)
        bits = int(header.BitsAllocated)
        claimed = rows * columns * samples * frames * bits // 8
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError("image-damaged", path=str(file)) from error
    if min(rows, columns, samples, frames, bits) < 1:
        raise UserError("image-damaged", path=str(file))
    colors = str(header.get("PhotometricInterpretation", "")).strip().startswith(_COLORS)
    if samples in (3, 4) or colors:
        raise UserError("image-color", path=str(file))
    if any(not _changes_nothing(table) for table in header.get("ModalityLUTSequence") or ()):
        # ITK ignores it.
        raise UserError("dicom-pixels", path=str(file), what="entries of a lookup table (ModalityLUTSequence)")
    # Only how values look is inverted, so Hounsfield units come from the stored values; ITK computes them from the
    # inverted ones.
    if is_inverted(header) and header.get("Modality") == "CT":
        raise UserError("dicom-inverted", path=str(file))
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
    elif length < claimed or held < claimed:
        raise truncated(file, shape)
    check_memory(file, shape, claimed)


def _changes_nothing(table: Dataset) -> bool:
    """Whether a lookup table gives back what it is asked for, as some programs write one."""
    try:
        count, first, _bits = table.LUTDescriptor
        entries = table.LUTData
        entries = np.frombuffer(entries, "<u2") if isinstance(entries, bytes) else np.array(entries).reshape(-1)
    except (AttributeError, TypeError, ValueError):
        return False
    # DICOM writes 65536 as 0.
    return np.array_equal(entries, np.arange(first, first + (count or 2**16)))


def _fragments(opened: BinaryIO, end: int) -> int:
    """How many whole items a sequence of fragments has; 0 if something else than its end follows them."""
    count = 0
    while True:
        item = opened.read(8)
        if len(item) < 8 or item[:4] == b"\xfe\xff\xdd\xe0":
            return count
        if item[:4] != b"\xfe\xff\x00\xe0":
            # Such as zeros at the end of a file that was not transferred completely. JPEG is decoded up to there.
            return 0
        length = int.from_bytes(item[4:], "little")
        if opened.tell() + length > end:
            return count
        opened.seek(length, 1)
        # Some programs do not count the byte that makes a length even. ITK accepts it.
        if length % 2 and opened.read(1) == item[:1]:
            opened.seek(-1, 1)
        count += 1


def _frame_count(header: Dataset) -> int:
    value = header.get("NumberOfFrames")
    return 1 if value in (None, "") else int(value)


def unreadable(path: Path, headers: Sequence[Dataset]) -> UserError:
    """The error for a scan whose headers are complete, but whose pixels ITK cannot read; ``path`` is what was named.

    Its code is "dicom-pixels", "dicom-kind", "dicom-compressed" or, if nothing else is known, "image-damaged".
    """
    uid = _pydicom(path).uid.UID
    for header in headers:
        syntax = uid(str(header.file_meta.get("TransferSyntaxUID", "")))
        kind = uid(str(header.get("SOPClassUID", "")))
        # A missing UID counts as private.
        is_known = not syntax.is_private
        if is_known and syntax not in _DECODED:
            return UserError("dicom-pixels", path=str(path), what=syntax.name)
        # The name of an unknown UID is the UID.
        if kind and kind.name == kind:
            return UserError("dicom-kind", path=str(path), kind=kind)
        # Of private ones, pydicom 2 cannot say it.
        if is_known and syntax.is_compressed:
            return UserError("dicom-compressed", path=str(path), what=syntax.name)
    return UserError("image-damaged", path=str(path))


def series_uid(file: Path) -> str:
    """The series of a file; empty if it is not named, or if the file cannot be read."""
    return str(_read_some(file).get("SeriesInstanceUID", ""))


def object_kind(file: Path) -> str | None:
    """DICOM's name for the kind of object in a file, such as "RT Structure Set Storage"; None if unknown."""
    header = _read_some(file)
    uid = header.get("SOPClassUID") or getattr(header, "file_meta", header).get("MediaStorageSOPClassUID")
    return getattr(uid, "name", None)


def _read_some(file: Path) -> Dataset | dict:
    pydicom = _pydicom(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, specific_tags=["SeriesInstanceUID", "SOPClassUID"])
    except Exception:  # pydicom raises what its parts raise
        return {}


def series_name(file: Path, header: Dataset) -> str:
    parts = (str(header.get(name, "")).strip() for name in ("SeriesNumber", "SeriesDescription"))
    return " ".join(part for part in parts if part and part != "None") or file.name


def subfolder_with_dicom(folder: Path) -> Path | None:
    """The first subfolder, not many levels down, in which a file begins like DICOM."""
    level, looked = [folder], 0
    for _ in range(_DEEPEST):
        inner = []
        for parent in level:
            with contextlib.suppress(OSError):
                inner += sorted(entry for entry in parent.iterdir() if entry.is_dir())
        if found := next(filter(_holds_dicom, inner[: _MOST_FOLDERS - looked]), None):
            return found
        level, looked = inner, looked + len(inner)
        if looked >= _MOST_FOLDERS:
            break
    return None


def _holds_dicom(folder: Path) -> bool:
    """Whether one of the first files in a folder begins like DICOM."""
    entries = []
    with contextlib.suppress(OSError):
        entries = sorted(folder.iterdir())[:20]
    for entry in entries:
        # It may be a link that must not be followed.
        with contextlib.suppress(OSError):
            if entry.is_file() and _beginning(entry)[128:] == b"DICM":
                return True
    return False


def slices_of(file: Path, header: Dataset) -> list[Slice]:
    """Every frame of a file.

    Raises UserError "dicom-no-position", "dicom-no-spacing", "dicom-pixels", or "image-damaged".
    """
    try:
        return list(_slices(file, header))
    except UserError:
        raise
    except Exception as error:  # pydicom parses what is inside sequences only now, and raises what its parts raise
        raise UserError("image-damaged", path=str(file)) from error


def _slices(file: Path, header: Dataset) -> Iterator[Slice]:
    if "MOSAIC" in (header.get("ImageType") or ()):
        # Its one slice would be all of them, next to each other.
        raise UserError("dicom-pixels", path=str(file), what="a mosaic of all slices (ImageType MOSAIC)")
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
        yield Slice(
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
            tuple(str(header.get(name)) for name in _STORED),
        )


def _groups(header: Dataset, frame: int) -> list[Dataset]:
    """Where a frame's attributes may be: its own groups, those shared by all frames, and a single frame's header."""
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
