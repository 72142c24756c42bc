"""Reads data sets in the folder layouts of the Medical Segmentation Decathlon, nnU-Net and BraTS, without conversion.

- Decathlon: ``dataset.json`` lists the images and their labels.
- nnU-Net (raw data): ``imagesTr/CASE_0000.nii.gz``, one file per channel, and ``labelsTr/CASE.nii.gz``.
- BraTS: one folder per case with ``CASE_t1.nii.gz`` and so on; no description.
- Label maps without images, from which training images are made, described by ``label_maps.json``::

    {"name": "Brain structures", "license": "Apache-2.0", "channel": "MR",
     "label_maps": "label_maps/*.nii.gz",
     "segments": {"Left thalamus": [10], "Right thalamus": [49], "Left cerebral white matter": [2, 25]},
     "surroundings": [502, 506], "inside": [24],
     "alike": [[10, 49]],
     "contrasts": {"T1": {"10": [0.7, 0.04], "2": [0.8, 0.04]}},
     "images": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}]}

  Only ``label_maps`` and ``segments`` are required. A segment's first value is its label in the result.

A data set may define its folds: by ``splits_final.json``, nnU-Net's list of {"train": [case, ...], "val": [case, ...]},
or by a "fold" at every entry of the Decathlon's list, as MONAI's data lists have it.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conresnet.errors import UserError
from conresnet.messages import printable
from conresnet_training.data import (
    FEWEST_FOLDS,
    FILE_NAME,
    MOST_NAMED,
    Case,
    DataSet,
    Description,
    case_name,
    composed,
    find_file,
    folder_name,
    painting,
    read_description,
    read_json,
    read_json_object,
    sorted_cases,
)
from conresnet_training.data.label_maps import MOST_VALUES, Tissues
from conresnet_training.reporting import listed, shortened

# nnU-Net takes their spacing from a CASE.json next to them (Tiff3DIO); without it, voxels would be cubes of 1 mm.
WITHOUT_SPACING = (".tif", ".tiff")


def read_data_set(folder: Path) -> DataSet:
    """Read a data set in any of these layouts. A file that is missing from a case does not fail the reading.

    Raises:
        UserError: ``folder-not-found``, ``data-set-not-found``, ``data-set-mixed``, ``labels-unclear``, ``no-cases``,
            ``case-name-repeated``, ``case-listed-twice``, ``folder-unreadable``, or those of ``read_description``.
    """
    if not os.path.isdir(folder):
        raise UserError("folder-not-found", path=str(folder))
    try:
        return _read(folder)
    except OSError as error:
        raise UserError("folder-unreadable", path=str(folder), reason=error.strerror or str(error)) from error


def _read(folder: Path) -> DataSet:
    if (folder / FILE_NAME).is_file():
        description = read_description(folder / FILE_NAME)
        if is_nnunet(description):
            data_set = description.data_set("nnunet", _nnunet_cases(description))
            return _with_folds(replace(data_set, unused_files=_further_channels(description)), folder)
        entries = list(_decathlon_cases(description))
        data_set = description.data_set("decathlon", (case for case, _ in entries))
        return _with_folds(data_set, folder, [(case.name, fold) for case, fold in entries])
    if (folder / LABEL_MAPS_FILE).is_file():
        return _with_folds(read_label_map_folder(folder), folder)
    if (data_set := _read_brats(folder)) is None:
        raise UserError("data-set-not-found", path=str(folder))
    return _with_folds(data_set, folder)


def _decathlon_cases(description: Description) -> Iterator[tuple[Case, object]]:
    """Each case of the list "training", and its "fold"; several channels are in one 4D file per case."""
    entries = description.content.get("training")
    if not isinstance(entries, list):
        raise UserError("data-set-no-list", path=str(description.path))
    for entry in entries:
        if (case := _case_of_entry(description.path.parent, entry)) is None:
            raise UserError("data-set-entry", path=str(description.path), entry=str(entry)[:200])
        # macOS leaves such files next to others, and some lists were made from a listing of the folder.
        if not case.images[0].name.startswith("._"):
            yield case, entry.get("fold")


def _case_of_entry(folder: Path, entry: Any) -> Case | None:
    """The case of {"image": file, "label": file} in a description; None for anything else."""
    files = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else [None]
    if not all(isinstance(file, str) and file for file in files):
        return None
    image, label = (find_file(folder, file) for file in files)
    return Case(case_name(image), (image,), label)


def is_nnunet(description: Description) -> bool:
    """Whether a folder with a ``dataset.json`` is in nnU-Net's layout rather than the Decathlon's.

    Version 2 states how its files end. Version 1 lists ``CASE.nii.gz`` as the Decathlon does, but none of these files
    exist: the real ones carry the channel's number.
    """
    content, folder = description.content, description.path.parent
    entries = content.get("training")
    if "file_ending" in content or isinstance(content.get("dataset"), dict):
        return True
    files = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if any(isinstance(file, str) and os.path.exists(find_file(folder, file)) for file in files):
        return False
    return next(_channel_files(folder, _ending(description)), None) is not None


def _nnunet_cases(description: Description) -> Iterator[Case]:
    """The cases that ``dataset.json`` lists under "dataset", else all with any file in ``imagesTr`` or ``labelsTr``.

    So a case is known even if one of its files is missing.
    """
    folder, ending = description.path.parent, _ending(description)
    cases = description.content.get("dataset")
    if isinstance(cases, dict):
        yield from (_listed_case(description, name, files) for name, files in cases.items())
        return
    names = [name for name, _ in _channel_files(folder, ending)]
    names += [file.name.removesuffix(ending) for file in _files(folder / "labelsTr", ending)]
    entries = description.content.get("training")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("label"), str):
            names.append(case_name(find_file(folder, entry["label"])))
    channels = range(len(description.without_cases.channels))
    # The name of a label map may compose its letters differently from the name of the image.
    for name in {composed(name): name for name in reversed(names)}.values():
        images = tuple(find_file(folder, f"imagesTr/{name}_{channel:04d}{ending}") for channel in channels)
        yield Case(name, images, find_file(folder, f"labelsTr/{name}{ending}"))


def _further_channels(description: Description) -> str:
    """A sentence about images of channels that ``dataset.json`` does not name; empty if there are none."""
    channels, ending = len(description.without_cases.channels), _ending(description)
    files = sorted(file.name for _, file in _channel_files(description.path.parent, ending))
    unused = [name for name in files if int(name.removesuffix(ending)[-4:]) >= channels]
    sentence = f"imagesTr has images of more channels than the {channels} of {FILE_NAME}, which are not used: "
    return sentence + listed(unused, MOST_NAMED) if unused else ""


def _listed_case(description: Description, name: str, files: object) -> Case:
    images, label = (files.get(key) for key in ("images", "label")) if isinstance(files, dict) else (None, None)
    complete = isinstance(images, list) and len(images) == len(description.without_cases.channels)
    if not complete or not all(isinstance(file, str) and file for file in (*images, label)):
        raise UserError(
            "data-set-case-files", path=str(description.path), case=name, count=len(description.without_cases.channels)
        )
    folder = description.path.parent
    return Case(name, tuple(find_file(folder, file) for file in images), find_file(folder, label))


def _channel_files(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """(case, file) of the images whose names end in a channel's number."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    for file in _files(folder / "imagesTr", ending):
        if match := pattern.fullmatch(file.name):
            yield match[1], file


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if file.name.endswith(ending) and not file.name.startswith(".")]


def _ending(description: Description) -> str:
    ending = description.content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError("data-set-ending", path=str(description.path))
    if ending.lower() in WITHOUT_SPACING:
        raise UserError("data-set-without-spacing", path=str(description.path), ending=ending)
    return ending


CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
BRATS_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Naming:
    """How files are named: what separates the case from the channel, the channels' names, and the value of enhancing
    tumor.
    """

    divider: str
    channels: tuple[str, str, str, str]
    enhancing: int

    def files(self, folder: Path) -> list[Path]:
        """The channels of the case in ``folder``, then its label map."""
        return [self._file(folder, channel) for channel in (*self.channels, "seg")]

    def _file(self, folder: Path, channel: str) -> Path:
        paths = [folder / f"{folder.name}{self.divider}{channel}{ending}" for ending in BRATS_ENDINGS]
        return next((path for path in paths if path.exists()), paths[0])


# Until 2021 enhancing tumor was 4 and 3 was unused; since 2023 it is 3.
SINCE_2023 = Naming("-", ("t1n", "t1c", "t2w", "t2f"), 3)
NAMINGS = (Naming("_", ("t1", "t1ce", "t2", "flair"), 4), SINCE_2023)
# Gliomas after treatment, new in 2024: time points are counted from 100, and 4 is the resection cavity.
_AFTER_TREATMENT = re.compile(r"BraTS-GLI-\d+-[1-9]\d\d", re.IGNORECASE)
CAVITY = 4
# Children: 1, 2 and 3 meant the same as in adults in 2023, and mean enhancing, non-enhancing and cyst since 2024.
_OF_CHILDREN = re.compile(r"BraTS-PED", re.IGNORECASE)


def _read_brats(folder: Path) -> DataSet | None:
    """The data set of the case folders in ``folder``, or one level deeper (HGG, LGG); None if there are none.

    Labels overlap as regions: ET (enhancing tumor), TC (tumor core) and WT (whole tumor); in treated gliomas also RC
    (resection cavity).
    """
    folders = list(_case_folders(folder))
    found = [(path, naming) for path, naming in folders if naming]
    if not found:
        return None
    namings = {naming for _, naming in found}
    if len(namings) > 1:
        raise UserError("data-set-mixed", path=str(folder))
    (naming,) = namings
    enhancing = naming.enhancing
    labels = {1: "necrosis", 2: "edema", enhancing: "enhancing"}
    regions = {"ET": (enhancing,), "TC": (1, enhancing), "WT": (1, 2, enhancing)}
    if naming is SINCE_2023:
        names = [path.name for path, _ in found]
        for name in filter(_OF_CHILDREN.match, names):
            raise UserError("labels-unclear", path=str(folder), case=name)
        if any(map(_AFTER_TREATMENT.fullmatch, names)):
            labels[CAVITY] = "resection cavity"
            regions["RC"] = (CAVITY,)
    cases = (Case(path.name, tuple(naming.files(path)[:-1]), naming.files(path)[-1]) for path, naming in found)
    data_set = DataSet(
        folder_name(folder), CHANNELS, labels, "", sorted_cases(cases, folder), "brats", regions, painting(regions)
    )
    unused = [path.name for path, named in folders if not named and any(path.glob("*.nii*"))]
    sentence = "folders whose images are not named after them are not used: "
    return replace(data_set, unused_files=sentence + listed(unused, MOST_NAMED)) if unused else data_set


def _case_folders(folder: Path) -> Iterator[tuple[Path, Naming | None]]:
    """The folders of cases, and those without a naming; they are one level deeper where a folder is not a case."""
    for path in _folders(folder):
        naming = _naming(path)
        yield path, naming
        if naming is None:
            yield from ((deeper, _naming(deeper)) for deeper in _folders(path))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _naming(folder: Path) -> Naming | None:
    """How the files of a case folder are named; None if it is not one."""
    return next((naming for naming in NAMINGS if any(path.exists() for path in naming.files(folder))), None)


LABEL_MAPS_FILE = "label_maps.json"
LARGEST_VALUE = 2**31 - 1
_KEYS = {
    "name", "licence", "license", "channel", "label_maps", "segments", "surroundings", "inside", "alike", "contrasts",
    "images",
}  # fmt: skip


def read_label_map_folder(folder: Path) -> DataSet:
    """The data set of a folder with ``label_maps.json``. A case without images is a label map.

    Raises:
        UserError: one of ``label-maps-...`` or ``data-set-label-repeated`` for what is missing or wrong in the
            description, those of ``read_json_object``, ``no-cases`` or ``case-name-repeated``.
    """
    path = folder / LABEL_MAPS_FILE
    content = read_json_object(path)
    for key in content.keys() - _KEYS:
        raise UserError("label-maps-key-unknown", path=str(path), key=shortened(key), known=", ".join(sorted(_KEYS)))
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
        raise UserError("label-maps-no-segments", path=str(path))
    segments: dict[str, tuple[int, ...]] = {}
    for key, values in found.items():
        name = shortened(printable(key))
        if name.casefold() in map(str.casefold, segments):
            raise UserError("data-set-label-repeated", path=str(path), label=name)
        segments[name] = _values(path, values, f"segments.{name}")
    seen: set[int] = set()
    for name, values in segments.items():
        if not values or not all(1 <= value <= MOST_VALUES for value in values):
            raise UserError("label-maps-segment-range", path=str(path), segment=name, most=MOST_VALUES)
        if seen & set(values):
            raise UserError("label-maps-value-shared", path=str(path), segment=name, value=min(seen & set(values)))
        seen |= set(values)
    return segments


def _tissues(path: Path, content: Mapping[str, Any], segments: Mapping[str, tuple[int, ...]]) -> Tissues:
    surroundings = _values(path, content.get("surroundings", []), "surroundings")
    inside = _values(path, content.get("inside", []), "inside")
    own = [value for values in segments.values() for value in values]
    values = tuple(sorted({*own, *surroundings, *inside}))
    if len(values) > MOST_VALUES:
        raise UserError("label-maps-too-many-values", path=str(path), count=len(values), most=MOST_VALUES)
    groups = {value: value for value in values}
    for number, alike in enumerate(_list(path, content, "alike")):
        alike = _values(path, alike, f"alike[{number}]")
        for value in alike:
            if value not in groups:
                raise UserError("label-maps-alike-unknown", path=str(path), value=value)
            groups[value] = min(alike)
    contrasts = content.get("contrasts", {})
    try:
        known = {
            printable(name): {int(value): (float(mean), float(deviation)) for value, (mean, deviation) in of.items()}
            for name, of in contrasts.items()
        }
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise UserError("label-maps-contrasts", path=str(path)) from error
    numbers = [number for of in known.values() for pair in of.values() for number in pair]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise UserError("label-maps-contrasts", path=str(path))
    return Tissues(values, tuple(groups[value] for value in values), frozenset(surroundings), known)


def _values(path: Path, found: Any, key: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(value) is int and 0 < value <= LARGEST_VALUE for value in found):
        raise UserError("label-maps-no-values", path=str(path), key=key)
    return tuple(found)


def _list(path: Path, content: Mapping[str, Any], key: str) -> list:
    found = content.get(key, [])
    if not isinstance(found, list):
        raise UserError("label-maps-no-list", path=str(path), key=key)
    return found


def _cases(path: Path, content: Mapping[str, Any]) -> Iterator[Case]:
    folder, patterns = path.parent, content.get("label_maps")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise UserError("label-maps-no-pattern", path=str(path))
    for pattern in patterns:
        try:
            # Windows separates folders by backslashes.
            files = sorted(folder.glob(pattern)) or sorted(folder.glob(pattern.replace("\\", "/")))
        except (ValueError, NotImplementedError) as error:
            raise UserError("label-maps-pattern-absolute", path=str(path), pattern=pattern) from error
        if not files:
            raise UserError("label-maps-no-match", path=str(path), pattern=pattern)
        yield from (Case(case_name(file), (), file) for file in files)
    for entry in _list(path, content, "images"):
        if (case := _case_of_entry(folder, entry)) is None:
            raise UserError("label-maps-image-entry", path=str(path), entry=shortened(json.dumps(entry)))
        yield case


SPLITS_FILE = "splits_final.json"


class _NotFollowedError(Exception):
    """Why folds that are defined are not used."""


def _with_folds(data_set: DataSet, folder: Path, entries: Sequence[tuple[str, object]] = ()) -> DataSet:
    """The data set with the folds that it defines, if each of them names exactly these cases.

    Folds that cannot be used are not an error; the data set keeps the reason.

    Args:
        folder: may contain ``splits_final.json``, which comes first.
        entries: the name of each case in ``dataset.json`` and its "fold", None without one.
    """
    source = SPLITS_FILE
    try:
        if (folder / SPLITS_FILE).is_file():
            held_out = _folds_of_file(folder / SPLITS_FILE, [case.name for case in data_set.cases])
        elif any(fold is not None for _, fold in entries):
            source = f'"fold" in {FILE_NAME}'
            held_out = _folds_of_list(entries)
        else:
            return data_set
    except _NotFollowedError as error:
        return replace(data_set, unused_splits=f"{source} is not used: {error}")
    return replace(data_set, held_out=held_out, folds_from=source)


def _folds_of_list(entries: Sequence[tuple[str, object]]) -> tuple[frozenset[str], ...]:
    if not all(type(fold) is int for _, fold in entries):
        raise _NotFollowedError("not every case has a whole number there")
    numbers = sorted({fold for _, fold in entries})
    if len(numbers) < FEWEST_FOLDS:
        raise _NotFollowedError(f"it defines fewer than {FEWEST_FOLDS} folds")
    return tuple(frozenset(name for name, fold in entries if fold == number) for number in numbers)


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
