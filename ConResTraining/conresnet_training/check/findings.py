"""What a check finds, as lines for a terminal and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conresnet_training.data import DataSet
from conresnet_training.reporting.text import case_count

ERROR, WARNING = "error", "warning"
# Percentiles that summarize a channel's intensities.
PERCENTILES = (0.5, 25, 50, 75, 99.5)


@dataclass(frozen=True)
class Finding:
    """An error, with which training would refuse the data, or a warning; ``code`` is its stable name."""

    level: str
    code: str
    message: str


@dataclass(frozen=True)
class Tile:
    """One slice of a case to be shown: its first channel in gray (0 to 255), and the labels.

    Args:
        image, label: uint8 of the same shape; rows run to anterior, columns to the patient's right.
        aspect: height of a voxel divided by its width.
    """

    image: np.ndarray
    label: np.ndarray
    aspect: float


@dataclass
class CaseReport:
    """Findings and measurements of one case; what could not be read is None or missing.

    Args:
        size, spacing: of the first channel along the file's axes, in voxels and mm.
        patient_size, patient_spacing: the same along superior-inferior, anterior-posterior and right-left.
        intensities: for each channel its ``PERCENTILES`` outside the background.
        label_ml: volume of each label in mL.
        digest: of all channels' voxels.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    patient_size: tuple[int, ...] | None = None
    patient_spacing: tuple[float, ...] | None = None
    intensities: dict[str, tuple[float, ...]] = field(default_factory=dict)
    label_ml: dict[str, float] = field(default_factory=dict)
    digest: bytes | None = None
    tile: Tile | None = None

    def add(self, level: str, code: str, message: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, code, message))

    @property
    def level(self) -> str | None:
        """The worst level of its findings; None without any."""
        return worst(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "size": list(self.size) if self.size else None,
            "spacing": [round(mm, 6) for mm in self.spacing] if self.spacing else None,
            "findings": [vars(finding) for finding in self.findings],
            "label_ml": {name: round(ml, 6) for name, ml in self.label_ml.items()},
        }


@dataclass
class SetReport:
    """Findings in a data set, case by case and as a whole."""

    data: Path
    data_set: DataSet
    cases: list[CaseReport]
    findings: list[Finding] = field(default_factory=list)

    def count(self, level: str | None) -> int:
        """Number of cases whose worst finding has that level; None counts those without findings."""
        return sum(case.level == level for case in self.cases)

    @property
    def has_errors(self) -> bool:
        """Whether something must be fixed before training."""
        return any(worst(item.findings) == ERROR for item in (self, *self.cases))

    def lines(self) -> Iterator[str]:
        """One line for the whole set if it has findings, one per case with findings, and one that counts the others."""
        for name, findings in (("the data set", self.findings), *((case.name, case.findings) for case in self.cases)):
            if findings:
                yield f"{name}: " + "; ".join(f"{found.level}: {found.message}" for found in findings)
        fine = self.count(None)
        yield f"{fine} of {case_count(len(self.cases))} {'is' if 1 in (fine, len(self.cases)) else 'are'} fine."

    def median(self, attribute: str) -> list[float] | None:
        """Median of ``patient_size`` or ``patient_spacing`` along each axis; None if no case could be read."""
        values = [value for case in self.cases if (value := getattr(case, attribute)) is not None]
        return np.median(values, axis=0).tolist() if values else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON. Medians in the summary are in the order superior-inferior, anterior-posterior, right-left."""
        return {
            "data": str(self.data),
            "layout": self.data_set.layout,
            "channels": list(self.data_set.channels),
            "labels": {str(value): name for value, name in self.data_set.labels.items()},
            "regions": {name: list(values) for name, values in self.data_set.regions.items()},
            "cases": [case.to_dict() for case in self.cases],
            "summary": {
                "name": self.data_set.name,
                "cases": len(self.cases),
                "fine": self.count(None),
                "with_errors": self.count(ERROR),
                "with_warnings": self.count(WARNING),
                "findings": [vars(finding) for finding in self.findings],
                "median_size": self.median("patient_size"),
                "median_spacing": self.median("patient_spacing"),
            },
        }


def worst(findings: list[Finding]) -> str | None:
    """The worst level among findings; None without any."""
    levels = {finding.level for finding in findings}
    return ERROR if ERROR in levels else WARNING if levels else None
