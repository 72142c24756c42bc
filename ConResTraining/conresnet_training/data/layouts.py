"""Folders in the form of the Medical Segmentation Decathlon: ``dataset.json`` lists the images and their labels.

nnU-Net's raw folders: ``imagesTr/CASE_0000.nii.gz``, a file a channel, and ``labelsTr/CASE.nii.gz``.

Folders in the form of BraTS: a folder a case with ``CASE_t1.nii.gz`` and so on, and no description.

Which layout a folder has, told by what lies in it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError
from conresnet_training.data.data_set import Case, DataSet, case_name, folder_name, painting, sorted_cases
from conresnet_training.data.description import FILE_NAME, Description, read_description, with_splits
from conresnet_training.data.label_map_folder import LABEL_MAPS_FILE, read_label_map_folder


def read_decathlon(description: Description) -> DataSet:
    """The data set that ``dataset.json`` lists under "training"; several channels lie in one 4-D file a case.

    Raises:
        UserError: ``data-set-invalid``, ``no-cases`` or ``case-repeated``.
    """
    return description.data_set("decathlon", _decathlon_cases(description))


def _decathlon_cases(description: Description) -> Iterator[Case]:
    entries = description.content.get("training")
    if not isinstance(entries, list):
        raise description.invalid('it needs "training", a list of images and labels')
    folder = description.path.parent
    for entry in entries:
        files = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else [None]
        if not all(isinstance(file, str) and file for file in files):
            raise description.invalid(f'the training entry {entry!r} is not an "image" with its "label"')
        image, label = (folder / file for file in files)
        if not image.name.startswith("."):
            yield Case(case_name(image), (image,), label)


# nnU-Net takes their spacing from a CASE.json beside them (its Tiff3DIO); without it voxels would be cubes of 1 mm.
WITHOUT_SPACING = (".tif", ".tiff")


def is_nnunet(description: Description) -> bool:
    """Whether a folder with a ``dataset.json`` is nnU-Net's rather than the Decathlon's.

    Version 2 says how its files end. Version 1 lists ``CASE.nii.gz`` as the Decathlon does, but none of these files is
    there: they carry the channel's number.
    """
    content, folder = description.content, description.path.parent
    entries = content.get("training")
    if "file_ending" in content or isinstance(content.get("dataset"), dict):
        return True
    files = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if any(isinstance(file, str) and (folder / file).exists() for file in files):
        return False
    return next(_channel_files(folder, _ending(description)), None) is not None


def read_nnunet(description: Description) -> DataSet:
    """The data set in an nnU-Net raw folder.

    Cases are those with any file in ``imagesTr`` or ``labelsTr``, so that one that lacks a file is known too; where
    ``dataset.json`` lists files under "dataset", those.

    Raises:
        UserError: ``data-set-invalid``, ``no-cases`` or ``case-repeated``.
    """
    return description.data_set("nnunet", _nnunet_cases(description))


def _nnunet_cases(description: Description) -> Iterator[Case]:
    folder, ending = description.path.parent, _ending(description)
    listed = description.content.get("dataset")
    if isinstance(listed, dict):
        yield from (_listed_case(description, name, files) for name, files in listed.items())
        return
    names = {name for name, _ in _channel_files(folder, ending)}
    names |= {file.name.removesuffix(ending) for file in _files(folder / "labelsTr", ending)}
    entries = description.content.get("training")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("label"), str):
            names.add(case_name(Path(entry["label"])))
    channels = range(len(description.channels))
    for name in names:
        images = tuple(folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in channels)
        yield Case(name, images, folder / "labelsTr" / f"{name}{ending}")


def _listed_case(description: Description, name: str, files: object) -> Case:
    images, label = (files.get(key) for key in ("images", "label")) if isinstance(files, dict) else (None, None)
    complete = isinstance(images, list) and len(images) == len(description.channels)
    if not complete or not all(isinstance(file, str) and file for file in (*images, label)):
        count = len(description.channels)
        raise description.invalid(f'the case "{name}" does not have {count} "images" and a "label"')
    folder = description.path.parent
    return Case(name, tuple(folder / file for file in images), folder / label)


def _channel_files(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """(case, file) of the images whose name ends in a channel's number."""
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
        raise description.invalid('"file_ending" must be an ending such as ".nii.gz"')
    if ending.lower() in WITHOUT_SPACING:
        raise description.invalid(
            f"{ending} files do not hold the size of their voxels; convert them to NIfTI with its spacing"
        )
    return ending


CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
BRATS_ENDINGS = (".nii.gz", ".nii")


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
        paths = [folder / f"{folder.name}{self.divider}{word}{ending}" for ending in BRATS_ENDINGS]
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


def read_data_set(folder: Path) -> DataSet:
    """Read a folder in the layout of the Medical Segmentation Decathlon, nnU-Net (raw data) or BraTS, as it is.

    A file that a case lacks does not fail the reading.

    Raises:
        UserError: ``data-set-not-found``, ``data-set-invalid``, ``data-set-mixed``, ``no-cases``, ``case-repeated`` or
            ``cannot-read``.
    """
    if not folder.is_dir():
        raise UserError("data-set-not-found", f"The folder {folder} does not exist.", path=str(folder))
    try:
        return with_splits(_read(folder), folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError("cannot-read", f"The data set {folder} cannot be read ({reason}).", path=str(folder)) from error


def _read(folder: Path) -> DataSet:
    if (folder / FILE_NAME).is_file():
        description = read_description(folder / FILE_NAME)
        return read_nnunet(description) if is_nnunet(description) else read_decathlon(description)
    if (folder / LABEL_MAPS_FILE).is_file():
        return read_label_map_folder(folder)
    data_set = read_brats(folder)
    if data_set is None:
        raise UserError(
            "data-set-not-found",
            f"{folder} holds no dataset.json (Medical Segmentation Decathlon, nnU-Net) and no case folders with "
            "CASE/CASE_t1.nii.gz and so on (BraTS), nor a label_maps.json; name the folder of a data set in one of "
            "these layouts.",
            path=str(folder),
        )
    return data_set
