"""Data sets in their makers' layouts, read without conversion, and the training samples made from them.

In any layout, a data set is a list of cases, each with the images of its channels and a label map. This file also reads
its description: ``dataset.json`` of the Medical Segmentation Decathlon and of nnU-Net 1 and 2.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.messages import printable
from conresnet_training.data.label_maps import Tissues
from conresnet_training.reporting import listed, shortened

# BraTS-GLI-00005-100: since 2023 the patient's number comes before that of the time point. BIDS: sub-01_ses-2_T1w.
_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+|(sub-[^_]+)_ses-.+", re.IGNORECASE)

# Usual names of the value 0 if it is not a segment.
_BACKGROUND = re.compile(
    r"^\W*$|(\b|_)0$|\b(back\w*|bg|bkg|no|non|none|not|nothing|null|un(label|known|seg|class|assign|annot)\w*|other"
    r"|rest|air|void|empty|clear|ignore\w*|outside|exterior|normal|healthy|zero|hintergrund|fond|fondo|sfondo)(\b|_)"
)

FILE_NAME = "dataset.json"
FEWEST_FOLDS, USUAL_FOLDS = 2, 5
MOST_NAMED = 3
# Longer numbers are not label values, and Python refuses to read some of them.
MOST_DIGITS = 9
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One labeled subject: a name, the image files of its channels (or one 4D file of all), and its label map.

    Without images, it is a label map from which images are synthesized.

    The files need not exist: ``check`` reports what is missing, and training refuses it.
    """

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def patient(self) -> str:
        """The patient's name, shared by all time points where the case's name shows it."""
        match = _TIME_POINT.fullmatch(self.name)
        return match[1] or match[2] if match else self.name

    @property
    def missing(self) -> tuple[Path, ...]:
        """The case's files that do not exist."""
        return tuple(path for path in (*self.images, self.label) if not os.path.exists(path))

    def check_files(self) -> None:
        """Refuse a case with a missing file. Raises UserError ``case-file-missing``."""
        if self.missing:
            raise UserError("case-file-missing", case=self.name, path=str(self.missing[0]))


LAYOUTS = {
    "decathlon": "Medical Segmentation Decathlon",
    "nnunet": "nnU-Net (raw data)",
    "brats": "BraTS",
    "label_maps": "Label maps, from which images are synthesized",
}


@dataclass(frozen=True)
class DataSet:
    """Labeled cases, sorted by name, so that folds do not depend on the order of files.

    Args:
        channels: their names, in the order of a case's images.
        labels: name of each label value (1 to 255).
        layout: a key of ``LAYOUTS``.
        regions: label values that make up each region; empty where labels exclude each other.
        region_labels: the value each region is painted with in a single label map, first painted first.
        held_out: names of the cases that each fold holds out, if the data set defines folds; otherwise empty.
        folds_from: what defines these folds: the name of a file, or of a field; empty without ``held_out``.
        unused_splits: sentence that says why folds that the data set defines are not used; otherwise empty.
        unused_files: sentence about files that look like parts of the data set but are not; empty if there are none.
        values_of_labels: for the name of each label with several values, all of them.
        tissues: what the label maps of cases without images contain; None if every case has images.
        announced: how many cases the description announces (nnU-Net's numTraining); 0 where it does not.
        background: name of the value 0 in the description; empty where it has none.
    """

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    licence: str
    cases: tuple[Case, ...]
    layout: str
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    region_labels: dict[str, int] = field(default_factory=dict)
    held_out: tuple[frozenset[str], ...] = ()
    folds_from: str = ""
    unused_splits: str = ""
    unused_files: str = ""
    values_of_labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tissues: Tissues | None = None
    announced: int = 0
    background: str = ""

    @property
    def patients(self) -> list[str]:
        """The patients, each once, in the order of the cases."""
        return list(dict.fromkeys(case.patient for case in self.cases))

    @property
    def known_values(self) -> set[int]:
        """The values that label maps of cases with images may have, apart from 0."""
        others = self.tissues.values if self.tissues else ()
        return {*self.labels, *others}.union(*self.regions.values(), *self.values_of_labels.values())

    @property
    def warnings(self) -> dict[str, str]:
        """Warnings about the data set as a whole, as messages by code."""
        found = {
            "splits-not-followed": self.unused_splits,
            "splits-divide-patient": self._divided_patient,
            "files-not-used": self.unused_files,
        }
        if self.announced > len(self.cases):
            found["cases-missing"] = (
                f"Only {len(self.cases)} of the {self.announced} cases that dataset.json announces (numTraining) are "
                "here; the copy may be incomplete"
            )
        if not _BACKGROUND.search(self.background.casefold()):
            found["background-named"] = (
                f'The value 0 is named "{self.background}", but 0 is always the background; if this is a segment, give '
                "it another value"
            )
        return {code: sentence for code, sentence in found.items() if sentence}

    @property
    def folds(self) -> int:
        """Default number of folds of a plan."""
        return len(self.held_out) or min(USUAL_FOLDS, len(self.patients))

    @property
    def _divided_patient(self) -> str:
        """Message naming patients that the data set's own folds split; empty if there are none."""
        divided: set[str] = set()
        for names in self.held_out:
            held_out = {case.patient for case in self.cases if case.name in names}
            divided |= held_out & {case.patient for case in self.cases if case.name not in names}
        if not divided:
            return ""
        named = listed(sorted(divided), MOST_NAMED)
        return (
            f"{self.folds_from} trains on one time point and holds out another of {named}, so results would be too "
            "good; keep all time points of a patient together"
        )

    def check_size(self, folder: Path) -> None:
        """Refuse a set that cannot be split. Raises UserError ``one-case`` or ``one-patient``."""
        if len(self.cases) < 2:
            raise UserError("one-case", path=str(folder))
        if len(self.patients) < 2 and not self.held_out:
            raise UserError("one-patient", path=str(folder))

    def spread(self, most: int) -> list[int]:
        """Indices of at most ``most`` cases, evenly spread over the data set."""
        count = len(self.cases)
        return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def sorted_cases(cases: Iterable[Case], source: Path) -> tuple[Case, ...]:
    """The cases by name.

    Raises:
        UserError: ``no-cases``; ``case-listed-twice`` or ``case-name-repeated`` where two have the same name.
    """
    found: dict[str, Case] = {}
    for case in cases:
        other = found.setdefault(case.name, case)
        if other == case and other is not case:
            raise UserError("case-listed-twice", case=case.name, path=str(source))
        if other is not case:
            # A label map without images is a case too.
            files = [str((one.images or (one.label,))[0]) for one in (other, case)]
            raise UserError("case-name-repeated", case=case.name, path=str(source), first=files[0], second=files[1])
    if not found:
        raise UserError("no-cases", path=str(source))
    return tuple(found[name] for name in sorted(found))


def case_name(image: Path) -> str:
    """File name without its extension."""
    ending = next((ending for ending in ENDINGS if image.name.lower().endswith(ending)), image.suffix)
    return image.name[: len(image.name) - len(ending)]


def find_file(folder: Path, name: str) -> Path:
    """The file that a description names, even if another system spelled its path; it need not exist.

    Backslashes separate folders, unless a file has them in its name. An accented letter may be one character in the
    description and two on disk, or the reverse.
    """
    if os.path.exists(path := folder / name):
        return path
    path = folder
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        step = path / part
        if not part.isascii() and not os.path.exists(step) and os.path.isdir(path):
            wanted = composed(part)
            step = next((path / other for other in sorted(os.listdir(path)) if composed(other) == wanted), step)
        path = step
    return path


def composed(name: str) -> str:
    """A name with every accented letter as one character (Unicode NFC), to compare names with."""
    return unicodedata.normalize("NFC", name)


def folder_name(folder: Path) -> str:
    """Name of a data set, taken from its folder; the root of a drive has no name."""
    return folder.resolve().name or "data set"


def painting(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value with which each region is painted, in painting order: larger regions before those that they contain.

    A region's value is the smallest of its values that no later region has, or else one that no region has.
    """
    order = sorted(regions, key=lambda name: -len(regions[name]))
    values: dict[str, int] = {}
    spare = iter(value for value in range(1, 256) if all(value not in own for own in regions.values()))
    for place, name in enumerate(order):
        later = {value for other in order[place + 1 :] for value in regions[other]}
        left = [value for value in sorted(regions[name]) if value not in later and value not in values.values()]
        values[name] = left[0] if left else next(spare)
    return values


@dataclass(frozen=True)
class Description:
    """A ``dataset.json``: its content, and what it says about the data set as a whole, without the cases."""

    path: Path
    content: dict[str, Any]
    without_cases: DataSet

    def data_set(self, layout: str, cases: Iterable[Case]) -> DataSet:
        """The data set of these cases. Raises UserError as ``sorted_cases``."""
        return replace(self.without_cases, layout=layout, cases=sorted_cases(cases, self.path.parent))


def read_description(path: Path) -> Description:
    """Read a ``dataset.json``: ``modality`` or ``channel_names``, and ``labels`` in either direction.

    Raises:
        UserError: ``data-set-unreadable``, ``data-set-not-json`` or one that names what is missing or wrong.
    """
    return description_from(path, read_json_object(path))


def description_from(path: Path, content: dict[str, Any]) -> Description:
    """The description with this content, which need not be in the file yet. Raises as ``read_description``."""
    classes = _classes(path, content.get("labels"))
    regions = dict(classes) if any(len(values) > 1 for values in classes.values()) else {}
    announced = content.get("numTraining")
    without_cases = DataSet(
        name=_text(content, "name") or printable(folder_name(path.parent)),
        licence=_text(content, "licence") or _text(content, "license"),
        channels=_channels(path, content),
        labels=_labels(path, classes, regions),
        cases=(),
        layout="",
        regions=regions,
        region_labels=_region_labels(path, content, regions),
        announced=announced if type(announced) is int else 0,
        background=_background(content["labels"]),
    )
    return Description(path, content, without_cases)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a description.

    Raises:
        UserError: ``data-set-unreadable``, ``-not-json``, ``-key-repeated`` or ``-no-object``.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError("data-set-unreadable", path=str(path), reason=error.strerror or str(error)) from error
    except _RepeatedKeyError as error:
        raise UserError("data-set-key-repeated", path=str(path), key=shortened(str(error))) from error
    except ValueError as error:
        raise UserError("data-set-not-json", path=str(path)) from error
    if not isinstance(content, dict):
        raise UserError("data-set-no-object", path=str(path))
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or an object in it has a key twice, of which the last would silently win.
    """
    content = path.read_bytes()
    try:
        return json.loads(content, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _RepeatedKeyError(ValueError):
    """A key that an object in a JSON file has twice."""


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return found


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    found = content.get("channel_names", content.get("modality"))
    if not isinstance(found, Mapping) or not found or not all(_is_number(key) for key in found):
        raise UserError("data-set-channels", path=str(path))
    names = [printable(str(found[key])).strip() or f"channel {key}" for key in sorted(found, key=int)]
    # Two channels may both be called MRI.
    counts, seen = Counter(names), Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} {seen[name]}" if counts[name] > 1 else name)
    return tuple(unique)


def _classes(path: Path, found: Any) -> dict[str, tuple[int, ...]]:
    """Values by name, from {"1": "tumor"} (Decathlon, nnU-Net 1) and {"tumor": 1, "whole": [1, 2]} (nnU-Net 2)."""
    if not isinstance(found, Mapping) or not found:
        raise UserError("data-set-no-labels", path=str(path))
    classes: dict[str, tuple[int, ...]] = {}
    for key, value in found.items():
        if _is_number(key) and isinstance(value, str):
            name, values = value, (int(key),)
        elif isinstance(value, list) and value and all(type(one) is int for one in value):
            name, values = key, tuple(value)
        elif type(value) is int:
            name, values = key, (value,)
        else:
            raise UserError("data-set-label-invalid", path=str(path), label=shortened(f'"{key}": {json.dumps(value)}'))
        name = shortened(printable(name))
        if values == (0,):
            continue
        if name == "ignore":
            raise UserError("data-set-label-ignore", path=str(path))
        if not all(0 < one < 256 for one in values):
            raise UserError("data-set-label-range", path=str(path), label=name)
        if name.casefold() in (other.casefold() for other in classes):
            raise UserError("data-set-label-repeated", path=str(path), label=name)
        classes[name] = values
    if not classes:
        raise UserError("data-set-only-background", path=str(path))
    return classes


def _background(found: Mapping[str, Any]) -> str:
    """The name of the value 0 among labels in either direction; empty if there is none."""
    names = [value if key == "0" and isinstance(value, str) else key for key, value in found.items()]
    zeros = [key == "0" or (type(value) is int and value == 0) or value == [0] for key, value in found.items()]
    return next((shortened(printable(name)) for name, is_zero in zip(names, zeros, strict=True) if is_zero), "")


def _labels(path: Path, classes: Mapping[str, tuple[int, ...]], regions: Mapping) -> dict[int, str]:
    names = {values[0]: name for name, values in classes.items() if len(values) == 1}
    if not regions:
        if len(names) < len(classes):
            raise UserError("data-set-value-repeated", path=str(path))
        return dict(sorted(names.items()))
    values = sorted({value for own in classes.values() for value in own})
    return {value: names.get(value, f"label {value}") for value in values}


def _region_labels(path: Path, content: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    order = content.get("regions_class_order")
    if not regions or order is None:
        return painting(regions)
    usable = isinstance(order, list) and all(type(value) is int and 0 < value < 256 for value in order)
    if not usable or len(set(order)) != len(regions) or len(order) != len(regions):
        raise UserError("data-set-region-order", path=str(path))
    return dict(zip(regions, order, strict=True))


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return printable(value).strip() if isinstance(value, str) else ""


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) <= MOST_DIGITS
