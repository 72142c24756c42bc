"""The folds that a data set defines.

They come from ``splits_final.json``, nnU-Net's list of {"train": [case, ...], "val": [case, ...]}, or from a "fold" at
every entry of the list of cases, as MONAI's data lists have it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conresnet_training.data.data_set import FEWEST_FOLDS, FILE_NAME, DataSet, composed, read_json
from conresnet_training.reporting import shortened

SPLITS_FILE = "splits_final.json"


class _NotFollowedError(Exception):
    """Why folds that are defined are not used."""


def with_folds(data_set: DataSet, folder: Path, listed: Sequence[tuple[str, object]] = ()) -> DataSet:
    """The data set with the folds that it defines, if each of them names exactly these cases.

    Folds that cannot be used are not an error; the data set keeps the reason.

    Args:
        folder: may contain ``splits_final.json``, which comes first.
        listed: the name of each case in ``dataset.json`` and its "fold", None without one.
    """
    source = SPLITS_FILE
    try:
        if (folder / SPLITS_FILE).is_file():
            held_out = _folds_of_file(folder / SPLITS_FILE, [case.name for case in data_set.cases])
        elif any(fold is not None for _, fold in listed):
            source = f'"fold" in {FILE_NAME}'
            held_out = _folds_of_list(listed)
        else:
            return data_set
    except _NotFollowedError as error:
        return replace(data_set, unused_splits=f"{source} is not used: {error}")
    return replace(data_set, held_out=held_out, folds_from=source)


def _folds_of_list(listed: Sequence[tuple[str, object]]) -> tuple[frozenset[str], ...]:
    if not all(type(fold) is int for _, fold in listed):
        raise _NotFollowedError("not every case has a whole number there")
    numbers = sorted({fold for _, fold in listed})
    if len(numbers) < FEWEST_FOLDS:
        raise _NotFollowedError(f"it defines fewer than {FEWEST_FOLDS} folds")
    return tuple(frozenset(name for name, fold in listed if fold == number) for number in numbers)


def _folds_of_file(path: Path, cases: Sequence[str]) -> tuple[frozenset[str], ...]:
    known, folds = {composed(name): name for name in cases}, []
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _NotFollowedError("it cannot be read as JSON") from error
    if not isinstance(content, list) or len(content) < FEWEST_FOLDS:
        raise _NotFollowedError(f"it is not a list of at least {FEWEST_FOLDS} folds")
    for number, fold in enumerate(content):
        parts = [fold.get(key) for key in ("train", "val")] if isinstance(fold, dict) else []
        if not parts or not all(isinstance(part, list) and part for part in parts):
            raise _NotFollowedError(f'fold {number} does not have the lists "train" and "val"')
        counts = Counter(composed(str(name)) for part in parts for name in part)
        wrong = {
            "names {}, which is not a case": sorted(counts.keys() - known.keys()),
            "does not name {}": sorted(known.keys() - counts.keys()),
            "names {} twice": sorted(name for name, count in counts.items() if count > 1),
        }
        for sentence, names in wrong.items():
            if names:
                raise _NotFollowedError(f"fold {number} {sentence.format(shortened(names[0]))}")
        folds.append(frozenset(known[composed(str(name))] for name in parts[1]))
    return tuple(folds)
