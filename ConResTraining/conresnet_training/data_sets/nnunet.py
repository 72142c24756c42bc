"""nnU-Net's raw folders: ``imagesTr/CASE_0000.nii.gz``, a file a channel, and ``labelsTr/CASE.nii.gz``."""

import re
from collections.abc import Iterator
from pathlib import Path

from conresnet_training.data_sets.data_set import Case, DataSet
from conresnet_training.data_sets.decathlon import case_name
from conresnet_training.data_sets.description import Description

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
    return description.data_set("nnunet", _cases(description))


def _cases(description: Description) -> Iterator[Case]:
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
