"""Folders in the form of the Medical Segmentation Decathlon: ``dataset.json``, ``imagesTr``, ``labelsTr``."""

import json
from pathlib import Path

from conresnet.errors import UserError
from conresnet_training.data_sets.data_set import Case, DataSet


def read_data_set(folder: Path) -> DataSet:
    """Read a Medical Segmentation Decathlon folder: ``dataset.json`` beside ``imagesTr`` and ``labelsTr``.

    Cases are sorted by name, so that folds do not depend on the order in the file.

    Raises:
        UserError: ``data-set-not-found``, ``data-set-invalid`` or ``case-incomplete``.
    """
    description = folder / "dataset.json"
    if not description.is_file():
        raise UserError(
            "data-set-not-found",
            f"{folder} holds no dataset.json; name the folder of a data set in the form of the Medical Segmentation "
            "Decathlon.",
            path=str(folder),
        )
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        channels = tuple(name for _, name in sorted(content["modality"].items(), key=lambda item: int(item[0])))
        labels = {int(value): name for value, name in content["labels"].items() if int(value) != 0}
        pairs = [(folder / entry["image"], folder / entry["label"]) for entry in content["training"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "data-set-invalid",
            f"{description} is not a data set description ({error!r}); it needs modality, labels and training.",
            path=str(description),
        ) from error
    cases = tuple(sorted((_case(image, label) for image, label in pairs), key=lambda case: case.name))
    if not cases or not labels:
        raise UserError(
            "data-set-invalid", f"{description} names no training cases or no labels.", path=str(description)
        )
    return DataSet(content.get("name", folder.name), channels, labels, content.get("licence", ""), cases)


def _case(image: Path, label: Path) -> Case:
    for path in (image, label):
        if not path.is_file():
            raise UserError("case-incomplete", f"{path} is named in dataset.json but does not exist.", path=str(path))
    return Case(image.name.removesuffix(".gz").removesuffix(".nii"), (image,), label)
