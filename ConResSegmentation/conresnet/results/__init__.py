"""Results of a segmentation, and the folder that they are written to, either completely or not at all.

Files are first written to a hidden folder inside it. They then replace an older run's files in such an order that a
report, if there is one, always belongs to the files next to it. A run that fails or is killed in between is undone, by
itself or by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conresnet.errors import UserError
from conresnet.files import OwnedFolder, abandoned_folders, move, write_error, write_text
from conresnet.package.outputs import MAPS

if TYPE_CHECKING:
    from conresnet.inference.segmentation import SegmentResult
    from conresnet.request import SegmentOptions

SEGMENTATION_FILE, SLICER_FILE = "segmentation.nii.gz", "segmentation.seg.nrrd"
REPORT_FILE = "report.json"
REVIEW_FILE, STATISTICS_FILE, PAGE_FILE = "review.csv", "statistics.csv", "report.html"
# Files that a run writes on request. Other programs may also use these names.
_ON_REQUEST = (SLICER_FILE, REVIEW_FILE, STATISTICS_FILE, PAGE_FILE)
_POSSIBLE = (SEGMENTATION_FILE, *(f"{name}.nii.gz" for name in MAPS), *_ON_REQUEST, REPORT_FILE)

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
