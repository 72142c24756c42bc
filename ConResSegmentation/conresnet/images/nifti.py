"""NIfTI files, with nibabel: it notices a file that ends too early, in reading and in writing, where ITK does not.

Only who reads or writes NIfTI files needs nibabel: the engine inside Slicer gets its arrays from Slicer.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel
import nibabel.imageglobals
import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.images.checks import absurd_spacing, color_image, complex_image, not_an_image
from conresnet.images.grid import Grid
from conresnet.images.itk import ImageFile, grid_of, quiet_itk

_VOXELS_BEGIN = 352
_NOT_READABLE = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, ValueError, EOFError)


def read_nifti(path: Path) -> ImageFile:
    """Read a .nii or .nii.gz file with one or several 3-D images.

    Where the header holds two transforms that differ, the one is taken that ITK, and so Slicer, takes; where ITK
    refuses both because their axes are not exactly at right angles, and in NIfTI-2, which it does not read, the one
    nibabel takes.

    Raises:
        UserError: "cannot-read", "not-an-image", "image-2d", "image-color", "image-complex", "absurd-spacing".
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with _quiet_nibabel(), opened(path, "rb") as file:
            image = _image(file, path)
            array = stored_voxels(image)
            file.read()  # to the end, where gzip keeps the checksum
    except (*_NOT_READABLE, OSError, zlib.error) as error:
        raise not_an_image(path) from error
    return ImageFile(array, nifti_grid(image, path))


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel's remarks about headers off stderr; ``_image`` says what matters."""
    was, nibabel.imageglobals.logger.disabled = nibabel.imageglobals.logger.disabled, True
    try:
        yield
    finally:
        nibabel.imageglobals.logger.disabled = was


def _image(file: BinaryIO, path: Path) -> nibabel.Nifti1Image:
    """The image in an open file, its header checked and its voxels not yet read."""
    size = file.read(4)
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    kind = next((kinds[n] for order in ("little", "big") if (n := int.from_bytes(size, order)) in kinds), None)
    if kind is None:
        raise not_an_image(path)
    file.seek(0)
    # Both libraries silently take 1 mm for a size of 0 and drop a minus sign: look at what the file says.
    sizes = kind.header_class.from_fileobj(file, check=False)["pixdim"][1:4]
    file.seek(0)
    image = kind.from_file_map(kind.make_file_map({"header": file, "image": file}))
    if len(image.shape) < 3:
        raise UserError("image-2d", f"{path} is a 2-D image; a 3-D volume is wanted.", path=str(path))
    dtype = image.get_data_dtype()
    if dtype.names:
        raise color_image(path)
    if dtype.kind == "c":
        raise complex_image(path)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise absurd_spacing(str(path), sizes)
    if not np.isfinite(image.affine).all():
        raise absurd_spacing(str(path), np.linalg.norm(image.affine[:3, :3], axis=0))
    return image


def stored_voxels(image: nibabel.Nifti1Image) -> np.ndarray:
    """(c, k, j, i) in the stored type; scaled as the header says, then in float32 where that holds the stored type."""
    proxy = image.dataobj
    slope, intercept = proxy.slope, proxy.inter
    array = np.asanyarray(proxy.get_unscaled())
    if (slope, intercept) != (1, 0):
        kind = np.float32 if np.can_cast(array.dtype, np.float32, "safe") else np.float64
        array = array.astype(kind)
        array *= kind(slope)
        array += kind(intercept)
    array = array.T.reshape(-1, *array.shape[2::-1])
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def nifti_grid(image: nibabel.Nifti1Image, path: Path) -> Grid:
    """Where an image lies, by the header in a file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
        return grid_of(reader)
    except RuntimeError as error:
        if isinstance(image, nibabel.Nifti2Image) or "orthonormal" in str(error):
            return Grid(image.shape[2::-1], image.affine)
        # Another guess at where the image lies would be a wrong result without a word.
        sentence = f"The image {path} cannot be read (ITK does not take its header or its path); copy or convert it."
        raise UserError("cannot-read", sentence, path=str(path)) from error


def write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    """See ``conresnet.images.files.write_volume``. Slice by slice, so that no converted copy of ``array`` is needed."""
    dtype = np.dtype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype))
    components = array if array.ndim == 4 else array[None]
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(array.shape[::-1] if array.ndim == 3 else (*array.shape[:0:-1], len(array)))
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    # Set in any case, since it brings the size of voxels into the header.
    header.set_qform(grid.affine, code="scanner" if _fits_qform(header, grid) else "unknown")
    header["magic"], header["vox_offset"] = b"n+1", _VOXELS_BEGIN
    with replacing(path) as temporary, _created(temporary) as file:
        header.write_to(file)
        file.write(bytes(_VOXELS_BEGIN - file.tell()))
        for component in components:
            for plane in component:
                file.write(np.ascontiguousarray(plane, dtype=dtype).tobytes())


def _fits_qform(header: nibabel.Nifti1Header, grid: Grid) -> bool:
    """Whether a rotation with a size of voxels, all that a qform holds, says of every corner where it lies.

    ITK takes the qform where the axes of the sform are not at right angles, so it must not say anything else.
    """
    rotation = header.copy()
    rotation.set_qform(grid.affine)
    return grid.matches(Grid(grid.shape, rotation.get_qform()), tolerance=0.1)


def _created(path: Path) -> BinaryIO:
    """A new file; fast rather than small where it is compressed."""
    return gzip.open(path, "wb", compresslevel=1) if path.name.lower().endswith(".gz") else path.open("wb")
