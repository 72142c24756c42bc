"""NIfTI files: reading them without trusting the header, and writing them.

The header is parsed with nibabel's header classes, and the voxels are read here: as many bytes as the header describes
and the file can hold, into one array. An image is placed in the patient by the rule of ITK 5.3 and later, and so of
Slicer, whichever version of ITK is installed. If the header contradicts itself, the image gets a warning.

Only code that reads or writes NIfTI files needs nibabel: inside Slicer, the engine gets its arrays from Slicer.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.images import Grid, ImageFile, absurd_spacing, affine_of, transformed
from conresnet.images.checks import GZIP, byte_order, check_memory, check_size, is_nifti, nifti_files, truncated
from conresnet.messages import sentence

_VOXELS_BEGIN = 352
#: Size of the header, to its class and the first byte that voxels can have in a single file.
_HEADERS = {348: (nibabel.Nifti1Header, 352), 540: (nibabel.Nifti2Header, 544)}
_TYPES = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8"},
    **{1280: "u8", 1792: "c16"},
}
_COLORS = (128, 2304)
_COMPLEX_LONG_DOUBLE = 2048
#: xyzt_units to mm; anything else counts as mm.
_MM = {1: 1000.0, 3: 0.001}
_PLACING_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
# How far the columns of an sform may be from right angles for ITK to accept it.
_ORTHONORMAL = 1e-4
# After the voxels, a file is read to its end, where gzip keeps its checksum, but at most this many bytes, because a few
# kilobytes of gzip can expand to gigabytes.
_MOST_REST = 2**26


def read_nifti(path: Path) -> ImageFile:
    """Read a NIfTI file or an Analyze or NIfTI pair (.hdr, .img), compressed or not, with one or several 3D images.

    Raises:
        UserError: "image-half", "not-an-image", "image-header", "image-damaged", "image-truncated",
            "image-beyond-memory", "image-empty", "image-2d", "image-color", "image-complex" or "absurd-spacing".
    """
    try:
        header_file, voxel_file = nifti_files(path)
        with _opened(header_file) as file:
            header = _header(file, header_file)
        grid, warnings = nifti_grid(header, str(path))
        least = 0 if header_file != voxel_file else _HEADERS[header.template_dtype.itemsize][1]
        with _opened(voxel_file) as file:
            array, more = _voxels(file, header, voxel_file, least)
            rest = _MOST_REST
            while isinstance(file, gzip.GzipFile) and rest > 0 and (block := file.read(2**20)):
                rest -= len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("image-damaged", path=str(path)) from error
    return ImageFile(array, grid, (*warnings, *more))


def read_nifti_grid(path: Path) -> tuple[Grid, int]:
    """The grid of a NIfTI file and its number of 3D images, from its header alone. Raises as `read_nifti` does."""
    try:
        header_file, _ = nifti_files(path)
        with _opened(header_file) as file:
            header = _header(file, header_file)
        return nifti_grid(header, str(path))[0], math.prod(_shape(header)[3:])
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("image-damaged", path=str(path)) from error


def _opened(path: Path) -> BinaryIO:
    """Open the file, and decompress it if its first bytes show that it is compressed, regardless of its name."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == GZIP
    return gzip.open(path, "rb") if is_compressed else path.open("rb", buffering=0)


def _header(file: BinaryIO, path: Path) -> nibabel.Nifti1Header:
    """The header, with sizes that make sense."""
    beginning = file.read(540)
    if not is_nifti(beginning, path):
        raise UserError("not-an-image", path=str(path))
    kind, _ = _HEADERS[int.from_bytes(beginning[:4], byte_order(beginning))]
    size = kind.template_dtype.itemsize
    endianness = "<" if byte_order(beginning) == "little" else ">"
    header = kind(beginning[:size], endianness=endianness, check=False)
    if not header["magic"].item().startswith(b"n"):
        # An Analyze header has neither transforms nor, as in ITK, a scaling; other programs store other things there.
        header["qform_code"] = header["sform_code"] = header["xyzt_units"] = header["scl_slope"] = 0
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise _wrong(path, "dim[0]", dimensions)
    shape = _shape(header)
    if min(shape) < 0:
        raise _wrong(path, "dim", " x ".join(map(str, shape)))
    if len(shape) < 3:
        raise UserError("image-2d", path=str(path))
    if 0 in shape:
        raise UserError("image-empty", name=str(path))
    return header


def _wrong(path: Path, field: str, value: object) -> UserError:
    return UserError("image-header", path=str(path), field=field, value=value)


def _shape(header: nibabel.Nifti1Header) -> tuple[int, ...]:
    """Sizes (i, j, k, ...); a size of 0 behind the third counts as 1, as in ITK."""
    dimensions = int(header["dim"][0])
    return tuple(int(size) or (place > 2) * 1 for place, size in enumerate(header["dim"][1 : dimensions + 1]))


def _voxels(file: BinaryIO, header: nibabel.Nifti1Header, path: Path, least: int) -> tuple[np.ndarray, list[str]]:
    """(c, k, j, i), scaled as the header says, and warnings. Voxels begin no earlier than at ``least``."""
    shape, dtype = _shape(header), _type(header, path)
    slope, intercept, warnings = _scaling(header, path)
    offset = header["vox_offset"]
    if not np.isfinite(offset):
        raise _wrong(path, "vox_offset", offset)
    # A single file's voxels cannot begin inside its header, even if the field says so.
    offset = max(int(offset), least)
    count = int(np.prod(shape, dtype=object))
    is_compressed = isinstance(file, gzip.GzipFile)
    check_size(path, shape, offset + count * dtype.itemsize, path.stat().st_size, is_compressed)
    # Scaled values are a second array.
    each = dtype.itemsize if (slope, intercept) == (1, 0) else 2 * max(4, dtype.itemsize)
    check_memory(path, shape, count * each)
    array = np.empty(shape[::-1], dtype)
    file.seek(offset)
    if not _filled(array, file):
        raise truncated(path, shape)
    return _components(array, slope, intercept), warnings


def stored_voxels(image: nibabel.Nifti1Image) -> np.ndarray:
    """(c, k, j, i) of an image that nibabel has opened, as `read_nifti` reads them from its file."""
    proxy = image.dataobj
    return _components(np.asanyarray(proxy.get_unscaled()).T, proxy.slope, proxy.inter)


def _components(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """(c, k, j, i) in the stored type; if scaled, in float32, or in float64 if float32 cannot represent the values."""
    if (slope, intercept) != (1, 0):
        # A value and the next one are the same in float32 if the intercept is this large.
        fits = np.can_cast(array.dtype, np.float32, "safe") and abs(intercept) < 2**23 * abs(slope)
        kind = np.float32 if fits else np.float64
        array = array.astype(kind)
        array *= kind(slope)
        array += kind(intercept)
    array = array.reshape(-1, *array.shape[-3:])
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _filled(array: np.ndarray, file: BinaryIO) -> bool:
    """Read an array's bytes from a file; returns whether there were enough of them."""
    memory, place = memoryview(array.reshape(-1).view(np.uint8)), 0
    while place < len(memory):
        # In steps, since a compressed file is first read into a buffer of the requested size.
        try:
            got = file.readinto(memory[place : place + 2**24])
        except EOFError:  # of a compressed file
            return False
        if not got:
            return False
        place += got
    return True


def _type(header: nibabel.Nifti1Header, path: Path) -> np.dtype:
    code = int(header["datatype"])
    if code in _COLORS:
        raise UserError("image-color", path=str(path))
    name = _TYPES.get(code)
    if code == _COMPLEX_LONG_DOUBLE or (name and name.startswith("c")):
        raise UserError("image-complex", path=str(path))
    if name is None:
        raise _wrong(path, "datatype", code)
    return np.dtype(name).newbyteorder(header.endianness)


def _scaling(header: nibabel.Nifti1Header, path: Path) -> tuple[float, float, list[str]]:
    """Slope, intercept and warnings; a slope of 0 means that values are not scaled."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0, []
    if not np.isfinite(intercept):
        return slope, 0.0, [sentence("warn-scaling-ignored", {"path": path})]
    return slope, intercept, []


def nifti_grid(header: nibabel.Nifti1Header, name: str) -> tuple[Grid, list[str]]:
    """The grid that a header describes, and warnings if it describes none, or two.

    ITK uses the directions and the origin of the sform or qform, and the voxel size from pixdim.

    Args:
        header: of three dimensions or more.
        name: name of the image in messages.

    Raises:
        UserError: "absurd-spacing".
    """
    # Both libraries silently replace a size of 0 by 1 mm and drop a minus sign, so check the stored values.
    pixdim = np.array(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise absurd_spacing(name, pixdim)
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    shape = _shape(header)[2::-1]
    codes = int(header["qform_code"]), int(header["sform_code"])
    qform, sform = _qform(header, pixdim), header.get_sform()
    fields = {name: np.array(header[name]) for name in (*_PLACING_FIELDS, "xyzt_units")}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    warnings = []
    if max(codes) <= 0:
        chosen = np.diag([-1.0, -1.0, 1.0, 1.0])
        chosen[:3, :3] *= pixdim
        warnings.append(sentence("warn-no-orientation", {"path": name}))
    elif _takes_sform(codes, qform, sform):
        chosen = _with_spacing(sform, pixdim)
    elif codes[0] > 0:
        chosen = _with_spacing(qform, pixdim)
    else:
        # ITK refuses this one. A new header also has a qform, which ITK uses.
        chosen, fields = sform, None
    stated = [matrix for matrix, code in zip((qform, sform), codes, strict=True) if code > 0]
    scale = np.diag([unit, unit, unit, 1.0])
    chosen = scale @ chosen
    if not np.isfinite(chosen).all():
        raise absurd_spacing(name, np.linalg.norm(chosen[:3, :3], axis=0))
    grid = Grid(shape, chosen, fields)
    distance = max((_distance(grid, scale @ matrix) for matrix in stated), default=0.0)
    if distance > 0.5 * grid.spacing.min():
        taken = "sform" if codes[0] <= 0 or _takes_sform(codes, qform, sform) else "qform"
        values = {"path": name, "distance": distance, "taken": taken}
        warnings.append(sentence("warn-transforms-differ", values))
    return grid, warnings


def _takes_sform(codes: tuple[int, int], qform: np.ndarray, sform: np.ndarray) -> bool:
    """Whether ITK uses the sform: if its axes are at right angles, and it is the scanner's, the only one, or the same.

    ITK compares the two by the bases of their singular vectors, so it regards a sform that mirrors the qform around the
    same origin as equal. Here, that is a contradiction, and the qform is used.
    """
    if codes[1] <= 0 or not np.isfinite(sform).all():
        return False
    norms = np.linalg.norm(sform[:3, :3], axis=0)
    if not norms.all():
        return False
    directions = sform[:3, :3] / norms
    if np.abs(directions @ directions.T - np.eye(3)).max() > _ORTHONORMAL:
        return False
    return codes[0] <= 0 or codes[1] == 1 or bool(np.abs(sform - qform).max() <= 1e-4)


def _with_spacing(matrix: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The matrix with columns of these lengths."""
    result = matrix.copy()
    norms = np.linalg.norm(matrix[:3, :3], axis=0)
    result[:3, :3] = matrix[:3, :3] / np.where(norms > 0, norms, 1) * spacing
    return result


def _qform(header: nibabel.Nifti1Header, pixdim: np.ndarray) -> np.ndarray:
    """The matrix of the quaternion, in the float32 that the NIfTI library keeps it in."""
    b, c, d = (float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d"))
    a = 1.0 - (b * b + c * c + d * d)
    if a < 1e-7:
        length = np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = np.sqrt(a)
    rotation = nibabel.quaternions.quat2mat([a, b, c, d])
    columns = rotation * pixdim * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    offset = [float(header[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    return affine_of(columns, offset).astype(np.float32).astype(np.float64)


def _distance(grid: Grid, affine: np.ndarray) -> float:
    """The distance in mm between a corner's positions by two (4, 4) matrices; infinite if one is not finite."""
    if not np.isfinite(affine).all():
        return float("inf")
    corners = Grid(grid.shape, np.eye(4)).corners(0)
    return float(np.linalg.norm(transformed(corners, affine) - transformed(corners, grid.affine), axis=1).max())


def write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    """See `conresnet.images.files.write_volume`. Slice by slice, so that no converted copy of ``array`` is needed."""
    dtype = np.dtype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype))
    components = array if array.ndim == 4 else array[None]
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(array.shape[::-1] if array.ndim == 3 else (*array.shape[:0:-1], len(array)))
    if grid.nifti_fields is None:
        _place(header, grid)
    else:
        for name, value in grid.nifti_fields.items():
            if name == "pixdim":
                header["pixdim"][:4] = value
            else:
                header[name] = value
    header["magic"], header["vox_offset"] = b"n+1", _VOXELS_BEGIN
    # Fast rather than small.
    create = functools.partial(gzip.open, compresslevel=1) if path.name.lower().endswith(".gz") else open
    with replacing(path) as temporary, create(temporary, "wb") as file:
        header.write_to(file)
        file.write(bytes(_VOXELS_BEGIN - file.tell()))
        for component in components:
            for plane in component:
                file.write(np.ascontiguousarray(plane, dtype=dtype).tobytes())


def _place(header: nibabel.Nifti1Header, grid: Grid) -> None:
    """Write where the voxels are as both sform and qform, the latter with a code only if it can express the place."""
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    # It also brings the size of voxels into the header. ITK takes it where the axes of the sform are not at right
    # angles, so it must not place any corner elsewhere: all that it can hold is a rotation and the size.
    header.set_qform(grid.affine, code="scanner")
    if not grid.matches(Grid(grid.shape, header.get_qform()), tolerance=0.1):
        header["qform_code"] = 0
