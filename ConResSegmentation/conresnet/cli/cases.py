"""Many cases: reading their list, segmenting one into its results folder, reporting problems, and what a cohort leaves
next to these folders: a table of volumes and failures, and a page of pictures.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from conresnet.errors import UserError, as_user_error
from conresnet.files import csv_cell, replacing, write_text
from conresnet.request import Progress
from conresnet.results import PREFIX, filling
from conresnet.results.report import RESEARCH_ONLY

if TYPE_CHECKING:
    from conresnet.api import Result
    from conresnet.inference.segmentation import LoadedModel
    from conresnet.request import SegmentOptions

NAME, ROI = "name", "roi"

# Excel writes semicolons in locales where the comma is the decimal separator.
_DELIMITERS = (",", ";", "\t")
# What a cohort leaves next to the folders of the cases: a table, a page and its pictures.
TABLE_FILE, PAGE_FILE, PICTURES = "cohort.csv", "cohort.html", ".cohort"
# Names that Windows reserves, with or without an extension; folders with these names cannot be copied there.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST_NAME = 255  # bytes
# Number of steps of a progress bar.
_STEPS = 1000
# More volumes than this are shown in columns.
_MOST_IN_A_LINE = 6


@dataclass(frozen=True)
class ListedCase:
    """One row of a list of cases.

    Args:
        name: name of the results folder inside the output folder.
        images: one file per channel, in the model's order.
        roi: as ``conresnet.images.inputs.roi_from_text`` accepts it; may be empty.
    """

    name: str
    images: tuple[Path, ...]
    roi: str


def read_case_list(path: Path, channels: Sequence[str]) -> list[ListedCase]:
    """Read a list of cases.

    The header names the columns: "name", each channel of the model, and optionally "roi", in any order, upper or lower
    case. Fields are separated by commas, semicolons or tabs. Paths are relative to the list's own folder.

    Args:
        channels: names of the model's channels, in order.

    Raises:
        UserError: "cases-unreadable", "cases-columns", "cases-empty", or for one line "case-line-incomplete",
            "case-quotes", "case-too-long", "case-name", "case-line-repeated" or "case-names-collide".
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        if "\0" in text:
            raise csv.Error("NUL")
        columns, rows = _table(text, [NAME, *(channel.casefold() for channel in channels)])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or 'it is not CSV text in UTF-8; in Excel, save it as "CSV UTF-8"'
        reason = "it is a folder; list its images in a CSV file" if isinstance(error, IsADirectoryError) else reason
        raise UserError("cases-unreadable", path=str(path), reason=reason) from error
    if not columns:
        first = next((line for line in text.splitlines() if line.strip() and not _is_excel_hint(line)), "")
        raise UserError("cases-columns", path=str(path), columns=", ".join([NAME, *channels]), roi=ROI, line=first)
    cases = []
    for line, row in rows:
        # No name or path has several lines, so the quotation mark that begins the field was meant to end it.
        if any("\n" in field or "\r" in field for field in row):
            raise UserError("case-quotes", path=str(path), line=line)
        if any(field.strip() for field in row):
            if any(field.strip() for field in row[len(columns) :]):
                raise UserError("case-too-long", path=str(path), line=line)
            cases.append(_case(path, line, dict(zip(columns, map(str.strip, row), strict=False)), channels))
    if not cases:
        raise UserError("cases-empty", path=str(path))
    _check_distinct(path, cases)
    return cases


def _table(text: str, wanted: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns, and rows with their line numbers, by the delimiter that gives these columns; ([], []) if none does."""
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows, first = [], 1
        for row in reader:
            # Above the columns, blank lines and Excel's hint are skipped.
            if rows or (any(field.strip() for field in row) and not _is_excel_hint(row[0])):
                rows.append((first, row))
            first = reader.line_num + 1
        columns = [column.strip().casefold() for column in rows[0][1]] if rows else []
        if sorted(set(columns) - {ROI}) == sorted(wanted) and len(set(columns)) == len(columns):
            return columns, rows[1:]
    return [], []


def _is_excel_hint(line: str) -> bool:
    """Whether it is the line "sep=;", which tells Excel the delimiter."""
    return line.strip().casefold().startswith("sep=")


def _case(path: Path, line: int, row: dict[str, str], channels: Sequence[str]) -> ListedCase:
    for column in (NAME, *channels):
        if not row.get(column.casefold()):
            raise UserError("case-line-incomplete", path=str(path), line=line, column=column)
    name, roi = row[NAME], row.get(ROI, "")
    if not _can_be_a_folder(name):
        raise UserError("case-name", path=str(path), line=line, name=name)
    if roi.lower().endswith(".json"):
        roi = str(_existing(path.parent, roi))
    return ListedCase(name, tuple(_existing(path.parent, row[channel.casefold()]) for channel in channels), roi)


def _existing(folder: Path, name: str) -> Path:
    """A path with ~ expanded, in the Unicode form that exists: macOS stores accented letters as two characters, and
    copies keep that.
    """
    name = os.path.expanduser(name)
    forms = [folder / form for form in (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))]
    return next((path for path in forms if os.path.exists(path)), forms[0])


def _can_be_a_folder(name: str) -> bool:
    """Whether a folder can have this name on Linux, macOS and Windows alike."""
    return not (
        _FORBIDDEN.search(name)
        or _RESERVED.fullmatch(name)
        or name.casefold() in (TABLE_FILE, PAGE_FILE, PICTURES)
        or name.casefold().startswith(PREFIX)
        or name.endswith((".", " "))
        or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME
    )


def _check_distinct(path: Path, cases: Sequence[ListedCase]) -> None:
    """Refuse names that some file system treats as equal: macOS and Windows ignore case, macOS also Unicode forms."""
    seen: dict[str, str] = {}
    for case in cases:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", case.name).casefold())
        if key in seen:
            if case.name == seen[key]:
                raise UserError("case-line-repeated", path=str(path), name=case.name)
            raise UserError("case-names-collide", path=str(path), name=case.name, other=seen[key])
        seen[key] = case.name


@dataclass(frozen=True)
class CaseProblem:
    """Why one of many cases was not segmented.

    Args:
        fault: traceback of an internal error; empty for problems that the user can fix.
        code: that of the ``UserError``; empty for an internal error.
    """

    sentence: str
    fault: str = ""
    code: str = ""

    @classmethod
    def of(cls, name: str, error: Exception) -> CaseProblem:
        """Convert an exception to text, because its frames keep the case's images in memory."""
        if mistake := as_user_error(error):
            return cls(" ".join(mistake.message.split()), code=mistake.code)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = "".join(traceback.format_exception(error))
        return cls(f"an internal error occurred ({what}).", f"Case {name}:\n{text}")


def raise_for(problems: Sequence[CaseProblem], cases: int) -> None:
    """End the command with an error: status 1 if any problem is an internal error, otherwise status 2."""
    if faults := [problem.fault for problem in problems if problem.fault]:
        failure = RuntimeError(f"{len(faults)} of {cases} cases failed")
        failure.add_note("\n".join(faults[:20]))
        raise failure
    if problems:
        raise UserError("cases-failed", failed=len(problems), cases=cases)


def segment_to_folder(
    model: LoadedModel,
    images: Sequence[Path],
    options: SegmentOptions,
    output: Path,
    overwrite: bool,
    inputs: Sequence[Path],
    progress: Progress | None = None,
    loading: float = 0.0,
    picture: Path | None = None,
) -> Result:
    """Segment one case, and write its results folder, which is unchanged after an error.

    Args:
        inputs: images that the results must not replace.
        loading: seconds taken to load the model, for the report.
        picture: where to write a picture of the result, if that is possible.
    """
    from conresnet.api import segment_images

    progress = progress or Progress()
    with filling(output, options, overwrite, inputs) as folder:
        result = segment_images(model, images, options, progress, loading)
        progress.report("writing", 1.0, None)
        result.write(folder)
        # Before the results are complete, because a case that has them is not segmented again.
        if picture:
            with contextlib.suppress(UserError), replacing(picture) as path:
                path.write_bytes(result.picture())
    return result


def result_text(verb: str, folder: Path, volumes_ml: Mapping[str, float]) -> str:
    """What the command prints about a case's results: one line with all volumes, or on a terminal, if there are many,
    columns.

    Args:
        verb: what was done with the folder, such as "Wrote".
    """
    if len(volumes_ml) <= _MOST_IN_A_LINE or sys.stdout is None or not sys.stdout.isatty():
        return f"{verb} {folder}: {', '.join(f'{name} {volume:.2f} mL' for name, volume in volumes_ml.items())}."
    width, digits = max(map(len, volumes_ml)), max(len(f"{volume:.2f}") for volume in volumes_ml.values())
    cells = [f"  {name.ljust(width)} {volume:{digits}.2f} mL" for name, volume in volumes_ml.items()]
    columns = max(1, shutil.get_terminal_size().columns // (len(cells[0]) + 1))
    height = -(-len(cells) // columns)
    # Down the first column, then down the next one.
    return "\n".join([f"{verb} {folder}:", *("".join(cells[row::height]) for row in range(height))])


def duration(seconds: float) -> str:
    """Format a duration, such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Show a bar with the phase and the time remaining if stderr is a terminal; stderr may also be closed."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Progress()
        return

    how = {"show_eta": False, "show_percent": True, "item_show_func": lambda text: text}
    with contextlib.ExitStack() as stack:

        class Bar(Progress):
            bar = None

            def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
                # Not before, because a case that is already segmented needs none.
                self.bar = self.bar or stack.enter_context(click.progressbar(length=_STEPS, file=sys.stderr, **how))
                left = "" if seconds_left is None else f"{duration(seconds_left)} left"
                self.bar.update(round(_STEPS * fraction) - self.bar.pos, f"{phase} {left}")

        yield Bar()


DONE, SKIPPED, FAILED, NOT_DONE = "segmented", "already segmented", "failed", "not reached"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Args:
        state: ``DONE``, ``SKIPPED``, ``FAILED``, or ``NOT_DONE`` if the command was stopped before the case's turn.
        volumes_ml: volume of each segment in mL.
        expected_dice: from the review list; None if there is none, or nothing was found.
        seconds: time that the engine took, in all phases.
        warnings: sentences about what to check.
    """

    name: str
    state: str
    problem: CaseProblem | None = None
    volumes_ml: dict[str, float] | None = None
    expected_dice: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


# What the table and the page begin with, to recognize those of an earlier run.
_TABLE_COLUMNS = ("name", "state", "expected_dice", "seconds")
_PAGE_TITLE = "<title>Segmented cases</title>"


def check_summary_replaceable(output: Path, case_list: Path) -> None:
    """Refuse a folder of all cases in which the table or the page would replace a file of the user's.

    Raises UserError "output-not-folder", "cases-in-the-way" or "summary-not-ours".
    """
    if output.exists() and not output.is_dir():
        raise UserError("output-not-folder", path=str(output))
    for name, beginning in ((TABLE_FILE, ",".join(_TABLE_COLUMNS)), (PAGE_FILE, _PAGE_TITLE)):
        path = output / name
        if not path.exists():
            continue
        if path.samefile(case_list):
            raise UserError("cases-in-the-way", path=str(case_list))
        if not path.is_file():
            raise UserError("summary-not-ours", path=str(path))
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(1000)
        if not (beginning in text if name == PAGE_FILE else text.startswith(beginning)):
            raise UserError("summary-not-ours", path=str(path))


# Why a case with earlier results is refused. The results stay.
_REFUSALS_OF_RESULTS = ("results-differ", "results-out-of-date", "results-exist")


def write_summary(outcomes: Sequence[Outcome], output: Path) -> str:
    """Write the table and the page into the folder of all cases, and return a sentence that says so.

    Those of an earlier run are kept if they still describe the results in the folder: no case was segmented or skipped,
    and earlier results were the reason to refuse at least one.
    """
    paths = [output / TABLE_FILE, output / PAGE_FILE]
    named = " and ".join(map(str, paths))
    refused = any(outcome.problem and outcome.problem.code in _REFUSALS_OF_RESULTS for outcome in outcomes)
    has_results = any(outcome.state in (DONE, SKIPPED) for outcome in outcomes)
    if refused and not has_results and all(path.exists() for path in paths):
        return f"Kept {named} of the earlier run, because no case was segmented."
    write_table(outcomes, paths[0])
    _write_page(outcomes, paths[1])
    return f"Wrote {named}."


def picture_file(output: Path, name: str) -> Path:
    return output / PICTURES / f"{name}.png"


def write_table(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one line per case: state, expected Dice, seconds, the volume of each segment, warnings and the problem."""
    segments = list(dict.fromkeys(name for outcome in outcomes for name in outcome.volumes_ml or ()))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_TABLE_COLUMNS, *(csv_cell(f"{name} (mL)") for name in segments), "warnings", "problem"])
        for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
            volumes = [(outcome.volumes_ml or {}).get(name) for name in segments]
            figures = map(_rounded, [outcome.expected_dice, outcome.seconds, *volumes])
            words = " ".join(map(_line, outcome.warnings)), outcome.problem.sentence if outcome.problem else ""
            writer.writerow([csv_cell(outcome.name), outcome.state, *figures, *map(csv_cell, words)])


def _line(text: str) -> str:
    return " ".join(text.split())


def _rounded(value: float | None) -> str:
    # Without an exponent, which spreadsheets show in place of the number.
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
$title
<style>
body { font: 15px/1.4 system-ui, "Segoe UI", Arial, sans-serif; color: #222; margin: 2em; }
p.research { background: #fff4d6; padding: .4em .7em; border-radius: 4px; }
ul { list-style: none; padding: 0; display: grid; gap: 1em;
     grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
li { border: 1px solid #ddd; border-radius: 4px; padding: .6em; overflow-wrap: anywhere; }
li.failed { background: #fdecea; }
img { width: 100%; display: block; background: #000; }
h2 { font-size: 1em; margin: .3em 0; }
p { margin: .3em 0; }
</style>
</head>
<body>
<h1>Segmented cases</h1>
<p>$summary</p>
<p class="research">$research</p>
<ul>
$cards
</ul>
</body>
</html>
"""
)


def _write_page(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a page of pictures: failures first, then cases with warnings, then the others. Within each group, the cases
    with the lowest expected Dice come first.
    """

    def place(outcome: Outcome) -> tuple:
        dice = outcome.expected_dice
        waits = outcome.state == NOT_DONE
        return outcome.state != FAILED, waits, not outcome.warnings, dice is None, dice or 0.0, outcome.name

    states = [outcome.state for outcome in outcomes]
    failed, waiting = states.count(FAILED), states.count(NOT_DONE)
    stopped = f", {waiting} not reached because the command was stopped" if waiting else ""
    summary = (
        f"{len(outcomes) - failed - waiting} cases segmented, {failed} failed{stopped}. Failures come first, then "
        "cases with warnings. Each group begins with the lowest expected Dice, which is estimated from each case's "
        "review list and is not a measurement. It is meaningless for an image that the model was not made for."
    )
    cards = "\n".join(_card(outcome, path.parent) for outcome in sorted(outcomes, key=place))
    write_text(path, _PAGE.substitute(title=_PAGE_TITLE, summary=summary, research=RESEARCH_ONLY, cards=cards))


def _card(outcome: Outcome, folder: Path) -> str:
    name = escape(outcome.name)
    if outcome.state == FAILED:
        return f'<li class="failed"><h2>{name}</h2><p>{escape(outcome.problem.sentence)}</p></li>'
    if outcome.state == NOT_DONE:
        kept = "Not reached before the command was stopped. Earlier results in its folder were kept."
        return f"<li><h2>{name}</h2><p>{kept}</p></li>"
    picture = picture_file(folder, outcome.name)
    source = quote(picture.relative_to(folder).as_posix())
    image = f'<img src="{source}" alt="Slices of {name}" loading="lazy">' if picture.is_file() else ""
    dice = "" if outcome.expected_dice is None else f"<p>Expected Dice {outcome.expected_dice:.2f}</p>"
    volumes = ", ".join(f"{segment} {volume:.2f} mL" for segment, volume in outcome.volumes_ml.items())
    warnings = "".join(f"<p>{escape(_line(text))}</p>" for text in outcome.warnings)
    return f"<li>{image}<h2>{name}</h2>{dice}<p>{escape(volumes)}</p>{warnings}</li>"
