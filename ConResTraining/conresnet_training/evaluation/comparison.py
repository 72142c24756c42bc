"""The comparison of two evaluations, case by case."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from conresnet.errors import UserError
from conresnet_training.evaluation import (
    AVERAGED,
    OVERALL,
    Cases,
    Evaluation,
    mean_interval,
    per_case,
    text_table,
    write_json,
)
from conresnet_training.evaluation.metrics import METRICS, VOLUME, Figures
from conresnet_training.reporting import listed

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
