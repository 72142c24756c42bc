"""Every case of a data set looked at, one at a time, and what only shows between cases."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from conresnet_training.check.case_check import check_case
from conresnet_training.check.report import ERROR, WARNING, CaseReport, Finding, SetReport
from conresnet_training.data_sets import DataSet
from conresnet_training.data_sets.splits import SPLITS_FILE

# A case stands out whose spacing, or size in voxels, is so many times the median or a part of it, of so many cases.
SPACING_FACTOR, SIZE_FACTOR, FEWEST_TO_COMPARE = 2, 3, 5
# Cases of which a slice is kept to be looked at.
MOST_TILES = 24
_DIRECTIONS = ("superior-inferior", "anterior-posterior", "right-left")


def check_data_set(data_set: DataSet, folder: Path, done: Callable[[str], None] = lambda name: None) -> SetReport:
    """Read every case and report what is wrong or odd; memory holds one case at a time.

    Args:
        folder: where the data set lies.
        done: told the name of each case after it.
    """
    with_tile = set(data_set.spread(MOST_TILES))
    cases = []
    for index, case in enumerate(data_set.cases):
        cases.append(check_case(case, data_set, index in with_tile))
        done(case.name)
    _note_duplicates(cases)
    _note_outliers(cases, "patient_spacing", "spacing", "mm", SPACING_FACTOR)
    _note_outliers(cases, "patient_size", "size", "voxels", SIZE_FACTOR)
    return SetReport(folder.resolve(), data_set, cases, _of_the_whole(data_set, folder, cases))


def _note_duplicates(cases: list[CaseReport]) -> None:
    first: dict[bytes, str] = {}
    for case in cases:
        if case.digest is not None and (other := first.setdefault(case.digest, case.name)) != case.name:
            case.add(WARNING, "duplicate-image", f"its images are those of {other}, voxel for voxel")


def _note_outliers(cases: list[CaseReport], attribute: str, what: str, unit: str, factor: float) -> None:
    measured = [case for case in cases if getattr(case, attribute) is not None]
    if len(measured) < FEWEST_TO_COMPARE:
        return
    median = np.median([getattr(case, attribute) for case in measured], axis=0)
    for case in measured:
        ratios = np.array(getattr(case, attribute)) / median
        axis = int(np.abs(np.log(ratios)).argmax())
        if not 1 / factor <= ratios[axis] <= factor:
            sentence = f"its {what} is {getattr(case, attribute)[axis]:.4g} {unit} {_DIRECTIONS[axis]}"
            case.add(WARNING, f"{what}-outlier", f"{sentence}, where the median is {median[axis]:.4g}")


def _of_the_whole(data_set: DataSet, folder: Path, cases: list[CaseReport]) -> list[Finding]:
    """Too few cases to plan for, folds that are not as a file gives them, and labels that no case has, once any label
    map could be read.
    """
    found = []
    if sentence := data_set.too_few(folder):
        found.append(Finding(ERROR, "too-few-cases", sentence))
    if data_set.unused_splits:
        sentence = f"{SPLITS_FILE} is not followed: {data_set.unused_splits}"
        found.append(Finding(WARNING, "splits-not-followed", sentence))
    if not any(case.label_ml for case in cases):
        return found
    unused = [name for name in data_set.labels.values() if not any(case.label_ml.get(name) for case in cases)]
    return found + [Finding(WARNING, "label-unused", f"no case has the label {name}") for name in unused]
