"""``dataset.json``, as the Medical Segmentation Decathlon and both versions of nnU-Net write it.

``splits_final.json``, nnU-Net's file of folds: a list of {"train": [case, ...], "val": [case, ...]}, one a fold.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conresnet.errors import UserError
from conresnet_training.data.data_set import Case, DataSet, folder_name, painting, sorted_cases

FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class Description:
    """What a ``dataset.json`` says of the data set as a whole; see ``DataSet``. ``content`` is the whole of it."""

    path: Path
    content: dict[str, Any]
    name: str
    licence: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    regions: dict[str, tuple[int, ...]]
    region_labels: dict[str, int]

    def data_set(self, layout: str, cases: Iterable[Case]) -> DataSet:
        """The data set of these cases. Raises UserError as ``sorted_cases``."""
        return DataSet(
            self.name,
            self.channels,
            self.labels,
            self.licence,
            sorted_cases(cases, self.path.parent),
            layout,
            self.regions,
            self.region_labels,
        )

    def invalid(self, reason: str) -> UserError:
        """The sentence for something in the file that cannot be used."""
        return _invalid(self.path, reason)


def read_description(path: Path) -> Description:
    """Read a ``dataset.json``: ``modality`` or ``channel_names``, and ``labels`` in either direction.

    Raises:
        UserError: ``data-set-invalid``, with what is missing or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _invalid(path, f"it cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise _invalid(path, "it does not hold a JSON object")
    classes = _classes(path, content.get("labels"))
    regions = _regions(classes)
    labels = _labels(path, classes, regions)
    return Description(
        path,
        content,
        _text(content, "name") or folder_name(path.parent),
        _text(content, "licence") or _text(content, "license"),
        _channels(path, content),
        labels,
        regions,
        _region_labels(path, content, regions),
    )


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    found = content.get("channel_names", content.get("modality"))
    if not isinstance(found, Mapping) or not found or not all(_is_number(key) for key in found):
        raise _invalid(path, 'it needs "modality" or "channel_names", such as {"0": "T1"}')
    names = [str(found[key]).strip() or f"channel {key}" for key in sorted(found, key=int)]
    # Two channels may both be called MRI.
    counts, seen = Counter(names), Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} {seen[name]}" if counts[name] > 1 else name)
    return tuple(unique)


def _classes(path: Path, found: Any) -> dict[str, tuple[int, ...]]:
    """Name to values, of {"1": "tumor"} (Decathlon, nnU-Net 1) and {"tumor": 1, "whole": [1, 2]} (nnU-Net 2)."""
    if not isinstance(found, Mapping) or not found:
        raise _invalid(path, 'it needs "labels", such as {"0": "background", "1": "tumor"}')
    classes: dict[str, tuple[int, ...]] = {}
    for key, value in found.items():
        if _is_number(key) and isinstance(value, str):
            name, values = value, (int(key),)
        elif isinstance(value, list) and value and all(type(one) is int for one in value):
            name, values = key, tuple(value)
        elif type(value) is int:
            name, values = key, (value,)
        else:
            raise _invalid(path, f'the label "{key}": {json.dumps(value)} is not a name with its value')
        if values == (0,):
            continue
        if name == "ignore":
            raise _invalid(path, 'it has the label "ignore", which cannot be trained with; relabel those voxels')
        if not all(0 < one < 256 for one in values):
            raise _invalid(path, f'the label "{name}" has a value outside of 1 to 255')
        if name.casefold() in (other.casefold() for other in classes):
            raise _invalid(path, f'two labels are named "{name}"')
        classes[name] = values
    if not classes:
        raise _invalid(path, "it names no labels beside the background")
    return classes


def _regions(classes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return dict(classes) if any(len(values) > 1 for values in classes.values()) else {}


def _labels(path: Path, classes: Mapping[str, tuple[int, ...]], regions: Mapping) -> dict[int, str]:
    names = {values[0]: name for name, values in classes.items() if len(values) == 1}
    if not regions:
        if len(names) < len(classes):
            raise _invalid(path, "two labels have the same value")
        return dict(sorted(names.items()))
    values = sorted({value for own in classes.values() for value in own})
    return {value: names.get(value, f"label {value}") for value in values}


def _region_labels(path: Path, content: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    order = content.get("regions_class_order")
    if not regions or order is None:
        return painting(regions)
    usable = isinstance(order, list) and all(type(value) is int and 0 < value < 256 for value in order)
    if not usable or len(set(order)) != len(regions) or len(order) != len(regions):
        raise _invalid(path, '"regions_class_order" must have a value of its own for each region')
    return dict(zip(regions, order, strict=True))


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value.strip() if isinstance(value, str) else ""


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _invalid(path: Path, reason: str) -> UserError:
    return UserError(
        "data-set-invalid", f"{path} is not a data set description that can be used: {reason}.", path=str(path)
    )


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
