"""``splits_final.json``, nnU-Net's file of folds: a list of {"train": [case, ...], "val": [case, ...]}, one a fold."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from conresnet_training.data_sets.data_set import DataSet

SPLITS_FILE = "splits_final.json"
FEWEST_FOLDS = 2


class _NotFollowedError(Exception):
    """Why the file's folds are not taken."""


def with_splits(data_set: DataSet, folder: Path) -> DataSet:
    """The data set with the folds of the file in its folder, where that names exactly these cases in each fold.

    One of other cases, or that cannot be read, fails no reading: the data set says why the file is not followed.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        return data_set
    try:
        return replace(data_set, held_out=tuple(_folds(path, {case.name for case in data_set.cases})))
    except _NotFollowedError as error:
        return replace(data_set, unused_splits=str(error))


def _folds(path: Path, names: set[str]) -> Iterator[frozenset[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _NotFollowedError("it cannot be read as JSON") from error
    if not isinstance(content, list) or len(content) < FEWEST_FOLDS:
        raise _NotFollowedError(f"it is not a list of {FEWEST_FOLDS} folds or more")
    for number, fold in enumerate(content):
        parts = [fold.get(key) for key in ("train", "val")] if isinstance(fold, dict) else []
        if not parts or not all(isinstance(part, list) and part for part in parts):
            raise _NotFollowedError(f'fold {number} is not a list "train" and a list "val" of cases')
        counts = Counter(str(name) for part in parts for name in part)
        wrong = {
            "names {}, which is no case": sorted(counts.keys() - names),
            "lacks {}": sorted(names - counts.keys()),
            "names {} twice": sorted(name for name, count in counts.items() if count > 1),
        }
        for sentence, cases in wrong.items():
            if cases:
                raise _NotFollowedError(f"fold {number} {sentence.format(cases[0])}")
        yield frozenset(map(str, parts[1]))
