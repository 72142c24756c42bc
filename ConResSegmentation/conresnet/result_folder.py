"""The folder with a case's results: all of them, or none."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conresnet.atomic_file import move, replacing, write_error
from conresnet.errors import UserError
from conresnet.image_files import write_volume
from conresnet.maps import MAPS

if TYPE_CHECKING:
    from conresnet.segmentation import SegmentResult

SEGMENTATION_FILE = "segmentation.nii.gz"
REPORT_FILE = "report.json"
_NAMES = (SEGMENTATION_FILE, REPORT_FILE, *(f"{name}.nii.gz" for name in MAPS))


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that already has results, unless they may be replaced, and a file in its place.

    Raises:
        UserError: "results-exist", "output-not-folder" or "cannot-write".
    """
    try:
        is_file = folder.exists() and not folder.is_dir()
        existing = [name for name in _NAMES if not is_file and (folder / name).exists()]
    except OSError as error:
        raise write_error(error, folder) from error
    if is_file:
        raise UserError(
            "output-not-folder", f"The output {folder} is a file; name a folder for the results.", path=str(folder)
        )
    if existing and not overwrite:
        raise UserError(
            "results-exist",
            f"{folder} already holds results ({', '.join(existing)}); name another folder, or replace them with "
            "--overwrite.",
            path=str(folder),
        )


@contextlib.contextmanager
def filling(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends well; else nothing is left of it.

    Results that were there before are then replaced, and those that are not among the new ones removed. Made before
    the work begins, so that a place that cannot be written to is known at once.

    Raises:
        UserError: "disk-full", "cannot-write", or as ``check_replaceable``: before the block and, since somebody may
            have written there meanwhile, after it.
    """
    check_replaceable(folder, overwrite)
    # In the folder itself where it is there: what lies beside it may be another disk, or closed to this user.
    absolute = folder.absolute()
    place = next(path for path in (absolute, *absolute.parents) if path.exists())
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".conresnet-", dir=place))
    except OSError as error:
        raise write_error(error, folder) from error
    try:
        yield temporary
        check_replaceable(folder, overwrite)
        try:
            _move(temporary, folder)
        except OSError as error:
            raise write_error(error, folder) from error
    except UserError as error:
        # The user knows the folder, and not the hidden one that stands in for it.
        message = error.message.replace(str(temporary), str(folder))
        raise UserError(error.code, message, **error.values) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in temporary.iterdir()}
    for name in set(_NAMES) - names:
        (folder / name).unlink(missing_ok=True)
    # The report last: where it is, everything is.
    for name in sorted(names, key=lambda name: name == REPORT_FILE):
        move(temporary / name, folder / name)


def write_images(result: SegmentResult, folder: Path) -> None:
    """Write the segmentation (uint8 label values) and the maps (float32; several components as 4-D).

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    grid = result.labels.grid
    write_volume(result.labels.array, grid, folder / SEGMENTATION_FILE)
    for name, array in result.maps.items():
        write_volume(array[0] if len(array) == 1 else array, grid, folder / f"{name}.nii.gz")


def write_report(report: dict, folder: Path) -> None:
    """Write the report.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    with replacing(folder / REPORT_FILE) as path:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
