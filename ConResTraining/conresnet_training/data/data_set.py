"""What every layout of a data set is read into: a list of cases, each with its channels' images and a label map."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conresnet.errors import UserError

if TYPE_CHECKING:
    from conresnet_training.data.label_map_folder import Tissues

# As in BraTS-GLI-00005-100: since 2023 the patient's number, then that of the time point.
_BRATS_TIME_POINT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d+")

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One labelled subject: a name, the image files of its channels (or one 4-D file of all), and its label map.

    Without images it is a label map from which they are synthesized.

    The files need not exist: ``check`` reports what is missing, and training refuses it.
    """

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def patient(self) -> str:
        """Whose case it is: one name for all time points of a patient, where the case's own tells."""
        match = _BRATS_TIME_POINT.fullmatch(self.name)
        return match[1] if match else self.name

    @property
    def missing(self) -> tuple[Path, ...]:
        """Those of its files that do not exist."""
        return tuple(path for path in (*self.images, self.label) if not path.exists())


@dataclass(frozen=True)
class DataSet:
    """Labelled cases, sorted by name, so that folds do not depend on the order of files.

    Args:
        channels: their names, in the order of a case's images.
        labels: what each label value (1 to 255) means.
        layout: "decathlon", "nnunet", "brats" or "label_maps".
        regions: for each region the label values that make it up; empty where labels exclude each other.
        region_labels: the value each region is painted with where one label map is wanted, first painted first.
        held_out: the cases' names that each fold holds out, where a file beside the data gives the folds; else empty.
        unused_splits: why such a file is there but not followed; else empty.
        values_of_labels: for each label's name all values that belong to it, where a label has more than one.
        tissues: what is in the label maps of cases without images; None where every case has images.
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
    unused_splits: str = ""
    values_of_labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tissues: "Tissues | None" = None

    @property
    def patients(self) -> list[str]:
        """Whose cases they are, each once, in the order of the cases."""
        return list(dict.fromkeys(case.patient for case in self.cases))

    @property
    def known_values(self) -> set[int]:
        """The values that label maps of cases with images may have, apart from 0."""
        others = self.tissues.values if self.tissues else ()
        return {*self.labels, *others}.union(*self.regions.values(), *self.values_of_labels.values())

    def too_few(self, folder: Path) -> str | None:
        """The sentence that refuses the set in ``folder`` where no case can be held out beside others to train on."""
        if len(self.cases) < 2:
            return f"{folder} has one case, which cannot be both trained on and held out; add further cases."
        if len(self.patients) < 2 and not self.held_out:
            return (
                f"{folder} has cases of one patient, who cannot be both trained on and held out; add those of others."
            )
        return None

    def spread(self, most: int) -> list[int]:
        """The places of so many cases at the most, evenly spread over the data set."""
        count = len(self.cases)
        return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def sorted_cases(cases: Iterable[Case], source: Path) -> tuple[Case, ...]:
    """The cases by name.

    Raises:
        UserError: ``no-cases``, or ``case-repeated`` where two have one name.
    """
    found: dict[str, Case] = {}
    for case in cases:
        other = found.setdefault(case.name, case)
        if other is not case:
            raise UserError(
                "case-repeated",
                f'{source} has two cases named "{case.name}" ({other.images[0]} and {case.images[0]}); rename one.',
                case=case.name,
                path=str(source),
            )
    if not found:
        raise UserError("no-cases", f"{source} has no labelled cases to train on.", path=str(source))
    return tuple(found[name] for name in sorted(found))


def case_name(image: Path) -> str:
    """The file's name without the ending of its kind."""
    ending = next((ending for ending in ENDINGS if image.name.lower().endswith(ending)), image.suffix)
    return image.name[: len(image.name) - len(ending)]


def folder_name(folder: Path) -> str:
    """What a data set is called after its folder; the root of a drive has no name."""
    return folder.resolve().name or "data set"


def painting(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value each region is painted with, first painted first: larger regions below those they contain.

    A region's value is the smallest of its own that no later one has; where there is none, one that none has.
    """
    order = sorted(regions, key=lambda name: -len(regions[name]))
    values: dict[str, int] = {}
    spare = iter(value for value in range(1, 256) if all(value not in own for own in regions.values()))
    for place, name in enumerate(order):
        later = {value for other in order[place + 1 :] for value in regions[other]}
        left = [value for value in sorted(regions[name]) if value not in later and value not in values.values()]
        values[name] = left[0] if left else next(spare)
    return values
