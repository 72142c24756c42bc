"""The figures of many cases: as they are kept in files, and read back."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conresnet.atomic_file import replacing
from conresnet.errors import UserError
from conresnet_training.evaluation.metrics import METRICS, VOLUME, Figures
from conresnet_training.evaluation.summary import summarize

JSON_FILE = "evaluation.json"
CSV_FILE = "evaluation.csv"
PAGE_FILE = "report.html"
COLUMNS = (*METRICS, VOLUME)


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on what.

    Args:
        data: the data set's name.
        split: a sentence on which cases these are.
        model: the model's name, or the folder of the predictions.
        surface_tolerance_mm: of surface Dice.
        cases: for each case and segment its figures, see ``metrics.segment_figures``.
        missing: cases of the data set that should have been measured and have no result.
        made_by: of runs, each one's fold, number of steps and checkpoint; of predictions nothing.
    """

    data: str
    split: str
    model: str
    surface_tolerance_mm: float
    cases: Mapping[str, Mapping[str, Figures]]
    missing: tuple[str, ...] = ()
    made_by: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def segments(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(next(iter(self.cases.values())))

    def mean(self, metric: str) -> float | None:
        """The mean over cases and segments, of those that have a value."""
        summary = self.summary["overall"].get(metric)
        return summary["mean"] if summary else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """See ``summary.summarize``."""
        return summarize(self.cases)

    def worst_first(self) -> list[str]:
        """The cases by mean Dice over segments, the lowest first."""
        return sorted(self.cases, key=lambda case: (sum(row["dice"] for row in self.cases[case].values()), case))

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "data": self.data,
            "split": self.split,
            "model": self.model,
            "made_by": [dict(entry) for entry in self.made_by],
            "surface_tolerance_mm": self.surface_tolerance_mm,
            "missing": list(self.missing),
            "summary": self.summary,
            "cases": {name: {segment: dict(row) for segment, row in rows.items()} for name, rows in self.cases.items()},
        }


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.csv``, a row a case and segment, and ``evaluation.json``.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    with replacing(folder / CSV_FILE) as path, open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "segment", *COLUMNS])
        writer.writerows(_rows(evaluation))
    write_json(evaluation.to_dict(), folder / JSON_FILE)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON text. Raises UserError where the file cannot be written."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def _rows(evaluation: Evaluation) -> Iterable[list]:
    for case, rows in evaluation.cases.items():
        for segment, figures in rows.items():
            # What has no value is an empty field.
            yield [case, segment, *(figures[name] for name in COLUMNS)]


def read_evaluation(path: Path) -> Evaluation:
    """Read an ``evaluation.json``, or the one in a folder.

    Raises:
        UserError: ``evaluation-not-found`` or ``evaluation-invalid``.
    """
    path = path / JSON_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        evaluation = Evaluation(
            data=content["data"],
            split=content["split"],
            model=content["model"],
            surface_tolerance_mm=float(content["surface_tolerance_mm"]),
            cases={
                case: {segment: {name: row[name] for name in COLUMNS} for segment, row in rows.items()}
                for case, rows in content["cases"].items()
            },
            missing=tuple(content["missing"]),
            made_by=tuple(content["made_by"]),
        )
    except OSError as error:
        raise UserError(
            "evaluation-not-found",
            f"The evaluation {path} cannot be read: {error.strerror}; make it with python -m conresnet_training "
            "evaluate.",
            path=str(path),
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(path, f"{error!r}") from error
    if not evaluation.cases or len({tuple(rows) for rows in evaluation.cases.values()}) != 1:
        raise _invalid(path, "its cases do not all have the same segments")
    return evaluation


def _invalid(path: Path, why: str) -> UserError:
    return UserError(
        "evaluation-invalid", f"{path} is not an evaluation ({why}); make it anew with evaluate.", path=str(path)
    )
