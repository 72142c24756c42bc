"""Check every case of a data set: files, grids, values, and differences between cases; and report the findings."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Volume, check_volume, reordering
from conresnet.images.files import read_image, read_single
from conresnet.images.geometry import covered
from conresnet.images.preparation import foreground_mask, looks_like_labels, may_be_hounsfield
from conresnet_training.data import Case, DataSet
from conresnet_training.data.label_maps import (
    TOLERATED_SHIFT,
    check_expected,
    grid_difference,
    label_counts,
    whole_labels,
)
from conresnet_training.planning.survey import is_ct
from conresnet_training.reporting import case_count

ERROR, WARNING = "error", "warning"
# Percentiles that summarize a channel's intensities.
PERCENTILES = (0.5, 25, 50, 75, 99.5)


@dataclass(frozen=True)
class Finding:
    """A warning, or an error that would prevent training; ``code`` is its stable name."""

    level: str
    code: str
    message: str


@dataclass(frozen=True)
class Tile:
    """One slice of a case for the report: its first channel in gray (0 to 255), and the labels.

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
        hounsfield: for each CT channel whether its values look like Hounsfield units.
        label_ml: volume of each label in mL.
        digest: of all channels' voxels.
        label_digest: of the label map; None if it is empty.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    patient_size: tuple[int, ...] | None = None
    patient_spacing: tuple[float, ...] | None = None
    intensities: dict[str, tuple[float, ...]] = field(default_factory=dict)
    hounsfield: dict[str, bool] = field(default_factory=dict)
    label_ml: dict[str, float] = field(default_factory=dict)
    digest: bytes | None = None
    label_digest: bytes | None = None
    tile: Tile | None = None

    def add(self, level: str, code: str, message: str) -> None:
        self.findings.append(Finding(level, code, message))

    @property
    def level(self) -> str | None:
        return worst(self.findings)

    def to_dict(self) -> dict[str, Any]:
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
        """Number of cases with this worst level; None counts cases without findings."""
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
    """The worst level among findings; None if there are none."""
    levels = {finding.level for finding in findings}
    return ERROR if ERROR in levels else WARNING if levels else None


# Superior, anterior, right: the order in which sizes of different cases are compared.
PATIENT_AXES = "SAR"
_DIRECTIONS = ("superior-inferior", "anterior-posterior", "right-left")
MOST_VALUES = 200_000
LARGEST_TILE = 160
# Maximum number of cases with a slice in the report.
MOST_TILES = 24
# A case is an outlier if its spacing, or size in voxels, differs from the median by more than these factors; fewer
# cases are not compared.
SPACING_FACTOR, SIZE_FACTOR, FEWEST_TO_COMPARE = 2, 3, 5
# A warning says how much of the first channel another one covers if it is less than this, as in segmentation.
MOSTLY_COVERED = 0.95


def check_data_set(data_set: DataSet, folder: Path, done: Callable[[str], None] = lambda name: None) -> SetReport:
    """Read every case and report errors and warnings.

    Args:
        done: called with the name of each case after it was checked.
    """
    with_tile = set(data_set.spread(MOST_TILES))
    cases = []
    for index, case in enumerate(data_set.cases):
        cases.append(_checked(case, data_set, index in with_tile))
        done(case.name)
    _note_duplicates(cases)
    _note_mixed_units(cases)
    _note_outliers(cases, "patient_spacing", "spacing", "mm", SPACING_FACTOR)
    _note_outliers(cases, "patient_size", "size", "voxels", SIZE_FACTOR)
    return SetReport(folder.resolve(), data_set, cases, _of_the_whole(data_set, folder, cases))


def _checked(case: Case, data_set: DataSet, with_tile: bool) -> CaseReport:
    """``check_case``; a library's unexpected failure at a file is an error of this case, not of the check."""
    try:
        return check_case(case, data_set, with_tile)
    except Exception as error:
        report = CaseReport(case.name)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        report.add(ERROR, "case-unreadable", f"Its files cannot be read ({reason})")
        return report


def _note_duplicates(cases: list[CaseReport]) -> None:
    image_of: dict[bytes, str] = {}
    label_of: dict[bytes, str] = {}
    for case in cases:
        if case.digest is not None and (other := image_of.setdefault(case.digest, case.name)) != case.name:
            case.add(WARNING, "duplicate-image", f"Its images are identical to those of {other}")
            continue
        if case.label_digest is not None and (other := label_of.setdefault(case.label_digest, case.name)) != case.name:
            case.add(WARNING, "duplicate-label", f"Its label map is identical to that of {other}")


def _note_mixed_units(cases: list[CaseReport]) -> None:
    """CT has one scale for all cases, so shifted or scaled cases would harm planning and training."""
    for channel in dict.fromkeys(name for case in cases for name in case.hounsfield):
        known = [case for case in cases if channel in case.hounsfield]
        if not any(case.hounsfield[channel] for case in known):
            continue
        for case in known:
            if not case.hounsfield[channel]:
                low, *_, high = case.intensities[channel]
                values = f"Channel {channel} has values from about {low:g} to {high:g}"
                sentence = f"{values}, which do not look like Hounsfield units, unlike those of other cases"
                case.add(WARNING, "not-hounsfield", sentence)


def _note_outliers(cases: list[CaseReport], attribute: str, what: str, unit: str, factor: float) -> None:
    measured = [case for case in cases if getattr(case, attribute) is not None]
    if len(measured) < FEWEST_TO_COMPARE:
        return
    median = np.median([getattr(case, attribute) for case in measured], axis=0)
    for case in measured:
        ratios = np.array(getattr(case, attribute)) / median
        axis = int(np.abs(np.log(ratios)).argmax())
        if not 1 / factor <= ratios[axis] <= factor:
            sentence = f"Its {_DIRECTIONS[axis]} {what} is {getattr(case, attribute)[axis]:.4g} {unit}"
            case.add(WARNING, f"{what}-outlier", f"{sentence}; the median is {median[axis]:.4g}")


def _of_the_whole(data_set: DataSet, folder: Path, cases: list[CaseReport]) -> list[Finding]:
    """Problems of the whole data set. Those of the labels require at least one readable label map."""
    found = [Finding(WARNING, code, sentence) for code, sentence in data_set.warnings.items()]
    try:
        data_set.check_size(folder)
    except UserError as error:
        found.insert(0, Finding(ERROR, error.code, _clause(error)))
    if not any(case.label_ml for case in cases):
        return found
    unused = [name for name in data_set.labels.values() if not any(case.label_ml.get(name) for case in cases)]
    if len(unused) == len(data_set.labels):
        return [*found, Finding(ERROR, "no-foreground", "No case has a labeled voxel, so there is nothing to learn")]
    found += [Finding(WARNING, "label-unused", f"No case has the label {name}") for name in unused]
    return found + list(_rare_labels(data_set, cases))


def _rare_labels(data_set: DataSet, cases: list[CaseReport]) -> Iterator[Finding]:
    """Labels of so few cases that some fold has none to train on, or none to hold out."""
    if any(case.level == ERROR for case in cases):
        # The number of cases with a label is known only after these are corrected.
        return
    for name in data_set.labels.values():
        count = sum(bool(case.label_ml.get(name)) for case in cases)
        if 0 < count < data_set.folds:
            having = "1 case has" if count == 1 else f"{count} cases have"
            sentence = f"Only {having} the label {name}, so not all of the {data_set.folds} folds can be measured on it"
            yield Finding(WARNING, "label-rare", sentence)


def check_case(case: Case, data_set: DataSet, with_tile: bool) -> CaseReport:
    """Check one case; ``with_tile`` keeps a slice to be shown."""
    report = CaseReport(case.name)
    channels = _channels(case, data_set.channels, report)
    label = _label(case, data_set, channels, report)
    if label is not None and not case.images:
        _measure(label, report)
    if not channels:
        return report
    first, reference = next(iter(channels.items()))
    _measure(reference, report)
    usable = {name: volume for name, volume in channels.items() if _is_usable(volume, name, report)}
    report.intensities = {name: _percentiles(volume) for name, volume in usable.items()}
    for name in (name for name, volume in usable.items() if looks_like_labels(volume.array)):
        report.add(WARNING, "like-labels", f"Channel {name} looks like a label map: it has only a few distinct values")
    for name, volume in channels.items():
        if difference := grid_difference(volume.grid, reference.grid):
            index_map = np.linalg.inv(volume.grid.array_affine) @ reference.grid.array_affine
            share = covered(index_map, volume.grid.shape, reference.grid.shape).mean()
            sentence = f"Channel {name} is not on the grid of the first channel ({difference})"
            if not share:
                report.add(ERROR, "channels-apart", f"{sentence} and does not overlap it")
                continue
            rest = f", but covers only {share:.0%} of it" if share < MOSTLY_COVERED else ""
            report.add(WARNING, "channel-grid-differs", f"{sentence} and will be resampled{rest}")
    report.hounsfield = {name: may_be_hounsfield(volume.array) for name, volume in usable.items() if is_ct(name)}
    # Unusable channels are errors anyway, and their values may not fit the digest's type.
    if len(usable) == len(data_set.channels):
        report.digest = _digest(channels.values())
    if with_tile and first in usable:
        matching = label if label is not None and label.grid.matches(reference.grid, TOLERATED_SHIFT) else None
        report.tile = _tile(reference, matching)
    report.findings.sort(key=lambda finding: finding.level)
    return report


def _channels(case: Case, names: tuple[str, ...], report: CaseReport) -> dict[str, Volume]:
    """The channels that can be read, in order; problems are noted. A label map without images has none."""
    if not case.images:
        return {}
    if len(case.images) == 1:
        (path,) = case.images
        if (arrays := _read(path, "The image", report)) is None:
            return {}
        if len(arrays) != len(names):
            own, wanted = (
                f"{count} {what}{'s' * (count != 1)}"
                for count, what in ((len(arrays), "image"), (len(names), "channel"))
            )
            sentence = f"{path} contains {own}, but the data set has {wanted} ({', '.join(names)})"
            report.add(ERROR, "wrong-channel-count", sentence)
            return {}
        return dict(zip(names, arrays, strict=True))
    channels = {}
    for name, path in zip(names, case.images, strict=True):
        arrays = _read(path, f"Channel {name}", report)
        if arrays is None:
            continue
        if len(arrays) == 1:
            channels[name] = arrays[0]
        else:
            report.add(ERROR, "image-4d", f"Channel {name}: {path} contains {len(arrays)} images instead of one")
    return channels


def _read(path: Path, what: str, report: CaseReport) -> list[Volume] | None:
    if not os.path.exists(path):
        report.add(ERROR, "missing-image", f"{what} is missing: {path} does not exist")
        return None
    try:
        image = read_image(path)
    except UserError as error:
        report.add(ERROR, error.code, _clause(error))
        return None
    for warning in image.warnings:
        report.add(WARNING, "image-header", f"{what}: {warning}")
    return [Volume(array, image.grid, str(path)) for array in image.components]


def _is_usable(volume: Volume, name: str, report: CaseReport) -> bool:
    try:
        check_volume(volume)
    except UserError as error:
        match error.code:
            case "image-constant":
                sentence = f"Channel {name} is constant: all voxels are {error.values['value']:g}"
            case "image-not-finite":
                count = error.values["count"]
                voxels = "1 voxel that is" if count == 1 else f"{count} voxels that are"
                sentence = f"Channel {name} has {voxels} NaN or infinite"
            case _:
                sentence = f"Channel {name}: {_clause(error)}"
        report.add(ERROR, error.code, sentence)
        return False
    return True


def _label(case: Case, data_set: DataSet, channels: dict[str, Volume], report: CaseReport) -> Volume | None:
    """The label map if it can be measured; problems are noted."""
    if not os.path.exists(case.label):
        report.add(ERROR, "missing-label", f"The label map is missing: {case.label} does not exist")
        return None
    try:
        stored = read_single(case.label)
    except UserError as error:
        report.add(ERROR, error.code, _clause(error))
        return None
    first = channels.get(data_set.channels[0])
    if first is not None and (difference := grid_difference(stored.grid, first.grid)):
        if stored.grid.matches(first.grid, TOLERATED_SHIFT):
            sentence = f"The label map is slightly off the grid of the image ({difference}); it will be moved onto it"
            report.add(WARNING, "label-grid-shifted", sentence)
        else:
            report.add(ERROR, "label-grid-differs", f"The label map is not on the grid of the image: {difference}")
    try:
        if case.images:
            label = whole_labels(stored)
            check_expected(label, data_set.known_values)
        else:
            label = data_set.tissues.as_values(data_set.tissues.as_places(stored))
    except UserError as error:
        report.add(ERROR, error.code, _clause(error))
        if error.code != "unexpected-labels":
            return None
    counts = label_counts(label)
    ml = label.grid.voxel_volume / 1000
    own = {name: data_set.values_of_labels.get(name, (value,)) for value, name in data_set.labels.items()}
    report.label_ml = {name: sum(counts.get(value, 0) for value in values) * ml for name, values in own.items()}
    if counts:
        report.label_digest = _digest([label])
    else:
        report.add(WARNING, "empty-label", "The label map is empty")
    return label


def _measure(volume: Volume, report: CaseReport) -> None:
    patient = reordering(volume.grid, PATIENT_AXES).grid(volume.grid)
    report.size, report.spacing = volume.grid.shape[::-1], tuple(volume.grid.spacing.tolist())
    report.patient_size, report.patient_spacing = patient.shape, tuple(patient.spacing[::-1].tolist())


def _percentiles(volume: Volume) -> tuple[float, ...]:
    values = volume.array[foreground_mask(volume.array, "not_background")]
    step = max(1, len(values) // MOST_VALUES)
    return tuple(np.percentile(values[::step].astype(np.float64), PERCENTILES).tolist())


def _digest(volumes: Iterable[Volume]) -> bytes:
    """Digest of the voxels, in one type, because a copy of a file may store the same values in another."""
    digest = hashlib.blake2b(digest_size=16)
    for volume in volumes:
        digest.update(f"{volume.array.shape}".encode())
        for plane in volume.array:
            digest.update(np.ascontiguousarray(plane, np.float32).data)
    return digest.digest()


def _tile(image: Volume, label: Volume | None) -> Tile:
    """The axial slice with the most labeled voxels, or the middle one."""
    order = reordering(image.grid, PATIENT_AXES)
    stack, spacing = order.view(image.array), order.grid(image.grid).spacing[::-1]
    labels = np.zeros(stack.shape, np.uint8) if label is None else order.view(label.array)
    labeled = np.count_nonzero(labels, axis=(1, 2))
    index = int(labeled.argmax()) if labeled.any() else len(stack) // 2
    step = max(1, -(-max(stack.shape[1:]) // LARGEST_TILE))
    gray = stack[index, ::step, ::step].astype(np.float64)
    low, high = np.percentile(gray, (0.5, 99.5))
    gray = np.clip((gray - low) / ((high - low) or 1) * 255, 0, 255).astype(np.uint8)
    return Tile(gray, np.ascontiguousarray(labels[index, ::step, ::step]), float(spacing[1] / spacing[2]))


def _clause(error: UserError) -> str:
    """An error's sentence as part of a line, without its period."""
    return error.message.rstrip(".")
