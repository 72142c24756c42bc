"""The results of ``compare_systems.py``: ``table.csv`` for programs, ``table.md`` and ``comparison.png`` for people."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from system_rows import CONRESNET, SIZES, STUDY, Row

from conresnet.files import replacing
from conresnet_training.evaluation import Evaluation, compare_evaluations
from conresnet_training.evaluation.metrics import METRICS, OVERALL
from conresnet_training.reporting import INK, style_axes

MOST_LATE_RISE = 0.005
"""A row whose validation Dice rose by more than this in the last quarter of its steps is under-trained."""

COMPARED = ("dice", "hd95")
COLUMNS = (
    "system",
    "Dice (95% interval)",
    "Hausdorff 95%, mm (95% interval)",
    "parameters, M",
    "multiply-adds per window, G",
    "seconds per case",
    "peak memory, GB",
    "steps",
    "cases",
)
SEGMENT_COLUMNS = ("system", "segment", "Dice (95% interval)", "Hausdorff 95%, mm (95% interval)")
DIFFERENCE_COLUMNS = (
    "system",
    "Dice",
    "95% interval",
    "p",
    "Hausdorff 95%, mm",
    "95% interval",
    "p",
    "cases",
)
_UNDER_TRAINED, _UNKNOWN, _CROPS = "†", "?", "‡"


@dataclass(frozen=True)
class Result:
    """A row that was trained, evaluated and measured.

    Args:
        cost: see ``row_work.measure``.
        steps: steps made by each of its runs, in all stages.
        late_rise: of the validation Dice (see ``system_rows.late_rise``), mean over its runs; None if unknown.
    """

    row: Row
    evaluation: Evaluation
    cost: Mapping[str, Any]
    steps: int
    late_rise: float | None

    @property
    def is_under_trained(self) -> bool:
        """Whether its figures say little about how good the system is."""
        return self.late_rise is not None and self.late_rise > MOST_LATE_RISE

    @property
    def seconds_per_case(self) -> float:
        """Mean over the timed cases."""
        return sum(self.cost["seconds"].values()) / len(self.cost["seconds"])

    def mean(self, metric: str, segment: str = OVERALL) -> Mapping[str, Any] | None:
        """Summary of a metric as in ``summary.describe``; None if no case has a value."""
        summary = self.evaluation.summary
        return summary[OVERALL][metric] if segment == OVERALL else summary["segments"][segment][metric]


@dataclass(frozen=True)
class Comparison:
    """All rows and their background.

    Args:
        about: sentences about the data, the split and the training.
        are_crops: whether the median case fits into one window, so that systems for whole images cannot be judged.
    """

    results: Sequence[Result]
    about: Sequence[str]
    are_crops: bool

    @property
    def ours(self) -> Result | None:
        """ConResNet's row."""
        return next((result for result in self.results if result.row.name == CONRESNET), None)

    @cached_property
    def differences(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """For each row that shares cases with ConResNet, by metric: the row minus ConResNet, paired by case."""
        found = {}
        for result in self.results if self.ours else ():
            if result is not self.ours and set(result.evaluation.cases) & set(self.ours.evaluation.cases):
                rows = compare_evaluations(result.evaluation, self.ours.evaluation).rows
                found[result.row.name] = rows[OVERALL if OVERALL in rows else result.evaluation.segments[0]]
        return found

    def marks(self, result: Result) -> str:
        """Symbols for caveats about its figures; the notes below the table explain them."""
        unknown = _UNKNOWN if result.late_rise is None else ""
        return (_UNDER_TRAINED if result.is_under_trained else unknown) + (
            _CROPS if self.are_crops and result.row.is_for_whole_images else ""
        )

    def notes(self) -> list[str]:
        """One sentence for every symbol used in the table."""
        texts = {
            _UNDER_TRAINED: f"under-trained: the validation Dice rose in the last quarter of the steps by more than "
            f"{MOST_LATE_RISE}. The table does not rank such a system.",
            _UNKNOWN: "validated too rarely to know whether it is under-trained.",
            _CROPS: "made for whole images or abdominal CT. Here the median case fits into one window: there is "
            "nothing to find first, and no wider context to see.",
        }
        standing = "".join(map(self.marks, self.results))
        notes = [f"{mark} {text}" for mark, text in texts.items() if mark in standing]
        if self.differences and self.marks(self.ours):
            notes.append("Because ConResNet itself is marked, differences to it do not show which system is better.")
        return notes


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line per row and one column per figure; missing values are empty. Raises UserError."""
    lines = [_csv_line(comparison, result) for result in comparison.results]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


def _csv_line(comparison: Comparison, result: Result) -> dict[str, Any]:
    line = {
        "row": result.row.name,
        "title": result.row.title,
        "group": result.row.group,
        "networks": len(result.row.plans),
        "steps": result.steps,
        "late_rise": "" if result.late_rise is None else round(result.late_rise, 6),
        "under_trained": "unknown" if result.late_rise is None else "yes" if result.is_under_trained else "no",
        "judged_on_crops": "yes" if _CROPS in comparison.marks(result) else "no",
        "cases": len(result.evaluation.cases),
    }
    for segment in (OVERALL, *result.evaluation.segments):
        for metric in COMPARED:
            name = metric if segment == OVERALL else f"{metric} {segment}"
            line |= _numbers(name, result.mean(metric, segment), "mean", "cases")
    line |= {name: result.cost[name] for name in ("parameters", "multiply_adds")}
    line |= {
        "window": " x ".join(map(str, result.cost["window"])),
        "seconds_per_case": round(result.seconds_per_case, 4),
    }
    line |= {name: result.cost[name] for name in ("peak_bytes", "device", "precision", "threads")}
    for metric in COMPARED:
        found = comparison.differences.get(result.row.name, {}).get(metric)
        line |= _numbers(f"{metric} minus {CONRESNET}", found, "difference", "p", "cases")
    return line


def _numbers(name: str, found: Mapping[str, Any] | None, value: str, *more: str) -> dict[str, Any]:
    """The columns of one figure: its value, the ends of its interval, and further entries."""
    if not found:
        return {}
    low, high = found["interval"] or ("", "")
    ends = {f"{name} low": low, f"{name} high": high}
    return {name: found[value], **ends, **{f"{name} {item}": found[item] for item in more}}


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write tables of systems and peers, differences to ConResNet, the study, and segments. Raises UserError."""
    results, segments = comparison.results, comparison.results[0].evaluation.segments
    parts = ["# Systems compared", " ".join(comparison.about)]
    parts += _section(comparison, "Systems and peers", [item for item in results if item.row.group != "study"])
    for table, (subject, systems) in STUDY.items():
        rows = [item for item in results if item.row.is_in(table)]
        has_its_own = any(item.row.table == table for item in rows)
        if has_its_own or (table == SIZES and len(rows) == len(systems)):
            parts += _section(comparison, f"{table} of ConResNet's paper: {subject}", rows)
    if len(segments) > 1:
        parts += ["## By segment", _table(SEGMENT_COLUMNS, _segment_lines(comparison, segments))]
    parts += comparison.notes()
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def _section(comparison: Comparison, title: str, results: Sequence[Result]) -> list[str]:
    parts = [f"## {title}", _table(COLUMNS, [_line(comparison, item) for item in results])]
    compared = [item for item in results if item.row.name in comparison.differences]
    if compared:
        lines = [_difference_line(comparison, item) for item in compared]
        parts += ["Minus ConResNet, case by case:", _table(DIFFERENCE_COLUMNS, lines)]
    return parts


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _line(comparison: Comparison, result: Result) -> list[str]:
    cost = result.cost
    return [
        _title(comparison, result),
        *(_mean_cell(result, metric) for metric in COMPARED),
        f"{cost['parameters'] / 1e6:.2f}",
        f"{cost['multiply_adds'] / 1e9:.1f}",
        f"{result.seconds_per_case:.2f}",
        f"{cost['peak_bytes'] / 1e9:.2f}",
        str(result.steps),
        str(len(result.evaluation.cases)),
    ]


def _segment_lines(comparison: Comparison, segments: Sequence[str]) -> list[list[str]]:
    return [
        [_title(comparison, item), segment, *(_mean_cell(item, metric, segment) for metric in COMPARED)]
        for item in comparison.results
        for segment in segments
    ]


def _difference_line(comparison: Comparison, result: Result) -> list[str]:
    line = [_title(comparison, result)]
    for metric in COMPARED:
        found = comparison.differences[result.row.name][metric]
        if not found["cases"]:
            line += ["", "", ""]
            continue
        decimals = METRICS[metric].decimals + 1
        between = " to ".join(f"{end:+.{decimals}f}" for end in found["interval"] or ())
        line += [f"{found['difference']:+.{decimals}f}", between, f"{found['p']:.2g}"]
    return [*line, str(comparison.differences[result.row.name][COMPARED[0]]["cases"])]


def _title(comparison: Comparison, result: Result) -> str:
    marks = comparison.marks(result)
    return f"{result.row.title} {marks}" if marks else result.row.title


def _mean_cell(result: Result, metric: str, segment: str = OVERALL) -> str:
    """The mean with its interval if there is one, and the number of cases if some have no value."""
    found, cases = result.mean(metric, segment), len(result.evaluation.cases)
    if not found:
        return ""
    decimals = METRICS[metric].decimals
    between = " to ".join(f"{end:.{decimals}f}" for end in found["interval"] or ())
    cell = f"{found['mean']:.{decimals}f}" + (f" ({between})" if between else "")
    return cell if found["cases"] == cases else f"{cell}, {found['cases']} of {cases} cases"


COLORS = {"systems": "#2166ac", "peers": "#b2622d", "study": "#5b8c5a"}
GROUP_TITLES = {"systems": "systems", "peers": "peers", "study": "ConResNet's study"}
INCHES_PER_ROW = 0.27


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw Dice and Hausdorff distance with their 95% intervals and the cost of each row, as a PNG.

    Under-trained rows have hollow markers. Raises UserError if the file cannot be written.
    """
    results = comparison.results
    figure = Figure(figsize=(15, 1.5 + INCHES_PER_ROW * len(results)), layout="constrained")
    panels = figure.subplots(1, 6, sharey=True, width_ratios=(1.6, 1.6, 1, 1, 1, 1))
    for panel, metric in zip(panels, COMPARED, strict=False):
        _draw_means(panel, results, metric)
    costs = {
        "parameters (M)": [item.cost["parameters"] / 1e6 for item in results],
        "multiply-adds per window (G)": [item.cost["multiply_adds"] / 1e9 for item in results],
        "seconds per case": [item.seconds_per_case for item in results],
        "peak memory (GB)": [item.cost["peak_bytes"] / 1e9 for item in results],
    }
    for panel, (title, values) in zip(panels[2:], costs.items(), strict=True):
        _draw_costs(panel, results, title, values)
    titles = [f"{item.row.title} {comparison.marks(item)}".rstrip() for item in results]
    panels[0].set_yticks(range(len(results)), titles)
    panels[0].set_ylim(len(results) - 0.4, -0.6)
    present = [group for group in COLORS if any(item.row.group == group for item in results)]
    figure.legend(
        handles=[Patch(color=COLORS[group], label=GROUP_TITLES[group]) for group in present],
        loc="outside upper left",
        ncols=len(present),
        fontsize=8,
        frameon=False,
    )
    explained = ["Lines: 95% intervals over cases. Hollow markers: † or ?.", *comparison.notes()]
    figure.supxlabel("\n".join(explained), x=0.01, ha="left", fontsize=8, color=INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _draw_means(panel: Axes, results: Sequence[Result], metric: str) -> None:
    for place, result in enumerate(results):
        if found := result.mean(metric):
            low, high = found["interval"] or (found["mean"], found["mean"])
            panel.plot([low, high], [place, place], color=_color(result), linewidth=1.6)
            panel.plot(found["mean"], place, "o", markersize=6, **_marker(result))
    _dress(panel, METRICS[metric].heading)


def _draw_costs(panel: Axes, results: Sequence[Result], title: str, values: Sequence[float]) -> None:
    panel.barh(range(len(results)), values, height=0.62, color=[_color(result) for result in results], alpha=0.75)
    panel.set_xlim(0, 1.3 * max(values))
    for place, value in enumerate(values):
        panel.text(value, place, f" {value:.3g}", va="center", fontsize=7, color=INK)
    _dress(panel, title)


def _color(result: Result) -> str:
    return COLORS[result.row.group]


def _marker(result: Result) -> dict:
    is_sure = result.late_rise is not None and not result.is_under_trained
    return {"markeredgecolor": _color(result), "markerfacecolor": _color(result) if is_sure else "white"}


def _dress(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=9.5, color=INK)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    style_axes(panel, "x")
