"""Reading with ITK: NRRD, MetaImage and the other formats it knows, and where its images are in the patient.

ITK trusts what a header says, and a damaged file can end the process. So files from outside are read in a process of
their own: call `conresnet.images.files`, not this.
"""

from __future__ import annotations

import contextlib
import locale
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.checks import check_memory
from conresnet.images.file_kinds import check_text_header, kind_of
from conresnet.images.grid import LPS_TO_RAS, Grid, ImageFile
from conresnet.messages import sentence

if os.name == "nt":
    # ITK's readers open a path, which comes as UTF-8, by the code page of the C library. Without this they do not find
    # a file whose path has other letters than English ones, such as a user's name.
    with contextlib.suppress(locale.Error):  # Windows before version 1803 of 10
        locale.setlocale(locale.LC_CTYPE, ".UTF8")

#: By the first bytes of a file: the reader that ITK would take by its name, and the names it would take it for.
_READERS = {"nrrd": ("NrrdImageIO", (".nrrd", ".nhdr")), "meta": ("MetaImageIO", (".mha", ".mhd"))}
#: Formats of pictures, which have no distance between slices. ITK gives them 1 mm.
_WITHOUT_SPACING = ("TIFFImageIO", "PNGImageIO", "JPEGImageIO", "BMPImageIO")


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of a SimpleITK image or reader of three or more dimensions."""
    dimensions = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (direction * np.array(image.GetSpacing()[:3]))
    affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()[:3]
    return Grid(tuple(reversed(image.GetSize()[:3])), affine)


def read_with_itk(path: Path, header_only: bool = False) -> ImageFile:
    """Read an image file with ITK.

    Args:
        header_only: leave ``components`` empty.

    Raises:
        UserError: "not-an-image", "image-2d", "image-color", "image-complex", "image-empty", "image-no-spacing",
            "image-header", "image-data-file", "image-truncated", "image-damaged" or "image-beyond-memory".
    """
    kind = kind_of(path)
    warnings = check_text_header(path, kind) if kind in _READERS else []
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if kind in _READERS and not path.name.lower().endswith(_READERS[kind][1]):
        reader.SetImageIO(_READERS[kind][0])
    with quiet_itk():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError("not-an-image", path=str(path)) from error
        check_kind(path, reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
        size = reader.GetSize()
        if 0 in size:
            raise UserError("image-empty", name=str(path))
        if reader.GetImageIOFromFileName(str(path)) in _WITHOUT_SPACING:
            raise UserError("image-no-spacing", path=str(path))
        # A pair of files, .hdr and .img, has them; a single NIfTI file is not read here.
        codes = [reader.GetMetaData(key) for key in ("qform_code", "sform_code") if reader.HasMetaDataKey(key)]
        if codes and not any(code.strip() not in ("0", "") for code in codes):
            warnings.append(sentence("warn-no-orientation", {"path": path}))
        count = int(np.prod(size, dtype=object)) * reader.GetNumberOfComponents()
        if header_only:
            return ImageFile(np.empty((0, *size[2::-1])), grid_of(reader), tuple(warnings))
        check_memory(path, size, count * _BYTES.get(reader.GetPixelID(), 1))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise UserError("image-damaged", path=str(path)) from error
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    # A copy, since a view's memory is the image's.
    return ImageFile(np.array(array, order="C").reshape(-1, *array.shape[-3:]), grid_of(image), tuple(warnings))


_BYTES = {
    getattr(sitk, f"sitk{vector}{name}"): size
    for name, size in {
        **{"UInt8": 1, "Int8": 1, "UInt16": 2, "Int16": 2, "UInt32": 4, "Int32": 4, "UInt64": 8, "Int64": 8},
        **{"Float32": 4, "Float64": 8},
    }.items()
    for vector in ("", "Vector")
}


def check_kind(path: Path, dimensions: int, pixel_id: int, components: int) -> None:
    """Refuse anything but one or several 3-D gray images: "image-2d", "image-color", "image-complex"."""
    if dimensions < 3:
        raise UserError("image-2d", path=str(path))
    if pixel_id == sitk.sitkVectorUInt8 and components in (3, 4):
        raise UserError("image-color", path=str(path))
    if pixel_id in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise UserError("image-complex", path=str(path))


@contextlib.contextmanager
def quiet_itk() -> Iterator[None]:
    """Suppress what ITK and its libraries print to stderr, where the command line prints one sentence of its own.

    Some of them write to file descriptor 2 directly, so it is redirected meanwhile.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a program without a console has no descriptor 2
            _redirect_stderr(stack)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _redirect_stderr(stack: contextlib.ExitStack) -> None:
    kept = os.dup(2)
    stack.callback(os.close, kept)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, nowhere)
    os.dup2(nowhere, 2)
    stack.callback(os.dup2, kept, 2)
