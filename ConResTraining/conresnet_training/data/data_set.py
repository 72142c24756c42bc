"""A data set in any layout: a list of cases, each with the images of its channels and a label map."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from conresnet.errors import UserError

if TYPE_CHECKING:
    from conresnet_training.data.label_maps import Tissues

# BraTS-GLI-00005-100: since 2023 the patient's number comes before that of the time point.
_BRATS_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+")

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One labeled subject: a name, the image files of its channels (or one 4-D file of all), and its label map.

    Without images, it is a label map from which images are synthesized.

    The files need not exist: ``check`` reports what is missing, and training refuses it.
    """

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def patient(self) -> str:
        """The patient's name, shared by all time points where the case's name shows it."""
        match = _BRATS_TIME_POINT.fullmatch(self.name)
        return match[1] if match else self.name

    @property
    def missing(self) -> tuple[Path, ...]:
        """Those of its files that do not exist."""
        return tuple(path for path in (*self.images, self.label) if not os.path.exists(path))


@dataclass(frozen=True)
class DataSet:
    """Labeled cases, sorted by name, so that folds do not depend on the order of files.

    Args:
        channels: their names, in the order of a case's images.
        labels: name of each label value (1 to 255).
        layout: "decathlon", "nnunet", "brats" or "label_maps".
        regions: label values that make up each region; empty where labels exclude each other.
        region_labels: the value each region is painted with in a single label map, first painted first.
        held_out: names of the cases that each fold holds out, where the data set defines folds; else empty.
        folds_from: what defines these folds: the name of a file, or of a field; empty without ``held_out``.
        unused_splits: sentence that tells why folds that the data set defines are not used; else empty.
        values_of_labels: for the name of each label with several values, all of them.
        tissues: what the label maps of cases without images contain; None if every case has images.
        announced: how many cases the description announces (nnU-Net's numTraining); 0 where it does not.
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
    values_of_labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tissues: "Tissues | None" = None
    announced: int = 0

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
        """What is odd about the data set as a whole, as sentences by code."""
        found = {"splits-not-followed": self.unused_splits}
        if self.announced > len(self.cases):
            found["cases-missing"] = (
                f"only {len(self.cases)} of the {self.announced} cases that dataset.json announces (numTraining) are "
                "here; the copy may be incomplete"
            )
        return {code: sentence for code, sentence in found.items() if sentence}

    def check_size(self, folder: Path) -> None:
        """Refuse a set that cannot be split. Raises UserError ``one-case`` or ``one-patient``."""
        if len(self.cases) < 2:
            raise UserError("one-case", path=str(folder))
        if len(self.patients) < 2 and not self.held_out:
            raise UserError("one-patient", path=str(folder))

    def spread(self, most: int) -> list[int]:
        """The places of at most ``most`` cases, evenly spread over the data set."""
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
    """The file's name without the ending of its kind."""
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
    """What a data set is called after its folder; the root of a drive has no name."""
    return folder.resolve().name or "data set"


def painting(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value each region is painted with, first painted first: larger regions below those they contain.

    A region's value is the smallest of its own that no later region has; if there is none, one that no region has.
    """
    order = sorted(regions, key=lambda name: -len(regions[name]))
    values: dict[str, int] = {}
    spare = iter(value for value in range(1, 256) if all(value not in own for own in regions.values()))
    for place, name in enumerate(order):
        later = {value for other in order[place + 1 :] for value in regions[other]}
        left = [value for value in sorted(regions[name]) if value not in later and value not in values.values()]
        values[name] = left[0] if left else next(spare)
    return values
