"""Lists of cases to segment in one go: a CSV file with one row per case."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError

NAME, ROI = "name", "roi"

# Excel separates by semicolons where the comma is the decimal sign.
_DELIMITERS = (",", ";", "\t")
# What Windows reserves, with or without an ending; a folder of such a name cannot be copied there.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST_NAME = 255  # bytes


@dataclass(frozen=True)
class ListedCase:
    """One row.

    Args:
        name: the folder of its results inside the output folder.
        images: one file per channel, in the model's order.
        roi: as ``conresnet.images.roi.roi_from_text`` accepts it; may be empty.
    """

    name: str
    images: tuple[Path, ...]
    roi: str


def read_case_list(path: Path, channels: Sequence[str]) -> list[ListedCase]:
    """Read a list of cases.

    The header names the columns: "name", each channel of the model, and optionally "roi", in any order, upper or lower
    case. Fields are separated by commas, semicolons or tabs. Paths are relative to the list's own folder.

    Args:
        channels: the model's, in order.

    Raises:
        UserError: "cases-unreadable", "cases-columns", "cases-empty", or for one line "case-line-incomplete",
            "case-too-long", "case-name" or "case-names-collide".
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        if "\0" in text:
            raise csv.Error("NUL")
        wanted = [NAME, *(channel.casefold() for channel in channels)]
        columns, rows = _table(text, wanted)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not CSV text in UTF-8"
        raise UserError("cases-unreadable", path=str(path), reason=reason) from error
    if not columns:
        first = next(iter(text.splitlines()), "")
        raise UserError("cases-columns", path=str(path), columns=", ".join([NAME, *channels]), roi=ROI, line=first)
    cases = []
    for line, row in enumerate(rows, start=2):
        if any(field.strip() for field in row):
            if any(field.strip() for field in row[len(columns) :]):
                raise UserError("case-too-long", path=str(path), line=line)
            cases.append(_case(path, line, dict(zip(columns, map(str.strip, row), strict=False)), wanted))
    if not cases:
        raise UserError("cases-empty", path=str(path))
    _check_distinct(path, cases)
    return cases


def _table(text: str, wanted: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows, by the delimiter that gives the wanted columns; ([], []) if none does."""
    for delimiter in _DELIMITERS:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)) or [[]]
        columns = [column.strip().casefold() for column in table[0]]
        if sorted(set(columns) - {ROI}) == sorted(wanted) and len(set(columns)) == len(columns):
            return columns, table[1:]
    return [], []


def _case(path: Path, line: int, row: dict[str, str], wanted: Sequence[str]) -> ListedCase:
    for column in wanted:
        if not row.get(column):
            raise UserError("case-line-incomplete", path=str(path), line=line, column=column)
    name, roi = row[NAME], row.get(ROI, "")
    if not _can_be_a_folder(name):
        raise UserError("case-name", path=str(path), line=line, name=name)
    if roi.lower().endswith(".json"):
        roi = str(path.parent / roi)
    return ListedCase(name, tuple(path.parent / row[column] for column in wanted[1:]), roi)


def _can_be_a_folder(name: str) -> bool:
    """Whether a folder can have this name on Linux, macOS and Windows alike."""
    return not (
        _FORBIDDEN.search(name)
        or _RESERVED.fullmatch(name)
        or name.endswith((".", " "))
        or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME
    )


def _check_distinct(path: Path, cases: Sequence[ListedCase]) -> None:
    """Refuse names that a file system takes for the same: macOS and Windows ignore case, macOS how accents are made."""
    seen: dict[str, str] = {}
    for case in cases:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", case.name).casefold())
        if key in seen:
            raise UserError("case-names-collide", path=str(path), name=case.name, other=seen[key])
        seen[key] = case.name
