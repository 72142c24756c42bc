"""Segment from Python in one call; this is ``conresnet.segment``.

    result = conresnet.segment("head.nii.gz", "brain-tissue", maps=["residual"])
    result.volumes_ml, result.warnings
    result.save("results")

Images may be in files or in memory: SimpleITK images, nibabel images, and pairs of an array and its affine. Results are
of the same kind, on the same grid, in the same axis order. The command line is a thin layer on this module.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.files import write_text
from conresnet.images import LPS_TO_RAS, Grid, ImageFile, Volume
from conresnet.images.files import read_channels
from conresnet.images.inputs import BoxROI, by_channel, check_channel_count, roi_from_text, warn_of_names
from conresnet.images.itk import check_kind, grid_of
from conresnet.inference.segmentation import LoadedModel, SegmentResult, WarmModel, load_model
from conresnet.inference.segmentation import segment as segment_volumes
from conresnet.package.reader import ModelPackage
from conresnet.package.store import read_model
from conresnet.request import Progress, SegmentOptions
from conresnet.results import (
    PAGE_FILE,
    REPORT_FILE,
    REVIEW_FILE,
    SLICER_FILE,
    STATISTICS_FILE,
    filling,
    image_state,
    result_files,
    write_images,
    write_seg_nrrd,
    write_statistics,
)
from conresnet.results.review import ReviewRow, write_review

Report = Callable[[str, float, float | None], None]
Wrap = Callable[[np.ndarray], Any]
"""From an array [k, j, i] or [c, k, j, i] on an image's grid to an object of the image's kind."""

_warm = WarmModel()
# A network serves one case at a time. The lock is reentrant because a progress callback may segment another case.
_one_at_a_time = threading.RLock()
# The models of the calls that wait in a progress callback for another call to end, and of the one at work.
_busy: list[LoadedModel] = []


def _after_fork() -> None:
    """The threads that were at work do not exist in the copy of the process, and will never finish."""
    global _one_at_a_time, _busy
    _one_at_a_time = threading.RLock()
    if _busy:
        # Another list, because a call that forked in its progress callback goes on in both processes.
        _busy = []
        _warm.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def segment(
    image: Any,
    model: str | os.PathLike | ModelPackage,
    *,
    channels: Mapping[str, Any] | None = None,
    roi: BoxROI | Sequence[float] | str | os.PathLike | None = None,
    maps: str | Iterable[str] = (),
    device: str = "auto",
    precision: str = "auto",
    progress: Report | Progress | None = None,
    **options: Any,
) -> Result:
    """Segment one case. The model that was used last stays loaded. Calls from several threads wait for each other.

    Args:
        image: a path (NIfTI, Analyze, NRRD, MetaImage, MINC, HDF5, or a folder with one DICOM series), a SimpleITK or
            nibabel image, or a pair (array, affine), whose 4 x 4 affine maps the array's indices to RAS mm. For a
            model with several channels, one image with all of them (4D, in arrays the last axis), a list in the model's
            order, or None if ``channels`` is given.
        model: name of an installed or shipped model, the path of a package, or what ``read_model`` returned.
        channels: images by the model's names for them, such as ``{"T1": ..., "FLAIR": ...}``.
        roi: where to segment: six numbers R0, R1, A0, A1, S0, S1 in RAS mm, a .mrk.json file from Slicer, a ``BoxROI``,
            "auto" (the model's locator finds it) or "all" (the whole image). None is "auto" for a model with a locator
            in an image much larger than the model was trained on, else "all".
        maps: maps to compute along with the labels, such as "residual"; all are in ``conresnet.package.outputs.MAPS``.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        progress: called with phase, fraction done (0 to 1) and seconds left (or None). Its exceptions stop the run.
        options: more fields of ``conresnet.request.SegmentOptions``, such as ``review=True``, ``tiling``, ``threads``.

    Raises:
        UserError: an image, the model or an option is unsuitable; the message says why, and what to do.
    """
    if unknown := options.keys() - SegmentOptions.specs().keys():
        raise TypeError(f"segment() got an unexpected option {min(unknown)!r}")
    package = read_model(model)
    maps = SegmentOptions.specs()["maps"].from_text(maps) if isinstance(maps, str) else tuple(maps or ())
    chosen = SegmentOptions(roi=_box(roi), maps=maps, device=device, precision=precision, **options).checked()
    if channels is not None and not isinstance(channels, Mapping):
        raise TypeError("channels is a mapping from the names of channels to images")
    names = [item.name for item in package.description.inputs]
    if (image is None) == (channels is None):
        raise TypeError("give either image or channels")
    is_several = isinstance(image, list) or (isinstance(image, tuple) and all(map(_is_path, image)))
    images = by_channel(channels, names) if channels is not None else image if is_several else [image]
    listener = progress if isinstance(progress, Progress) else _Calling(progress) if progress else Progress()
    with _one_at_a_time:
        began = time.monotonic()
        loaded = _warm.get(package, listener)
        if any(loaded is other for other in _busy):
            # Its networks are in the middle of a pass.
            loaded = load_model(package)
        busy = _busy
        busy.append(loaded)
        try:
            return segment_images(loaded, images, chosen, listener, time.monotonic() - began)
        finally:
            busy.pop()


def segment_images(
    model: LoadedModel, images: Sequence[Any], options: SegmentOptions, progress: Progress, loading: float
) -> Result:
    """Segment one case with a model that is loaded, which took ``loading`` seconds.

    ``images`` are one per channel in the model's order, or a single one with all; each as ``segment`` accepts it.
    """
    began = time.monotonic()
    progress.report("reading", 0.0, None)
    paths = [Path(image) for image in images if _is_path(image)]
    # Before they are read: an image that is replaced from now on is not the one that was segmented.
    sources = {"model": model.description.digest, "images": [image_state(path) for path in paths]}
    inputs = model.description.inputs
    volumes, wrap = _read_sources(images, [item.name for item in inputs])
    if len(images) == len(inputs):
        names = [Path(_name(image, "")).name for image in images]
        volumes[0].warnings = (*volumes[0].warnings, *warn_of_names(inputs, names))
    reading = time.monotonic() - began
    result = segment_volumes(model, volumes, options, progress)
    result.report["seconds"] = {"loading": loading, "reading": reading, **result.report["seconds"]}
    if "located" in result.report:
        sources["locator"] = model.finder().description.digest
    result.report["sources"] = sources
    return Result(result, wrap, paths, model, options)


class Result:
    """A segmented case.

    Attributes:
        labels: the model's label values (uint8) as an image of the source's kind, on its own grid and in its axis
            order: a SimpleITK image for a path or a SimpleITK image, a nibabel image for a nibabel image, an array for
            a pair. With several channels, the source is the model's first one.
        maps: float32 images by name, of the same kind and grid. Several components are pixel components in SimpleITK,
            and the last axis elsewhere.
        volumes_ml: mL of each segment, by name.
        review: the places worth checking, see ``conresnet.results.review.ReviewRow``; None unless requested.
        statistics: measurements of each segment, see ``conresnet.results.segment_statistics``; uncertainties only if
            they were requested.
        report: what ``report.json`` holds: windows, device, precision, seconds, segments and more.
        warnings: sentences about what to check.
    """

    def __init__(
        self, result: SegmentResult, wrap: Wrap, inputs: Sequence[Path], model: LoadedModel, options: SegmentOptions
    ):
        self._model, self._options = model, options
        self._result = result
        self._wrap = wrap
        self._inputs = list(inputs)
        self.report = result.report
        self.volumes_ml: dict[str, float] = result.report["volumes_ml"]
        self.warnings: list[str] = result.report["warnings"]

    @cached_property
    def labels(self) -> Any:
        # A copy, so that changing it does not change what `save` writes.
        return self._wrap(self._result.labels.array.copy())

    @cached_property
    def maps(self) -> dict[str, Any]:
        arrays = {name: array.astype(np.float32) for name, array in self._result.maps.items()}
        return {name: self._wrap(array[0] if len(array) == 1 else array) for name, array in arrays.items()}

    @cached_property
    def review(self) -> list[ReviewRow] | None:
        found = self.report.get("review")
        return found and [ReviewRow(**row) for row in found["rows"]]

    @cached_property
    def statistics(self) -> list[dict[str, Any]]:
        return self.report.get("statistics") or self._result.statistics()

    def save_report(self, path: str | os.PathLike, name: str | None = None) -> None:
        """Write the page that the command line writes with ``--report``: pictures, measurements and the model card.

        It names neither the patient nor any file; the case is called ``name``. Uncertainty and the review list are
        included if they were requested. Raises UserError "disk-full" or "cannot-write".
        """
        from conresnet.results.report import write_page

        path, made = Path(os.path.expanduser(path)), self._result
        shown = self._model.package, made.labels, made.channels, made.all_maps, self.report
        write_page(path, *shown, regions=made.regions, output=made.output, name=name or "")

    def picture(self) -> bytes:
        """A PNG picture: an axial, a coronal and a sagittal slice with the outlines of all segments."""
        from conresnet.results.pictures import Scene, png

        result = self._result
        image = next(iter(result.channels.values()))
        scene = Scene(image, result.labels.array, result.regions, result.output)
        return png(scene.slices(scene.place(None)))

    def save(self, folder: str | os.PathLike, overwrite: bool = False) -> None:
        """Write what the command line writes: segmentation.nii.gz, <map>.nii.gz for each map, report.json, and, if
        requested, segmentation.seg.nrrd, review.csv, statistics.csv and report.html.

        With ``overwrite``, an earlier run's results in the folder are replaced. Raises UserError as
        ``conresnet.results.filling``; the folder is unchanged then.
        """
        if folder == "":
            # As a path, it would be the working directory.
            raise UserError("output-not-folder", path='""')
        with filling(Path(os.path.expanduser(folder)), self._options, overwrite, self._inputs) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write the files into a folder that exists."""
        began = time.monotonic()
        write_images(self._result, folder)
        if self._options.seg_nrrd:
            made, model = self._result, self._model.package.description
            name = f"{model.name} {model.version}"
            write_seg_nrrd(folder / SLICER_FILE, made.labels, made.regions, made.output, name)
        if self._options.review:
            write_review(self.review, folder / REVIEW_FILE)
        if self._options.statistics:
            write_statistics(self.statistics, folder / STATISTICS_FILE)
        if self._options.report:
            self.save_report(folder / PAGE_FILE, self._options.report_name)
        seconds = dict(self.report["seconds"])
        seconds["writing"] += time.monotonic() - began
        seconds["total"] = sum(seconds.values())
        about = {"files": result_files(self._options), "options": self._options.of_labels()}
        report = {**self.report, "seconds": seconds, **about}
        if "review" in report:
            # The rows have a file of their own.
            report["review"] = {key: value for key, value in report["review"].items() if key != "rows"}
        write_text(folder / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


class _Calling(Progress):
    """Progress told to a function."""

    def __init__(self, function: Report):
        self._function = function

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        self._function(phase, fraction, seconds_left)


def _box(roi: object) -> BoxROI | str | None:
    if roi is None or isinstance(roi, BoxROI):
        return roi
    return roi_from_text(os.fspath(roi)) if _is_path(roi) else BoxROI.from_bounds(roi)


def _is_path(image: object) -> bool:
    """Whether an image is given as a path."""
    return isinstance(image, str | os.PathLike)


def _read_sources(images: Sequence[object], channel_names: Sequence[str]) -> tuple[list[Volume], Wrap]:
    """The images of a case, each of any kind, and a function that makes results of the first one's kind."""
    if all(map(_is_path, images)):
        volumes = read_channels(images, channel_names)
        return volumes, _wrap_as_itk(volumes[0].grid)
    holds_all = len(images) == 1 and len(channel_names) > 1
    if not holds_all:
        check_channel_count([_name(image, "image") for image in images], channel_names)
    volumes, wraps = [], []
    for image, name in zip(images, channel_names, strict=False):
        if _is_path(image):
            read = read_channels([image], [name])
            volumes, wraps = volumes + read, [*wraps, _wrap_as_itk(read[0].grid)]
            continue
        found, wrap = _open(image, _name(image, name))
        wanted = channel_names if holds_all else [name]
        if len(found.components) != len(wanted):
            counts = {"given": len(found.components), "channels": ", ".join(wanted), "wanted": len(wanted)}
            raise UserError("image-components", name=_name(image, name), **counts)
        warnings = [found.warnings, *([()] * (len(wanted) - 1))]
        volumes += [
            Volume(array, found.grid, _name(image, label), about)
            for array, label, about in zip(found.components, wanted, warnings, strict=True)
        ]
        wraps.append(wrap)
    return volumes, wraps[0]


def _name(image: object, channel: str) -> str:
    """What messages call an image: its file where it has one, else its channel."""
    if _is_path(image):
        return str(image)
    return getattr(image, "get_filename", lambda: None)() or channel


def _open(image: object, name: str) -> tuple[ImageFile, Wrap]:
    if isinstance(image, sitk.Image):
        return _open_itk(image, name)
    # Only a program that has imported nibabel can have one of its images.
    nibabel = sys.modules.get("nibabel")
    if nibabel and isinstance(image, nibabel.spatialimages.SpatialImage):
        return _open_nibabel(image, name)
    if isinstance(image, tuple) and len(image) == 2:
        return _open_array(*image, name)
    raise UserError("image-kind", name=name, kind=type(image).__name__)


_LABEL_MAPS = (sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64)


def _open_itk(image: sitk.Image, name: str) -> tuple[ImageFile, Wrap]:
    if image.GetPixelID() in _LABEL_MAPS:
        # Asked for its components, SimpleITK ends the process.
        raise UserError("image-type", name=name, type=image.GetPixelIDTypeAsString())
    check_kind(Path(name), image.GetDimension(), image.GetPixelID(), image.GetNumberOfComponentsPerPixel())
    array, grid = sitk.GetArrayFromImage(image), grid_of(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    if image.GetDimension() == 3:
        # Exactly the image's, without rounding.
        wrap = _wrap_as_itk(grid, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    else:
        wrap = _wrap_as_itk(grid)
    return ImageFile(array.reshape(-1, *grid.shape), grid), wrap


def _wrap_as_itk(grid: Grid, spacing: Any = None, origin: Any = None, direction: Any = None) -> Wrap:
    """Results as SimpleITK images on a grid, or with exactly this geometry of it."""

    def wrap(array: np.ndarray) -> sitk.Image:
        has_components = array.ndim == 4
        image = sitk.GetImageFromArray(
            np.ascontiguousarray(np.moveaxis(array, 0, -1)) if has_components else array, isVector=has_components
        )
        image.SetSpacing(spacing or [float(size) for size in grid.spacing])
        image.SetOrigin(origin or [float(value) for value in LPS_TO_RAS @ grid.affine[:3, 3]])
        image.SetDirection(direction or [float(value) for value in (LPS_TO_RAS @ grid.direction).ravel()])
        return image

    return wrap


def _open_nibabel(image: Any, name: str) -> tuple[ImageFile, Wrap]:
    import nibabel

    from conresnet.images.nifti import nifti_grid, stored_voxels

    if len(image.shape) < 3:
        raise UserError("image-2d", path=name)
    try:
        if nibabel.is_proxy(image.dataobj) and hasattr(image.dataobj, "get_unscaled"):
            components = stored_voxels(image)
        else:
            components = _own(image.dataobj, name).T.reshape(-1, *image.shape[2::-1])
    # Only now nibabel reads the voxels from the file, which may have changed since.
    except FileNotFoundError as error:
        raise UserError("image-not-found", path=name) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("image-damaged", path=name) from error
    if isinstance(image, nibabel.Nifti1Image):
        # By the rules for files: two transforms may disagree, and units may not be mm.
        grid, warnings = nifti_grid(image.header, name)
    else:
        grid, warnings = _grid(components, image.affine, name), []

    def wrap(array: np.ndarray) -> nibabel.spatialimages.SpatialImage:
        stored = np.moveaxis(array, 0, -1).transpose(2, 1, 0, 3) if array.ndim == 4 else array.T
        if not isinstance(image, nibabel.Nifti1Image):
            return nibabel.Nifti1Image(stored, image.affine)
        header = image.header.copy()
        header.set_data_dtype(stored.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        return type(image)(stored, image.affine, header)

    return ImageFile(components, grid, tuple(warnings)), wrap


def _open_array(array: Any, affine: Any, name: str) -> tuple[ImageFile, Wrap]:
    array = _own(array, name)
    if array.ndim not in (3, 4):
        raise _wrong_shape(array, affine, name)
    components = array.T if array.ndim == 4 else array.T[None]
    return ImageFile(components, _grid(components, affine, name)), lambda result: np.ascontiguousarray(result.T)


def _own(array: Any, name: str) -> np.ndarray:
    """A copy of an image's array, which the caller may reuse while the result is still measured and drawn."""
    if np.ma.is_masked(array):
        raise UserError("array-masked", name=name, count=int(np.ma.getmaskarray(array).sum()))
    try:
        return np.array(array)
    # Lists of unequal lengths; PyTorch tensors of types that NumPy does not have, or that are part of a computation.
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError("image-kind", name=name, kind=type(array).__name__) from error


def _grid(components: np.ndarray, affine: Any, name: str) -> Grid:
    """The grid of (c, k, j, i) components."""
    try:
        if np.iscomplexobj(affine):
            raise TypeError("NumPy would drop the imaginary part")
        return Grid(components.shape[1:], affine)
    except (TypeError, ValueError) as error:
        raise _wrong_shape(components[0].T, affine, name) from error


def _wrong_shape(array: np.ndarray, affine: Any, name: str) -> UserError:
    # As objects, lists of unequal lengths have a shape too.
    return UserError("array-shape", name=name, array=array.shape, affine=np.array(affine, dtype=object).shape)
