"""Checks of a file before an image is read from it: its kind, what its header claims, and the free memory.

The kind is recognized by a file's first bytes rather than its name. Each refusal names the file in one sentence.
NumPy and the standard library only.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conresnet.errors import UserError
from conresnet.files import check_content, names_in_zip
from conresnet.images import absurd_spacing
from conresnet.messages import sentence
from conresnet.package import DESCRIPTION_FILE

# gzip stores a byte in no less than 1/1032 of one.
_MOST_COMPRESSION = 1032


def truncated(path: Path, shape: Sequence[int]) -> UserError:
    """The error for a file that holds fewer voxels than its header describes."""
    return UserError("image-truncated", path=str(path), size=_size(shape))


def check_size(path: Path, shape: Sequence[int], claimed: int, held: int, compressed: bool) -> None:
    """Refuse a header that describes more voxels than fit in its file or in memory, before any are read.

    Args:
        shape: shape according to the header, for the message.
        claimed: bytes according to the header.
        held: size of the file that contains them.
        compressed: whether they are compressed in it.

    Raises:
        UserError: "image-truncated" or "image-beyond-memory".
    """
    if claimed > held * (_MOST_COMPRESSION if compressed else 1) + (1024 if compressed else 0):
        raise truncated(path, shape)
    check_memory(path, shape, claimed)


def check_memory(path: Path, shape: Sequence[int], needed: int) -> None:
    """Refuse an image that takes more bytes than are free. Raises UserError("image-beyond-memory")."""
    if needed > free_memory():
        raise UserError("image-beyond-memory", path=str(path), size=_size(shape), gigabytes=f"{needed / 1e9:.1f}")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def free_memory() -> int:
    """Bytes that this process can still allocate.

    The total memory if the system does not say how much is free, and no limit (2**62) if it says neither.
    """
    for known in (available_memory(), total_memory()):
        if known is not None:
            return known
    return 2**62


def total_memory() -> int | None:
    """Bytes of memory that this computer has; None if the system does not say."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_memory() -> int | None:
    """Bytes available to this process according to the system or a container's limit; None except on Linux."""
    free = None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        group = Path("/sys/fs/cgroup")  # a container's own limit; not counting the file cache, which is given up
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            rows = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            free = min(free, int(limit) - used + int(dict(rows).get("inactive_file", 0)))
    return free


GZIP = b"\x1f\x8b"
_BEGINNING = 2**16
# A header may list a file per slice.
_LONGEST_HEADER = 2**20
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# PyTorch's magic number, pickled, with which checkpoints before version 1.6 begin; and what follows a length in others.
_OLD_CHECKPOINT, _SAFETENSORS = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", b'{"'
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    "float": 4,
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t", "ulonglong", "uint64", "uint64_t", "double"), 8),
}
_META_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4},
    **{"MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_DOUBLE": 8},
}


def kind_of(path: Path) -> str:
    """ "nifti", "dicom", "nrrd", "meta" or "other", by a file's first bytes.

    Raises:
        UserError: "file-empty", "file-lfs-pointer", "file-web-page", "image-is-checkpoint", "image-is-model",
            "image-is-scene" or "image-archive" for files that people take for images, "image-half" for one file of a
            pair.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    is_compressed = beginning.startswith(GZIP)
    beginning = _decompressed(path, beginning)
    check_content(path, beginning)
    if beginning.startswith(_ARCHIVES) or (is_compressed and beginning[257:262] == b"ustar"):
        raise UserError(_archive_code(path), path=str(path))
    if is_nifti(beginning, path) or nifti_files(path) != (path, path):
        return "nifti"
    if not is_compressed:
        kind = _kind_of_uncompressed(path, beginning)
        if kind != "other":
            return kind
    if path.name.lower().endswith((".img", ".img.gz")) and not (other := _other_of_pair(path)).is_file():
        raise UserError("image-half", path=str(path), other=other.name)
    return "other"


def _kind_of_uncompressed(path: Path, beginning: bytes) -> str:
    if beginning[128:132] == b"DICM":
        return "dicom"
    if beginning.startswith(b"NRRD"):
        return "nrrd"
    if beginning.startswith(_OLD_CHECKPOINT) or beginning[8:10] == _SAFETENSORS:
        raise UserError("image-is-checkpoint", path=str(path))
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", beginning) or path.suffix.lower() in (".mha", ".mhd"):
        return "meta"
    return "other"


def _archive_code(path: Path) -> str:
    """The error code for an archive, depending on its contents."""
    names = names_in_zip(path)
    if DESCRIPTION_FILE in names:
        return "image-is-model"
    if "data.pkl" in names:
        return "image-is-checkpoint"
    return "image-is-scene" if any(name.endswith(".mrml") for name in names) else "image-archive"


def is_segmentation(path: Path) -> bool:
    """Whether a file is a segmentation saved by Slicer (.seg.nrrd)."""
    beginning = _first_bytes(path)
    return beginning.startswith(b"NRRD") and bool(re.search(rb"\nSegment(0|ation)_\w+:=", beginning))


def _decompressed(path: Path, beginning: bytes) -> bytes:
    """First bytes of a file's content, decompressed if needed; ``beginning`` has the first bytes of the file itself."""
    if not beginning.startswith(GZIP):
        return beginning
    try:
        with gzip.open(path) as file:
            return file.read(2**11)
    except (OSError, EOFError, zlib.error):
        # Too short or too damaged to tell: decide by the name.
        if path.name.lower().endswith((".nii", ".nii.gz")):
            raise UserError("image-damaged", path=str(path)) from None
        return beginning


def byte_order(beginning: bytes) -> str | None:
    """ "little" or "big" for a NIfTI header, by its size of 348 or 540 bytes; None if it is neither."""
    orders = (order for order in ("little", "big") if int.from_bytes(beginning[:4], order) in (348, 540))
    return next(orders, None)


def is_nifti(beginning: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a NIfTI-1 or NIfTI-2 file, or of the header of a pair (.hdr, .img).

    An Analyze header is the same as NIfTI's without the magic number, so only its name shows it.
    """
    order = byte_order(beginning)
    if order is None:
        return False
    is_first = int.from_bytes(beginning[:4], order) == 348
    return len(beginning) >= (348 if is_first else 540) and (
        beginning[344:348] in (b"n+1\0", b"ni1\0") or path.name.lower().endswith((".hdr", ".hdr.gz"))
        if is_first
        else beginning[4:7] in (b"n+2", b"ni2")
    )


_PAIR = re.compile(r"(.*\.)(hdr|img)(\.gz)?", re.IGNORECASE | re.DOTALL)


def nifti_files(path: Path) -> tuple[Path, Path]:
    """The files with the header and with the voxels: twice ``path``, or a pair, either of which it may be.

    Raises UserError("image-half") for a header whose voxels are missing.
    """
    if not _PAIR.fullmatch(path.name):
        return path, path
    other = _other_of_pair(path)
    header, voxels = (other, path) if path.name.lower().endswith((".img", ".img.gz")) else (path, other)
    beginning = _decompressed(header, _first_bytes(header))
    is_single = b"n+" in (beginning[344:346], beginning[4:6])
    if is_single or not is_nifti(beginning, header):
        return path, path
    if not voxels.is_file():
        raise UserError("image-half", path=str(path), other=voxels.name)
    return header, voxels


def _other_of_pair(path: Path) -> Path:
    """The .img file of a .hdr file and the other way round, of which one alone may be compressed."""
    stem, suffix, gz = _PAIR.fullmatch(path.name).groups(default="")
    swapped = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR"}.get(suffix, "img")
    names = [f"{stem}{swapped}{gz}", f"{stem}{swapped}{'' if gz else '.gz'}"]
    return next((path.parent / name for name in names if (path.parent / name).is_file()), path.parent / names[0])


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_BEGINNING)
    except OSError:
        return b""


class TextHeader(NamedTuple):
    """Contents of the header of a "nrrd" or "meta" file.

    Args:
        unit: of length, in mm; ITK ignores it.
        data_files: other files that store its voxels.
    """

    warnings: list[str]
    unit: float
    data_files: list[Path]


def check_text_header(path: Path, kind: str) -> TextHeader:
    """Compare what the header of a "nrrd" or "meta" file claims with its content, before ITK relies on it.

    Raises UserError "image-header", "image-empty", "image-no-spacing", "absurd-spacing", "image-data-file",
    "image-truncated" or "image-beyond-memory".
    """
    with path.open("rb") as file:
        beginning = file.read(_LONGEST_HEADER)
    return _check_nrrd(path, beginning) if kind == "nrrd" else _check_meta(path, beginning)


def _check_nrrd(path: Path, beginning: bytes) -> TextHeader:
    end = re.search(rb"\r?\n\r?\n", beginning)
    header = beginning[: end.start()] if end else beginning
    lines, fields = header.decode("utf-8", "surrogateescape").splitlines()[1:], {}
    listed = []
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
            if value.split()[:1] == ["LIST"]:
                listed = lines[number:]
                break
    sizes = _whole_numbers(path, "sizes", fields.get("sizes", ""))
    # "none" and "nan" are the values for an axis that is not one of space.
    spacings = [[text] for text in fields.get("spacings", "").split()]
    vectors = [text.split(",") for text in re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))]
    sized = [sum(np.isfinite(_numbers(axis) or np.nan).all() for axis in axes) for axes in (spacings, vectors)]
    if max(sized) < min(3, len(sizes)):
        raise UserError("image-no-spacing", path=str(path))
    name = fields.get("data file", fields.get("datafile"))
    files = [] if name is None else _data_files(path, "data file", name, sizes, listed)
    if name is None:
        held = path.stat().st_size - (end.end() if end else len(beginning))
    else:
        held = _held(files)
    each = _NRRD_BYTES.get(fields.get("type", "").lower())
    if each:
        encoding = fields.get("encoding", "raw").lower()
        claimed = _product(sizes) * each
        # A voxel stored as text takes at least two characters.
        held = held * each if encoding in ("text", "txt", "ascii", "hex") else held
        is_compressed = encoding in ("gzip", "gz", "bzip2", "bz2")
        check_size(path, sizes, claimed, held, is_compressed)
    # A "space dimension", a scanner's own axes or "3D-right-handed" do not say which way the patient's axes point.
    is_patient = not fields.get("space", "3D").lower().startswith(("3d", "scanner"))
    warnings = [] if is_patient else [sentence("warn-no-orientation", {"path": path})]
    more, unit = _unit(path, "space units", set(re.findall(r'"([^"]*)"', fields.get("space units", ""))))
    return TextHeader(warnings + more, unit, files)


def _check_meta(path: Path, beginning: bytes) -> TextHeader:
    fields, begin = {}, None
    for line in re.finditer(rb"([^\n]*)\n", beginning):
        name, equals, value = line[1].decode("utf-8", "surrogateescape").partition("=")
        if not equals:
            continue
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            begin = line.end()
            break
    dimensions = _whole_numbers(path, "NDims", fields.get("NDims", ""))
    if dimensions and not 1 <= dimensions[0] <= 10:
        raise UserError("image-header", path=str(path), field="NDims", value=dimensions[0])
    sizes = _whole_numbers(path, "DimSize", fields.get("DimSize", ""))
    if not dimensions or len(sizes) != dimensions[0]:
        shown = _shown(fields.get("DimSize", "")) or "missing"
        raise UserError("image-header", path=str(path), field="DimSize", value=shown)
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    if spacing is None:
        raise UserError("image-no-spacing", path=str(path))
    steps = _numbers(spacing.split())
    if not all(np.isfinite(step) and step > 0 for step in steps):
        raise absurd_spacing(str(path), steps)
    name, files = fields.get("ElementDataFile", ""), []
    if name.upper() == "LOCAL":
        held = path.stat().st_size - (begin or 0)
    else:
        lines = beginning[begin or 0 :].decode("utf-8", "surrogateescape").splitlines()
        files = _data_files(path, "ElementDataFile", name, sizes, lines)
        held = _held(files)
    each = _META_BYTES.get(fields.get("ElementType", ""))
    if each:
        components = _whole_numbers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))
        is_compressed = fields.get("CompressedData", "").lower() == "true"
        is_binary = fields.get("BinaryData", "true").lower() != "false"
        held = held * (1 if is_binary else each)
        check_size(path, sizes, _product(sizes) * _product(components) * each, held, is_compressed)
    has_place = {"TransformMatrix", "Orientation", "Rotation"} & set(fields)
    warnings = [] if has_place else [sentence("warn-no-orientation", {"path": path})]
    more, unit = _unit(path, "DistanceUnits", {fields.get("DistanceUnits", "")})
    return TextHeader(warnings + more, unit, files)


def _data_files(path: Path, field: str, name: str, sizes: Sequence[int], lines: Sequence[str]) -> list[Path]:
    """The files with the voxels: one, or one per slice, by a pattern or listed in the lines after the header.

    ITK would put another slice in place of one that a MetaImage leaves out.
    """
    pattern = re.fullmatch(r"([^%\s]*%0?\d*d[^%\s]*)\s+(-?\d+)\s+(-?\d+)(?:\s+(-?\d+)(?:\s+(\d+))?)?", name)
    listed = re.fullmatch(r"LIST(?:\s+(\d+)D?)?", name)
    if pattern:
        first, last, step = int(pattern[2]), int(pattern[3]), int(pattern[4] or 1) or 1
        names = [pattern[1] % number for number in range(first, last + (1 if step > 0 else -1), step)]
    elif listed:
        names = [line.strip() for line in lines if line.strip()]
    else:
        return [_data_file(path, name)]
    axes = int((pattern and pattern[5]) or (listed and listed[1]) or len(sizes) - 1)
    wanted = max(1, _product(sizes[axes:]))
    if len(names) != wanted:
        raise UserError("image-header", path=str(path), field=field, value=f"{len(names)} files instead of {wanted}")
    return [_data_file(path, name) for name in names]


def _held(files: Sequence[Path]) -> int:
    """Bytes in files that should all be as large as the smallest one."""
    return len(files) * min(file.stat().st_size for file in files)


#: The units of NRRD and MetaImage in mm.
_UNITS = {
    **{"": 1.0, "?": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "nm": 1e-6},
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers"), 1e-3),
}


def _unit(path: Path, field: str, names: set[str]) -> tuple[list[str], float]:
    """Warnings, and mm per unit of length that a header names; anything but one known unit is refused."""
    units = {_UNITS.get(name.strip().lower()) for name in names} or {1.0}
    if len(units) > 1 or None in units:
        raise UserError("image-header", path=str(path), field=field, value=_shown(", ".join(sorted(names))))
    (unit,) = units
    # Networks need mm, so this decides about the result. But viewers show the image elsewhere.
    return [sentence("warn-units", {"path": path, "unit": names.pop()})] if unit != 1 else [], unit


def _numbers(texts: Sequence[str]) -> list[float]:
    """The texts as numbers; empty if any is not a number."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return []


def _whole_numbers(path: Path, field: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split()]
    except ValueError as error:
        raise UserError("image-header", path=str(path), field=field, value=_shown(text)) from error
    if 0 in numbers and field != "NDims":
        raise UserError("image-empty", name=str(path))
    if min(numbers, default=1) < 0:
        raise UserError("image-header", path=str(path), field=field, value=_shown(text))
    return numbers


def _shown(text: str) -> str:
    """The beginning of a damaged text, in printable characters that can be encoded."""
    readable = text[:100].encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in readable)


def _product(sizes: list[int]) -> int:
    return int(np.prod(sizes, dtype=object)) if sizes else 0


def _data_file(path: Path, name: str) -> Path:
    """The file that stores the voxels according to a header; it must be a regular file, not a pipe that never ends."""
    file = path.parent / name
    try:
        is_file = bool(name) and file.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise UserError("image-data-file", path=str(path), file=_shown(name) or "nothing")
    return file
