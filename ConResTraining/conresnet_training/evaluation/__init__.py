"""Evaluations: what was measured on which cases, in memory and as files, and the comparison of two, case by case.

Cases are measured in ``evaluation.runs``, which takes seconds to import; comparing needs only this file.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from conresnet.errors import UserError
from conresnet.files import csv_cell, replacing, write_text
from conresnet_training.evaluation.metrics import (
    AVERAGED,
    METRICS,
    OVERALL,
    VOLUME,
    Cases,
    Figures,
    mean_interval,
    per_case,
    summarize,
    text_table,
)
from conresnet_training.reporting import backend_command, listed
from conresnet_training.runs import CROSSVAL_FILE, FOLD_FILE

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


# Volumes are rounded when they are written.
SAME_VOLUME = 1e-6
DIFFERENCE = "first minus second, paired by case; positive if the first is larger"


@dataclass(frozen=True)
class Comparison:
    """Paired differences: the first evaluation minus the second.

    Args:
        left_out: cases that only one of them has.
        other_references: cases of one name whose references have different volumes.
        rows: for each segment and ``OVERALL``, and each metric: "cases" (in which both have a value), "first" and
            "second" (the means over these), "difference" (of the means), "interval" (95%, percentile bootstrap over
            cases; None for fewer than five cases), "p" (Wilcoxon's signed-rank test, two-sided).
    """

    first: Evaluation
    second: Evaluation
    left_out: tuple[str, ...]
    other_references: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def warnings(self) -> list[str]:
        """Sentences if cases were compared that may not be the same, or an evaluation with itself."""
        if self.first == self.second:
            return ["Both evaluations are the same."]
        if not self.other_references:
            return []
        return [
            f"The references of {listed(self.other_references)} differ in volume between the two evaluations, so these "
            "may not be the same cases; evaluate both on the same data set."
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": _origin(self.first),
            "second": _origin(self.second),
            "difference": DIFFERENCE,
            "left_out": list(self.left_out),
            "warnings": self.warnings,
            "rows": {segment: {name: dict(row) for name, row in rows.items()} for segment, rows in self.rows.items()},
        }


def compare_evaluations(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations case by case.

    Raises:
        UserError: ``no-common-case``, ``evaluation-segments-unlike`` or ``tolerances-differ``.
    """
    common = [case for case in first.cases if case in second.cases]
    if not common:
        raise UserError("no-common-case", first=_named(first), second=_named(second))
    if set(first.segments) != set(second.segments):
        names = {"first": ", ".join(first.segments), "second": ", ".join(second.segments)}
        raise UserError("evaluation-segments-unlike", **names)
    if first.surface_tolerance_mm != second.surface_tolerance_mm:
        tolerances = {"first": first.surface_tolerance_mm, "second": second.surface_tolerance_mm}
        raise UserError("tolerances-differ", **tolerances)
    # Cases of the same name count as the same case, even if the data sets have different names.
    ours, theirs = ({case: item.cases[case] for case in common} for item in (first, second))
    names = list(first.segments) + ([OVERALL] if len(first.segments) > 1 else [])
    rows = {
        segment: {
            metric: _paired(*_of_both(ours, theirs, segment, metric))
            for metric in (AVERAGED if segment == OVERALL else METRICS)
        }
        for segment in names
    }
    left_out = sorted({*first.cases, *second.cases} - set(common))
    other_references = tuple(case for case in common if not _same_reference(ours[case], theirs[case]))
    return Comparison(first, second, tuple(left_out), other_references, rows)


def _same_reference(ours: Mapping[str, Figures], theirs: Mapping[str, Figures]) -> bool:
    """Whether the references of a case may be the same, by the volume of every segment."""
    return all(
        math.isclose(row[VOLUME], theirs[segment][VOLUME], rel_tol=SAME_VOLUME, abs_tol=SAME_VOLUME)
        for segment, row in ours.items()
    )


def check_comparison_path(path: Path) -> None:
    """Refuse a file that exists and is not a comparison. Raises UserError ``comparison-path-taken``."""
    if path.exists() and not _is_comparison(path):
        raise UserError("comparison-path-taken", path=str(path))


def _is_comparison(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("difference") == DIFFERENCE


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON.

    Raises:
        UserError: that of ``check_comparison_path``, ``disk-full`` or ``cannot-write``.
    """
    check_comparison_path(path)
    write_json(comparison.to_dict(), path)


def _of_both(ours: Cases, theirs: Cases, segment: str, metric: str) -> tuple[dict[str, float], dict[str, float]]:
    """Both values of each case; for ``OVERALL`` the means over the segments for which both have one.

    Otherwise, missing a difficult segment would be rewarded with a better mean of the others.
    """
    if segment != OVERALL:
        return per_case(ours, segment, metric), per_case(theirs, segment, metric)
    shared = {
        case: [name for name in rows if rows[name][metric] is not None and theirs[case][name][metric] is not None]
        for case, rows in ours.items()
    }
    return tuple(
        per_case({case: {name: side[case][name] for name in names} for case, names in shared.items()}, OVERALL, metric)
        for side in (ours, theirs)
    )


def _origin(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "model": evaluation.model,
        "data": evaluation.data,
        "split": evaluation.split,
        "made_by": [dict(entry) for entry in evaluation.made_by],
    }


def _named(evaluation: Evaluation) -> str:
    return f"{evaluation.model} on {evaluation.data}"


def _paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    cases = [case for case in ours if case in theirs]
    if not cases:
        return {"cases": 0, "first": None, "second": None, "difference": None, "interval": None, "p": None}
    one, other = (np.array([values[case] for case in cases]) for values in (ours, theirs))
    difference = one - other
    # Without any differences, there is nothing to rank.
    p = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
    return {
        "cases": len(cases),
        "first": round(float(one.mean()), 6),
        "second": round(float(other.mean()), 6),
        "difference": round(float(difference.mean()), 6),
        "interval": mean_interval(difference),
        "p": p,
    }


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text, one line per segment and metric."""
    rows = [("segment", "metric", "A", "B", "A - B", "95% interval", "p", "cases")]
    for segment, metrics in comparison.rows.items():
        for name, row in metrics.items():
            if not row["cases"]:
                continue
            decimals = METRICS[name].decimals + 1
            interval = row["interval"] or ()
            rows.append(
                (
                    "mean of segments" if segment == OVERALL else segment,
                    METRICS[name].heading,
                    *(f"{row[key]:.{decimals}f}" for key in ("first", "second")),
                    f"{row['difference']:+.{decimals}f}",
                    " to ".join(f"{end:+.{decimals}f}" for end in interval),
                    f"{row['p']:.2g}",
                    str(row["cases"]),
                )
            )
    return text_table(rows)
