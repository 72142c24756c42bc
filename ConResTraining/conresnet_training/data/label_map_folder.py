"""Folders of label maps without images, described by ``label_maps.json``; training images are made from them.

::

    {"name": "Brain structures", "licence": "Apache-2.0", "channel": "MR",
     "label_maps": "label_maps/*.nii.gz",
     "segments": {"Left thalamus": [10], "Right thalamus": [49], "Left cerebral white matter": [2, 25]},
     "surroundings": [502, 506],
     "inside": [24],
     "alike": [[10, 49]],
     "contrasts": {"T1": {"10": [0.7, 0.04], "2": [0.8, 0.04]}},
     "images": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}]}

Only ``label_maps`` and ``segments`` are required. A segment's first value is its label in the result.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.images.grid import Volume
from conresnet.messages import printable
from conresnet_training.data.data_set import Case, DataSet, case_name, find_file, folder_name, sorted_cases
from conresnet_training.data.description import read_json_object, shortened

LABEL_MAPS_FILE = "label_maps.json"
MOST_VALUES = 255
LARGEST_VALUE = 2**31 - 1
OVERSAMPLING = 2
"""Voxels of a prepared label map per voxel of the model, along each axis."""
_KEYS = {
    "name", "licence", "license", "channel", "label_maps", "segments", "surroundings", "inside", "alike", "contrasts",
    "images",
}  # fmt: skip


@dataclass(frozen=True)
class Tissues:
    """The values in label maps, and what determines the intensities that are drawn for them.

    Prepared label maps contain places in ``values``, counted from 1, so that files may have values above 255.

    Args:
        values: all values other than 0 that may occur, ascending.
        groups: for each of ``values`` a number; values of one group have the same intensity.
        surroundings: values around the organ, which are left out of some images, as by skull stripping.
        contrasts: known contrasts by name: mean and standard deviation per value, on a scale from 0 to 1.
    """

    values: tuple[int, ...]
    groups: tuple[int, ...]
    surroundings: frozenset[int]
    contrasts: dict[str, dict[int, tuple[float, float]]]

    def places(self, values: Iterable[int]) -> list[int]:
        """The places of those values that may occur."""
        return [self.values.index(value) + 1 for value in values if value in self.values]

    def as_places(self, label: Volume) -> Volume:
        """A label map of places, uint8. Raises UserError ``unexpected-value``."""
        known = np.array([0, *self.values])
        places = np.searchsorted(known, label.array).clip(0, len(known) - 1).astype(np.uint8)
        strange = known[places] != label.array
        if strange.any():
            value = label.array[strange][0]
            raise UserError("unexpected-value", path=label.name, value=float(value))
        return Volume(places, label.grid, label.name)

    def as_values(self, label: Volume) -> Volume:
        """A label map of values, uint8, from one of places; values above 255 become 0."""
        values = np.array([0, *(value if value <= MOST_VALUES else 0 for value in self.values)], np.uint8)
        return Volume(values[label.array], label.grid, label.name)


def read_label_map_folder(folder: Path) -> DataSet:
    """The data set of a folder with ``label_maps.json``. A case without images is a label map.

    Raises:
        UserError: one of ``label-maps-...`` or ``data-set-label-repeated`` for what is missing or wrong in the
            description, those of ``read_json_object``, ``no-cases`` or ``case-name-repeated``.
    """
    path = folder / LABEL_MAPS_FILE
    content = read_json_object(path)
    for key in content.keys() - _KEYS:
        raise _error(path, "label-maps-key-unknown", key=shortened(key), known=", ".join(sorted(_KEYS)))
    segments = _segments(path, content.get("segments"))
    return DataSet(
        printable(str(content.get("name") or folder_name(folder))),
        (printable(str(content.get("channel") or "MR")),),
        {values[0]: name for name, values in segments.items()},
        str(content.get("licence") or content.get("license") or ""),
        sorted_cases(_cases(path, content), folder),
        "label_maps",
        values_of_labels=segments,
        tissues=_tissues(path, content, segments),
    )


def _segments(path: Path, found: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(found, Mapping) or not found:
        raise _error(path, "label-maps-no-segments")
    segments: dict[str, tuple[int, ...]] = {}
    for key, values in found.items():
        name = shortened(printable(key))
        if name in segments:
            raise _error(path, "data-set-label-repeated", label=name)
        segments[name] = _values(path, values, f"segments.{name}")
    seen: set[int] = set()
    for name, values in segments.items():
        if not values or not all(1 <= value <= MOST_VALUES for value in values):
            raise _error(path, "label-maps-segment-range", segment=name, most=MOST_VALUES)
        if seen & set(values):
            raise _error(path, "label-maps-value-shared", segment=name, value=min(seen & set(values)))
        seen |= set(values)
    return segments


def _tissues(path: Path, content: Mapping[str, Any], segments: Mapping[str, tuple[int, ...]]) -> Tissues:
    surroundings = _values(path, content.get("surroundings", []), "surroundings")
    inside = _values(path, content.get("inside", []), "inside")
    own = [value for values in segments.values() for value in values]
    values = tuple(sorted({*own, *surroundings, *inside}))
    if len(values) > MOST_VALUES:
        raise _error(path, "label-maps-too-many-values", count=len(values), most=MOST_VALUES)
    groups = {value: value for value in values}
    for number, alike in enumerate(_list(path, content, "alike")):
        alike = _values(path, alike, f"alike[{number}]")
        for value in alike:
            if value not in groups:
                raise _error(path, "label-maps-alike-unknown", value=value)
            groups[value] = min(alike)
    contrasts = content.get("contrasts", {})
    try:
        known = {
            printable(name): {int(value): (float(mean), float(deviation)) for value, (mean, deviation) in of.items()}
            for name, of in contrasts.items()
        }
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise _error(path, "label-maps-contrasts") from error
    numbers = [number for of in known.values() for pair in of.values() for number in pair]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise _error(path, "label-maps-contrasts")
    return Tissues(values, tuple(groups[value] for value in values), frozenset(surroundings), known)


def _values(path: Path, found: Any, key: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(value) is int and 0 < value <= LARGEST_VALUE for value in found):
        raise _error(path, "label-maps-no-values", key=key)
    return tuple(found)


def _list(path: Path, content: Mapping[str, Any], key: str) -> list:
    found = content.get(key, [])
    if not isinstance(found, list):
        raise _error(path, "label-maps-no-list", key=key)
    return found


def _cases(path: Path, content: Mapping[str, Any]) -> Iterator[Case]:
    folder, patterns = path.parent, content.get("label_maps")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise _error(path, "label-maps-no-pattern")
    for pattern in patterns:
        try:
            # Windows separates folders by backslashes.
            files = sorted(folder.glob(pattern)) or sorted(folder.glob(pattern.replace("\\", "/")))
        except (ValueError, NotImplementedError) as error:
            raise _error(path, "label-maps-pattern-absolute", pattern=pattern) from error
        if not files:
            raise _error(path, "label-maps-no-match", pattern=pattern)
        yield from (Case(case_name(file), (), file) for file in files)
    for entry in _list(path, content, "images"):
        files = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else [None]
        if not all(isinstance(file, str) and file for file in files):
            raise _error(path, "label-maps-image-entry", entry=shortened(json.dumps(entry)))
        image, label = (find_file(folder, file) for file in files)
        yield Case(case_name(image), (image,), label)


def _error(path: Path, code: str, **values: object) -> UserError:
    return UserError(code, path=str(path), **values)
