"""Folders in the form of BraTS: a folder a case with ``CASE_t1.nii.gz`` and so on, and no description."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError
from conresnet_training.data_sets.data_set import Case, DataSet, folder_name, painting, sorted_cases

CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Naming:
    """How files are called: what divides case and word, the channels' words, and the value of enhancing tumor."""

    divider: str
    words: tuple[str, str, str, str]
    enhancing: int

    def files(self, folder: Path) -> list[Path]:
        """Where the channels of the case in ``folder`` lie, then its label map."""
        return [self._file(folder, word) for word in (*self.words, "seg")]

    def _file(self, folder: Path, word: str) -> Path:
        paths = [folder / f"{folder.name}{self.divider}{word}{ending}" for ending in ENDINGS]
        return next((path for path in paths if path.exists()), paths[0])


# Until 2021 enhancing tumor was 4 and no label was 3; since 2023 it is 3.
SINCE_2023 = Naming("-", ("t1n", "t1c", "t2w", "t2f"), 3)
NAMINGS = (Naming("_", ("t1", "t1ce", "t2", "flair"), 4), SINCE_2023)
# Gliomas after treatment, which 2024 brought: time points are counted from 100, and 4 is the cavity of the resection.
_AFTER_TREATMENT = re.compile(r"BraTS-GLI-\d+-[1-9]\d\d", re.IGNORECASE)
CAVITY = 4
# Of children: 1, 2 and 3 were as in adults in 2023, and are enhancing, non-enhancing and cyst since 2024.
_OF_CHILDREN = re.compile(r"BraTS-PED", re.IGNORECASE)


def read_brats(folder: Path) -> DataSet | None:
    """The data set of the case folders in ``folder``, or one deeper (HGG, LGG); None where there are none.

    Labels overlap as regions: ET (enhancing tumor), TC (tumor core) and WT (whole tumor); where gliomas were treated,
    RC (resection cavity) too.

    Raises:
        UserError: ``case-repeated``, ``data-set-mixed`` where cases of two years, which number labels differently, lie
            together, or ``labels-unclear`` where the names of the cases do not tell what the labels mean.
    """
    found = list(_case_folders(folder))
    if not found:
        return None
    namings = {naming for _, naming in found}
    if len(namings) > 1:
        raise UserError(
            "data-set-mixed",
            f"{folder} holds cases named as in BraTS until 2021 (_t1) and since 2023 (-t1n), whose label values "
            "differ; put them into two folders.",
            path=str(folder),
        )
    (naming,) = namings
    enhancing = naming.enhancing
    labels = {1: "necrosis", 2: "edema", enhancing: "enhancing"}
    regions = {"ET": (enhancing,), "TC": (1, enhancing), "WT": (1, 2, enhancing)}
    if naming is SINCE_2023:
        names = [path.name for path, _ in found]
        _refuse_children(folder, names)
        if any(map(_AFTER_TREATMENT.fullmatch, names)):
            labels[CAVITY] = "resection cavity"
            regions["RC"] = (CAVITY,)
    return DataSet(
        folder_name(folder),
        CHANNELS,
        labels,
        "",
        sorted_cases((_case(path, naming) for path, _ in found), folder),
        "brats",
        regions,
        painting(regions),
    )


def _refuse_children(folder: Path, names: list[str]) -> None:
    for name in filter(_OF_CHILDREN.match, names):
        raise UserError(
            "labels-unclear",
            f"{folder} holds {name} of BraTS-PEDs, whose label values changed their meaning in 2024; write "
            "a dataset.json into it that lists the files of each case and what its values mean, as for nnU-Net.",
            path=str(folder),
            case=name,
        )


def _case(folder: Path, naming: Naming) -> Case:
    *images, label = naming.files(folder)
    return Case(folder.name, tuple(images), label)


def _case_folders(folder: Path) -> Iterator[tuple[Path, Naming]]:
    for path in _folders(folder):
        if naming := _naming(path):
            yield path, naming
        else:
            yield from ((deeper, naming) for deeper in _folders(path) if (naming := _naming(deeper)))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _naming(folder: Path) -> Naming | None:
    """How the files of a case folder are called; None where it has none of them."""
    return next((naming for naming in NAMINGS if any(path.exists() for path in naming.files(folder))), None)
