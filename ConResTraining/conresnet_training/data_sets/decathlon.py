"""Folders in the form of the Medical Segmentation Decathlon: ``dataset.json`` lists the images and their labels."""

from collections.abc import Iterator
from pathlib import Path

from conresnet_training.data_sets.data_set import Case, DataSet
from conresnet_training.data_sets.description import Description

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_decathlon(description: Description) -> DataSet:
    """The data set that ``dataset.json`` lists under "training"; several channels lie in one 4-D file a case.

    Raises:
        UserError: ``data-set-invalid``, ``no-cases`` or ``case-repeated``.
    """
    return description.data_set("decathlon", _cases(description))


def _cases(description: Description) -> Iterator[Case]:
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


def case_name(image: Path) -> str:
    """The file's name without the ending of its kind."""
    ending = next((ending for ending in ENDINGS if image.name.lower().endswith(ending)), image.suffix)
    return image.name[: len(image.name) - len(ending)]
