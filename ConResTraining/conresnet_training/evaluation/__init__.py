"""Measurements of many cases: summaries with intervals, files and text tables.

Cases are measured in ``evaluation.runs``, which takes seconds to import; comparing needs only this file.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from conresnet.errors import UserError
from conresnet.files import csv_cell, replacing, write_text
from conresnet_training.evaluation.metrics import METRICS, VOLUME, Figures
from conresnet_training.reporting import backend_command, case_count
from conresnet_training.runs import CROSSVAL_FILE, FOLD_FILE

# The measurements of every case and segment.
Cases = Mapping[str, Mapping[str, Figures]]

OVERALL = "overall"
# Volumes of different segments are not averaged, because errors in opposite directions would cancel.
AVERAGED = tuple(name for name in METRICS if name != "volume_difference_ml")
LEAST_CASES_OF_AN_INTERVAL = 5
RESAMPLES = 9999
SEED = 0


def summarize(cases: Cases) -> dict[str, Any]:
    """Summarize the measurements of every case and segment.

    Returns:
        "segments": for each segment and metric "cases" (with a value), "mean", "interval" (see ``mean_interval``),
        "median", "lower_quartile", "upper_quartile", "lowest", "highest"; None for a metric without any value.
        "overall": the same for the mean over each case's segments. "empty": for each segment the number of cases in
        which it was "missed", "invented", or correctly "absent".
    """
    segments = next(iter(cases.values()))
    return {
        OVERALL: {metric: describe(per_case(cases, OVERALL, metric).values()) for metric in AVERAGED},
        "segments": {
            segment: {metric: describe(per_case(cases, segment, metric).values()) for metric in METRICS}
            for segment in segments
        },
        "empty": {segment: _empty([rows[segment] for rows in cases.values()]) for segment in segments},
    }


def per_case(cases: Cases, segment: str, metric: str) -> dict[str, float]:
    """The values of the cases that have one; for ``OVERALL`` the mean over the segments that have one."""
    found = {}
    for case, rows in cases.items():
        chosen = rows.values() if segment == OVERALL else [rows[segment]]
        values = [row[metric] for row in chosen if row[metric] is not None]
        if values:
            found[case] = float(np.mean(values))
    return found


def describe(values: Sequence[float]) -> dict[str, Any] | None:
    """One summary, rounded; None if there are no values."""
    values = np.array(list(values), dtype=float)
    if not values.size:
        return None
    quartiles = np.percentile(values, [25, 50, 75])
    numbers = {
        "mean": values.mean(),
        "median": quartiles[1],
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "lowest": values.min(),
        "highest": values.max(),
    }
    return {
        "cases": int(values.size),
        **{name: round(float(number), 6) for name, number in numbers.items()},
        "interval": mean_interval(values),
    }


def mean_interval(values: np.ndarray) -> list[float] | None:
    """The 95% percentile bootstrap interval of the mean over cases, rounded; the same values give the same interval.

    None for fewer than five cases: resampling so few gives an interval that is far too narrow.
    """
    if values.size < LEAST_CASES_OF_AN_INTERVAL:
        return None
    # In blocks, so that a thousand cases do not take a thousand times 9999 numbers at once.
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=999, vectorized=True, method="percentile", rng=SEED
    )
    return [round(float(end), 6) for end in result.confidence_interval]


def _empty(rows: Sequence[Figures]) -> dict[str, int]:
    """How often the segment is absent from one label map or both."""
    counts = {"missed": 0, "invented": 0, "absent": 0}
    for row in rows:
        if row["hd"] is None:
            kind = "absent" if row["dice"] == 1 else "missed" if row["volume_difference_ml"] < 0 else "invented"
            counts[kind] += 1
    return counts


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """A sentence about every segment that was empty in some case."""
    words = {
        "missed": "missed in {}",
        "invented": "invented in {}",
        "absent": "correctly absent in {}, which counts as a Dice of 1",
    }
    sentences = []
    for segment, counts in summary["empty"].items():
        parts = [words[kind].format(case_count(count)) for kind, count in counts.items() if count]
        if parts:
            sentences.append(f"{segment} was {', '.join(parts)}; these cases have no distances.")
    return sentences


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as text, one line per segment and metric."""
    rows = [("segment", "metric", "mean", "95% interval", "median", "quartiles", "lowest", "highest", "cases")]
    blocks = dict(summary["segments"])
    if len(blocks) > 1:
        blocks["mean of segments"] = summary[OVERALL]
    for segment, metrics in blocks.items():
        for name, found in metrics.items():
            if found is not None:
                rows.append((segment, METRICS[name].heading, *summary_cells(name, found)))
    return text_table(rows)


def summary_cells(metric: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Mean, interval, median, quartiles, lowest, highest and number of cases as text."""

    def shown(*names: str) -> str:
        return " to ".join(f"{found[name]:.{METRICS[metric].decimals}f}" for name in names)

    interval = found["interval"]
    between = "" if interval is None else " to ".join(f"{end:.{METRICS[metric].decimals}f}" for end in interval)
    quartiles = shown("lower_quartile", "upper_quartile")
    return (shown("mean"), between, shown("median"), quartiles, shown("lowest"), shown("highest"), str(found["cases"]))


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first two, which are names, flush left, the others, which are numbers, flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


JSON_FILE = "evaluation.json"
# Where the measurements of a run are, in its folder.
EVALUATION_FOLDER = "evaluation"
CSV_FILE = "evaluation.csv"
PAGE_FILE = "report.html"
COLUMNS = (*METRICS, VOLUME)


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on which cases.

    Args:
        data: the data set's name.
        split: which cases these are, as a sentence.
        model: the model's name, or the folder of the predictions.
        surface_tolerance_mm: of surface Dice.
        cases: for each case and segment its measurements, see ``metrics.segment_figures``.
        missing: cases of the data set that should have been measured but have no result.
        made_by: facts of each run, see ``conresnet_training.runs.packing.PackedRuns``; empty for predictions.
        failed: for each case that could not be measured, why.
    """

    data: str
    split: str
    model: str
    surface_tolerance_mm: float
    cases: Cases
    missing: tuple[str, ...] = ()
    made_by: tuple[Mapping[str, Any], ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(next(iter(self.cases.values())))

    def mean(self, metric: str) -> float | None:
        """The mean over the cases and segments that have a value."""
        summary = self.summary["overall"].get(metric)
        return summary["mean"] if summary else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        return summarize(self.cases)

    @property
    def unfinished(self) -> list[str]:
        return unfinished(self.made_by)

    def worst_first(self) -> list[str]:
        """The cases by mean Dice over segments, the lowest first."""
        return sorted(self.cases, key=lambda case: (sum(row["dice"] for row in self.cases[case].values()), case))

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "split": self.split,
            "model": self.model,
            "made_by": [dict(entry) for entry in self.made_by],
            "surface_tolerance_mm": self.surface_tolerance_mm,
            "missing": list(self.missing),
            "failed": dict(self.failed),
            "summary": self.summary,
            "cases": {name: {segment: dict(row) for segment, row in rows.items()} for name, rows in self.cases.items()},
        }


def unfinished(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence about each run whose training was not finished, from facts as in ``Evaluation.made_by``."""
    return [
        f"{name_of_fold(run['fold'])} is unfinished: {run['unfinished']} were completed."
        for run in runs
        if run.get("unfinished")
    ]


def name_of_fold(fold: int | None) -> str:
    """Name of a run, for use in a sentence."""
    return "The run on all cases" if fold is None else f"Fold {fold}"


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.csv``, one row per case and segment, and ``evaluation.json``.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    with (
        replacing(folder / CSV_FILE) as path,
        open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["case", "segment", *COLUMNS])
        for case, rows in evaluation.cases.items():
            for segment, figures in rows.items():
                # A figure without a value is an empty field.
                writer.writerow([csv_cell(case), csv_cell(segment), *(figures[name] for name in COLUMNS)])
    write_json(evaluation.to_dict(), folder / JSON_FILE)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON text. Raises UserError ``disk-full`` or ``cannot-write``."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> Evaluation:
    """Read an ``evaluation.json``, or the one in a folder, which may also be that of a run.

    Raises:
        UserError: ``evaluation-not-found``, ``run-not-evaluated``, ``evaluation-invalid`` or
            ``evaluation-segments-differ``.
    """
    if path.is_dir():
        folder, inside = path, path / EVALUATION_FOLDER / JSON_FILE
        path = inside if inside.exists() and not (path / JSON_FILE).exists() else path / JSON_FILE
        is_of_runs = any((folder / name).exists() for name in (FOLD_FILE, CROSSVAL_FILE))
        if is_of_runs and not path.exists():
            raise UserError("run-not-evaluated", path=str(folder), command=backend_command("evaluate", folder))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        evaluation = Evaluation(
            data=content["data"],
            split=content["split"],
            model=content["model"],
            surface_tolerance_mm=_number(content["surface_tolerance_mm"]),
            cases={
                case: {segment: _checked_figures(row) for segment, row in rows.items()}
                for case, rows in content["cases"].items()
            },
            missing=tuple(content["missing"]),
            made_by=tuple(content["made_by"]),
            failed=dict(content.get("failed", {})),
        )
        _check_texts(evaluation)
    except OSError as error:
        raise UserError("evaluation-not-found", path=str(path), reason=error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError("evaluation-invalid", path=str(path)) from error
    if len({tuple(rows) for rows in evaluation.cases.values()}) != 1 or not evaluation.segments:
        raise UserError("evaluation-segments-differ", path=str(path))
    return evaluation


# The figures that a segment without a surface does not have.
_MAY_BE_MISSING = ("hd95", "hd")


def _checked_figures(row: Mapping[str, Any]) -> Figures:
    """The figures of one segment. Raises ValueError, KeyError, TypeError or OverflowError for invalid ones."""
    return {
        name: None if row[name] is None and name in _MAY_BE_MISSING else _number(row[name], name) for name in COLUMNS
    }


def _number(value: Any, name: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    if (value < 0 and name != "volume_difference_ml") or (value > 1 and name in ("dice", "surface_dice")):
        raise ValueError(f"{value!r} is out of range")
    return float(value)


def _check_texts(evaluation: Evaluation) -> None:
    """Raise ValueError or AttributeError for content that does not match ``Evaluation``."""
    texts = (evaluation.data, evaluation.split, evaluation.model, *evaluation.missing, *evaluation.failed.values())
    runs = [(entry.get("unfinished", ""), entry["fold"]) for entry in evaluation.made_by]
    if not all(isinstance(text, str) for text in (*texts, *(so_far for so_far, _ in runs))):
        raise ValueError("not a text")
    if not all(fold is None or type(fold) is int for _, fold in runs):
        raise ValueError("not the number of a fold")
