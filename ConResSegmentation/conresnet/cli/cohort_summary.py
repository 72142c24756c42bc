"""What a cohort leaves next to the folders of its cases: a table of volumes and failures, and a page of pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from conresnet.cli.cases import PAGE_FILE, PICTURES, TABLE_FILE, CaseProblem
from conresnet.files import csv_cell, replacing
from conresnet.report import RESEARCH_ONLY

DONE, SKIPPED, FAILED = "segmented", "already segmented", "failed"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Args:
        state: ``DONE``, ``SKIPPED`` or ``FAILED``.
        problem: why it failed.
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


def write_summary(outcomes: Sequence[Outcome], output: Path) -> list[Path]:
    """Write the table and the page into the folder of all cases, and return their paths."""
    table, page = output / TABLE_FILE, output / PAGE_FILE
    write_table(outcomes, table)
    _write_page(outcomes, page)
    return [table, page]


def picture_file(output: Path, name: str) -> Path:
    return output / PICTURES / f"{name}.png"


def write_table(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one line per case: state, expected Dice, seconds, the volume of each segment, and the problem."""
    segments = list(dict.fromkeys(name for outcome in outcomes for name in outcome.volumes_ml or ()))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "state", "expected_dice", "seconds", *(csv_cell(f"{name} (mL)") for name in segments), "problem"]
        )
        for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
            volumes = [(outcome.volumes_ml or {}).get(name) for name in segments]
            figures = [_rounded(outcome.expected_dice), _rounded(outcome.seconds), *map(_rounded, volumes)]
            writer.writerow(
                [
                    csv_cell(outcome.name),
                    outcome.state,
                    *figures,
                    csv_cell(outcome.problem.sentence if outcome.problem else ""),
                ]
            )


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Segmented cases</title>
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
    """Write a page of pictures: failures first, then the cases in order of their expected Dice, lowest first."""

    def place(outcome: Outcome) -> tuple:
        dice = outcome.expected_dice
        return outcome.state != FAILED, dice is None, dice or 0.0, outcome.name

    failed = sum(outcome.state == FAILED for outcome in outcomes)
    summary = (
        f"{len(outcomes) - failed} cases segmented, {failed} failed. Failures come first, then the cases with the "
        "lowest expected Dice, which is estimated from each case's review list and is not a measurement."
    )
    cards = "\n".join(_card(outcome, path.parent) for outcome in sorted(outcomes, key=place))
    with replacing(path) as temporary:
        page = _PAGE.substitute(summary=summary, research=RESEARCH_ONLY, cards=cards)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _card(outcome: Outcome, folder: Path) -> str:
    name = escape(outcome.name)
    if outcome.state == FAILED:
        return f'<li class="failed"><h2>{name}</h2><p>{escape(outcome.problem.sentence)}</p></li>'
    picture = picture_file(folder, outcome.name)
    source = quote(picture.relative_to(folder).as_posix())
    image = f'<img src="{source}" alt="Slices of {name}" loading="lazy">' if picture.is_file() else ""
    dice = "" if outcome.expected_dice is None else f"<p>Expected Dice {outcome.expected_dice:.2f}</p>"
    volumes = ", ".join(f"{segment} {volume:.2f} mL" for segment, volume in outcome.volumes_ml.items())
    warnings = "".join(f"<p>{escape(' '.join(text.split()))}</p>" for text in outcome.warnings)
    return f"<li>{image}<h2>{name}</h2>{dice}<p>{escape(volumes)}</p>{warnings}</li>"
