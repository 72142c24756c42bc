"""Lists of cases to segment in one go: a CSV file with a row a case.

The folder with a case's results: all of them, or none.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conresnet.errors import UserError
from conresnet.files import move, replacing, write_error
from conresnet.images.files import write_volume
from conresnet.package.maps import MAPS

NAME, ROI = "name", "roi"


@dataclass(frozen=True)
class ListedCase:
    """One row.

    Args:
        name: the folder of its results below the output folder.
        images: one file a channel, in the model's order.
        roi: as ``BoxROI.from_text`` takes it; empty is the whole image.
    """

    name: str
    images: tuple[Path, ...]
    roi: str


def read_case_list(path: Path, channels: Sequence[str]) -> list[ListedCase]:
    """Read a list of cases.

    The header names the columns: "name", each channel of the model, and "roi" where there is one. Capitals do not
    matter; paths are taken from the list's own folder.

    Args:
        channels: the model's, in order.

    Raises:
        UserError: "cases-unreadable", "cases-columns", "cases-empty" or "cases-row".
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        if "\0" in text:
            raise csv.Error("NUL")
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV text in UTF-8"
        raise UserError(
            "cases-unreadable", f"The list of cases {path} cannot be read ({reason}).", path=str(path)
        ) from error
    columns = [column.strip().casefold() for column in header]
    wanted = [NAME, *(channel.casefold() for channel in channels)]
    if sorted(set(columns) - {ROI}) != sorted(wanted) or len(set(columns)) != len(columns):
        raise UserError(
            "cases-columns",
            f"The list of cases {path} must have the columns {', '.join([NAME, *channels])} and may have {ROI}, but "
            f"its first line is {','.join(header)!r}.",
            path=str(path),
        )
    cases = []
    for line, row in enumerate(rows, start=2):
        if any(field.strip() for field in row):
            if any(field.strip() for field in row[len(columns) :]):
                raise _bad_row(
                    path, line, "has more fields than there are columns; put quotes around a field that holds commas"
                )
            cases.append(_case(path, line, dict(zip(columns, map(str.strip, row), strict=False)), wanted))
    if not cases:
        raise UserError("cases-empty", f"The list of cases {path} has no case below its first line.", path=str(path))
    _refuse_repeats(path, cases)
    return cases


def _case(path: Path, line: int, row: dict[str, str], wanted: Sequence[str]) -> ListedCase:
    for column in wanted:
        if not row.get(column):
            raise _bad_row(path, line, f"has no {column}")
    name, roi = row[NAME], row.get(ROI, "")
    if name in (".", "..") or any(character in name for character in '/\\:*?"<>|'):
        raise _bad_row(path, line, f"has the name {name!r}, which cannot be that of a folder")
    if roi.lower().endswith(".json"):
        roi = str(path.parent / roi)
    return ListedCase(name, tuple(path.parent / row[column] for column in wanted[1:]), roi)


def _refuse_repeats(path: Path, cases: Sequence[ListedCase]) -> None:
    seen = set()
    for case in cases:
        if case.name.casefold() in seen:
            raise UserError(
                "cases-row", f"The list of cases {path} has the name {case.name!r} more than once.", path=str(path)
            )
        seen.add(case.name.casefold())


def _bad_row(path: Path, line: int, why: str) -> UserError:
    return UserError("cases-row", f"Line {line} of the list of cases {path} {why}.", path=str(path), line=line)


if TYPE_CHECKING:
    from conresnet.inference.segmentation import SegmentResult

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
