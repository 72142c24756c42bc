"""Lists of cases to segment in one go: a CSV file with a row a case."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError

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
