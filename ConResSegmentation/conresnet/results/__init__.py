"""Results of a segmentation: measurements of each segment, files, and the folder that they are written to.

The folder is written either completely or not at all: files are first written to a hidden folder inside it. They then
replace an older run's files in such an order that a report, if there is one, always belongs to the files next to it. A
run that fails or is killed in between is undone, by itself or by the next run.

Importing this imports neither torch nor SimpleITK.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders, csv_cell, move, replacing, write_error, write_text
from conresnet.images import Box, Grid, Volume, transformed
from conresnet.inference.labels import segment_boxes, segment_mask
from conresnet.package.outputs import MAPS, Output, Segment

if TYPE_CHECKING:
    from conresnet.inference.segmentation import SegmentResult
    from conresnet.request import SegmentOptions

SEGMENTATION_FILE, SLICER_FILE = "segmentation.nii.gz", "segmentation.seg.nrrd"
REPORT_FILE = "report.json"
REVIEW_FILE, STATISTICS_FILE, PAGE_FILE = "review.csv", "statistics.csv", "report.html"
# Files that a run writes on request. Other programs may also use these names.
_ON_REQUEST = (SLICER_FILE, REVIEW_FILE, STATISTICS_FILE, PAGE_FILE)
_POSSIBLE = (SEGMENTATION_FILE, *(f"{name}.nii.gz" for name in MAPS), *_ON_REQUEST, REPORT_FILE)

# Voxels of a segment whose places in an image are computed at a time.
_VOXELS_AT_ONCE = 1 << 20

# Suffixes of all files that our commands write; no slice of a DICOM series has one of them.
_ENDINGS = (".nii.gz", ".seg.nrrd", ".json", ".csv", ".html")

# Image formats that may keep their voxels in another file of the same stem.
_HEADERS = (".hdr", ".img", ".mhd", ".nhdr")

# Prefix of hidden folders next to the results.
PREFIX = ".conresnet-"
# Inside the hidden folder: the new files, the old files while the new ones move in, and the names of the new ones,
# which are written down before the first file is moved.
_NEW, _OLD, _JOURNAL = "new", "old", "moving.json"


def result_files(options: SegmentOptions) -> list[str]:
    """The names of the files that a run with these options writes."""
    wanted = (options.seg_nrrd, options.review, options.statistics, options.report)
    maps = [f"{name}.nii.gz" for name in dict.fromkeys(options.maps)]
    others = [name for name, is_wanted in zip(_ON_REQUEST, wanted, strict=True) if is_wanted]
    return [SEGMENTATION_FILE, *maps, *others, REPORT_FILE]


def image_state(image: Path) -> str:
    """Digest of the names, sizes and modification times of an image's files, to notice later that they were replaced.

    The content is not read, because that would take as long as reading the image. Empty if the files are not available.
    """
    try:
        found = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in image_files(image))
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(repr(found).encode()).hexdigest()


def image_files(image: Path) -> set[Path]:
    """The files of an image: those in a folder of DICOM files, or a file and those that hold its voxels.

    Raises OSError or ValueError if they cannot be read.
    """
    from conresnet.images.checks import check_text_header, kind_of, nifti_files

    if image.is_dir():
        # Ignore files that file managers leave there, such as .DS_Store, and files that our runs write there.
        files = {path for path in image.iterdir() if path.is_file() and not path.name.startswith(".")}
        return {path for path in files if not path.name.endswith(_ENDINGS)}
    files = {image}
    if image.suffix.lower() in _HEADERS:
        files |= {path for path in image.parent.iterdir() if path.stem == image.stem and path.is_file()}
    # What cannot be segmented, such as a pipe, is reported when it is read.
    with contextlib.suppress(UserError):
        kind = kind_of(image) if image.is_file() else ""
        if kind == "nifti":
            files.update(nifti_files(image))
        elif kind in ("nrrd", "meta"):
            files.update(check_text_header(image, kind).data_files)
    return files


def check_replaceable(folder: Path, options: SegmentOptions, overwrite: bool, inputs: Collection[Path] = ()) -> None:
    """Refuse a folder in which a run would destroy something that it was not asked to replace.

    What a run that was killed left half done there is undone first; its files would not be known as ours.

    Args:
        options: of the run.
        overwrite: whether the files that an earlier run has written there, by its report, may be replaced.
        inputs: images that must not be replaced or removed.

    Raises:
        UserError: "output-not-folder", "results-exist", "results-not-ours", "input-in-the-way" or "cannot-write".
    """
    undo_killed_runs(folder)
    try:
        if _is_taken(folder) and not folder.is_dir():
            raise UserError("output-not-folder", path=str(folder))
        ours, new = _written_by_us(folder), set(result_files(options))
        possible = [name for name in _POSSIBLE if name not in _ON_REQUEST or name in ours | new]
        existing = [name for name in possible if _is_taken(folder / name)]
        if existing and not overwrite:
            raise UserError("results-exist", path=str(folder), files=", ".join(existing))
        foreign = [name for name in existing if name in new - ours]
        if foreign:
            raise UserError("results-not-ours", path=str(folder), files=", ".join(foreign))
        for name in existing:
            for image in inputs if name in ours | new else ():
                if image.exists() and (folder / name).exists() and image.samefile(folder / name):
                    raise UserError("input-in-the-way", path=str(folder), file=str(image))
    except OSError as error:
        raise write_error(error, folder) from error


def _is_taken(path: Path) -> bool:
    """Whether there is anything, even a link to nothing. Raises OSError if that cannot be known."""
    return path.exists() or path.is_symlink()


def _written_by_us(folder: Path) -> set[str]:
    """The files in a folder that belong to the run whose report is there."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(report, dict) or not {"conresnet", "model", "volumes_ml"} <= set(report):
        return set()
    # Reports of version 0.1 did not list their files.
    files = report.get("files", [name for name in _POSSIBLE if name not in _ON_REQUEST])
    return {*_POSSIBLE} & {REPORT_FILE, *(files if isinstance(files, list) else ())}


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, and leave it as it was. Raises UserError "disk-full" or
    "cannot-write".
    """
    with _hidden_inside(folder):
        pass


@contextlib.contextmanager
def filling(folder: Path, options: SegmentOptions, overwrite: bool, inputs: Collection[Path] = ()) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block succeeds; otherwise nothing is left of it.

    They replace the files of an earlier run, all of them. The temporary folder is made before the block runs, so that
    an output folder that cannot be written to is reported at once.

    Args:
        folder, options, overwrite, inputs: see ``check_replaceable``.

    Raises:
        UserError: "disk-full", "cannot-write", or as ``check_replaceable``, both before the block and after it, since
            another program may have written there in the meantime.
    """
    check_replaceable(folder, options, overwrite, inputs)
    with _hidden_inside(folder) as hidden:
        yield hidden / _NEW
        check_replaceable(folder, options, overwrite, inputs)
        try:
            _move_in(hidden, folder)
        except OSError as error:
            raise write_error(error, folder) from error


@contextlib.contextmanager
def _hidden_inside(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, with a folder for new files. In the end, both are removed, and so is a new
    ``folder`` that is empty. Raises UserError "disk-full" or "cannot-write".
    """
    absolute = folder.absolute()
    made: list[Path] = []
    owned = None
    try:
        try:
            made = [path for path in (absolute, *absolute.parents) if not path.exists()]
            absolute.mkdir(parents=True, exist_ok=True)
            # Inside the folder itself, since what is next to it may be another disk, or closed to this user.
            owned = OwnedFolder.make(PREFIX, absolute, needs_lock=False)
            (owned.path / _NEW).mkdir()
        except OSError as error:
            raise write_error(error, folder) from error
        yield owned.path
    except UserError as error:
        # The user knows the folder, not the hidden one inside it.
        hidden = str(owned.path / _NEW) if owned else ""
        if not hidden or hidden not in error.message:
            raise
        raise error.naming(hidden, str(folder)) from error
    finally:
        if owned and _is_half_done(owned.path):
            # It holds the only copy of the old results; the next run undoes it.
            owned.release()
        elif owned:
            owned.remove()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only while it is empty


def _move_in(hidden: Path, folder: Path) -> None:
    """Move an earlier run's files out, its report first, and the new files in, their report last."""
    names = sorted((path.name for path in (hidden / _NEW).iterdir()), key=lambda name: name == REPORT_FILE)
    ours = sorted(_written_by_us(folder), key=lambda name: name != REPORT_FILE)
    (hidden / _OLD).mkdir()
    write_text(hidden / _JOURNAL, json.dumps(names))
    try:
        for name in ours:
            if _is_taken(folder / name):
                move(folder / name, hidden / _OLD / name)
        for name in names:
            move(hidden / _NEW / name, folder / name)
    except BaseException:
        _undo(hidden, folder)
        raise


def _is_half_done(hidden: Path) -> bool:
    """Whether files were moved and not all of them have arrived, so that the hidden folder may hold an old result."""
    try:
        # Without the names nothing was moved yet. Without new files that wait, the run was complete and cleaning up.
        return (hidden / _JOURNAL).is_file() and (hidden / _NEW).is_dir() and any((hidden / _NEW).iterdir())
    except OSError:
        return True


def _undo(hidden: Path, folder: Path) -> None:
    """Bring back what was there before ``_move_in``, unless that was complete. May be interrupted and repeated."""
    if not _is_half_done(hidden):
        return
    try:
        names = json.loads((hidden / _JOURNAL).read_text(encoding="utf-8"))
    except ValueError:
        names = []  # after a power failure, a file may have lost its content; the old files are still brought back
    waiting = {path.name for path in (hidden / _NEW).iterdir()}
    for name in names:
        if name not in waiting and (folder / name).exists():
            move(folder / name, hidden / _NEW / name)
    for name in sorted((path.name for path in (hidden / _OLD).iterdir()), key=lambda name: name == REPORT_FILE):
        move(hidden / _OLD / name, folder / name)
    # From now on the hidden folder may be removed in any order, even if that is interrupted, too.
    (hidden / _JOURNAL).unlink()


def undo_killed_runs(folder: Path) -> None:
    """Undo what runs that were killed have left half done in the folder, and remove their hidden folders."""
    for owned in abandoned_folders(folder, PREFIX):
        try:
            _undo(owned.path, folder)
        except OSError as error:
            owned.release()
            raise write_error(error, folder) from error
        owned.remove()


def write_images(result: SegmentResult, folder: Path) -> None:
    """Write the segmentation (uint8 label values) and the maps (float32; several components as 4D)."""
    from conresnet.images.files import write_volume

    grid = result.labels.grid
    write_volume(result.labels.array, grid, folder / SEGMENTATION_FILE)
    for name, array in result.maps.items():
        write_volume(array[0] if len(array) == 1 else array, grid, folder / f"{name}.nii.gz")


def write_seg_nrrd(path: Path, labels: Volume, regions: np.ndarray | None, output: Output, algorithm: str) -> None:
    """Write label values [k, j, i] as a .seg.nrrd file with what Slicer shows for each segment.

    The format is described in Slicer's developer guide (Segmentations).

    Args:
        regions: (b, k, j, i) uint8 if segments overlap, see ``conresnet.inference.labels``; then each gets a layer.
        algorithm: name and version of the model.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    boxes = segment_boxes(labels.array, regions, output)
    lines = _seg_nrrd_header(labels.grid, 0 if regions is None else len(boxes))
    for index, (segment, box) in enumerate(zip(output.segments, boxes, strict=True)):
        for name, value in _seg_nrrd_fields(segment, box, 0 if regions is None else index, algorithm).items():
            escaped = value.replace("\\", "\\\\")
            lines.append(f"Segment{index}_{name}:={escaped}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        # Fast rather than small, as for NIfTI.
        with gzip.open(file, "wb", compresslevel=1) as data:
            for k, plane in enumerate(labels.array):
                if regions is not None:
                    masks = (segment_mask(plane, regions[:, k], output, index) for index in range(len(boxes)))
                    layers = [mask * np.uint8(one.label) for mask, one in zip(masks, output.segments, strict=True)]
                    plane = np.stack(layers, axis=-1)
                data.write(np.ascontiguousarray(plane, np.uint8).tobytes())


def _seg_nrrd_header(grid: Grid, layers: int) -> list[str]:
    """The lines of the header; for overlapping segments, an axis of layers precedes those of the image."""
    axes = (np.diag([-1, -1, 1]) @ grid.affine[:3]).T.tolist()
    *directions, origin = [f"({','.join(map(repr, axis))})" for axis in axes]
    sizes, kinds = [*grid.shape[::-1]], ["domain"] * 3
    if layers:
        sizes, kinds, directions = [layers, *sizes], ["list", *kinds], ["none", *directions]
    return [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "encoding: gzip",
        f"space origin: {origin}",
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]


def _seg_nrrd_fields(segment: Segment, box: Box | None, layer: int, algorithm: str) -> dict[str, str]:
    ends = [(part.start, part.stop - 1) for part in reversed(box)] if box else [(0, -1)] * 3
    # A vertical bar would end a tag.
    tags = {name: text.replace("|", "/") for name, text in segment.slicer_tags(algorithm).items()}
    return {
        "ID": segment.slicer_id,
        "Name": segment.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{value / 255:.6g}" for value in segment.color),
        "ColorAutoGenerated": "0",
        "Extent": " ".join(f"{low} {high}" for low, high in ends),
        "LabelValue": str(segment.label),
        "Layer": str(layer),
        "Tags": "|".join(f"{name}:{text}" for name, text in tags.items()),
    }


def segment_statistics(
    labels: np.ndarray,
    grid: Grid,
    output: Output,
    channels: Mapping[str, Volume],
    uncertainty: np.ndarray | None = None,
    regions: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Measure each segment; regions are measured whole, including what lies over them.

    Args:
        labels: [k, j, i] uint8.
        grid: of the labels.
        output: the model's segments.
        channels: images by name, each on any grid; at each voxel of a segment, their nearest voxel counts.
        uncertainty: the map [k, j, i].
        regions: see ``SegmentResult``.

    Returns:
        For each segment "segment", "voxels", "volume_ml", "surface_cm2" (by Crofton's formula, as ITK estimates it from
        voxels), "mean_intensity" (by channel) and "mean_uncertainty". Means of nothing are None, as is the uncertainty
        without its map.
    """
    rows = []
    for index, box in enumerate(segment_boxes(labels, regions, output)):
        row: dict[str, Any] = {"segment": output.segments[index].name, "voxels": 0, "volume_ml": 0.0}
        row |= {"surface_cm2": 0.0, "mean_intensity": dict.fromkeys(channels), "mean_uncertainty": None}
        rows.append(row)
        if box is None:
            continue
        packed = None if regions is None else regions[(slice(None), *box)]
        mask = segment_mask(labels[box], packed, output, index)
        voxels = np.argwhere(mask)
        row["voxels"] = len(voxels)
        row["volume_ml"] = len(voxels) * grid.voxel_volume / 1000
        row["surface_cm2"] = surface_mm2(mask, grid.spacing) / 100
        if uncertainty is not None:
            row["mean_uncertainty"] = float(uncertainty[box][mask].mean(dtype=np.float64))
        voxels += [part.start for part in box]
        row["mean_intensity"] = {name: _mean(volume, grid, voxels) for name, volume in channels.items()}
    return rows


def surface_mm2(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """The surface of a mask [k, j, i] by Crofton's formula; ``spacing`` in mm along i, j, k."""
    import SimpleITK as sitk

    # What touches the border of the array ends there too.
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing([float(size) for size in spacing])
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.ComputePerimeterOn()
    shapes.Execute(image)
    return shapes.GetPerimeter(1)


def _mean(volume: Volume, grid: Grid, voxels: np.ndarray) -> float | None:
    """The mean of an image at the voxels (n, 3) of a grid, [k, j, i]; None where the image has none of them."""
    if volume.grid.matches(grid):
        return float(volume.array[tuple(voxels.T)].mean(dtype=np.float64))
    to_image, shape = np.linalg.inv(volume.grid.array_affine) @ grid.array_affine, np.array(volume.grid.shape)
    total, count = 0.0, 0
    for start in range(0, len(voxels), _VOXELS_AT_ONCE):
        places = np.rint(transformed(voxels[start : start + _VOXELS_AT_ONCE], to_image)).astype(np.int64)
        places = places[((places >= 0) & (places < shape)).all(axis=1)]
        total += float(volume.array[tuple(places.T)].sum(dtype=np.float64))
        count += len(places)
    return total / count if count else None


def write_statistics(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write statistics.csv: segment, voxels, volume_ml, surface_cm2, mean_intensity CHANNEL..., mean_uncertainty."""
    names = list(rows[0]["mean_intensity"])
    intensities = [f"mean_intensity {name}" for name in names]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["segment", "voxels", "volume_ml", "surface_cm2", *intensities, "mean_uncertainty"])
        for row in rows:
            means = [row["mean_intensity"][name] for name in names] + [row["mean_uncertainty"]]
            numbers = [row["volume_ml"], row["surface_cm2"], *means]
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([csv_cell(row["segment"]), row["voxels"], *cells])
