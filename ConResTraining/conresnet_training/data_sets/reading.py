"""Which layout a folder has, told by what lies in it."""

from pathlib import Path

from conresnet.errors import UserError
from conresnet_training.data_sets.brats import read_brats
from conresnet_training.data_sets.data_set import DataSet
from conresnet_training.data_sets.decathlon import read_decathlon
from conresnet_training.data_sets.description import FILE_NAME, read_description
from conresnet_training.data_sets.nnunet import is_nnunet, read_nnunet
from conresnet_training.data_sets.splits import with_splits


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
    data_set = read_brats(folder)
    if data_set is None:
        raise UserError(
            "data-set-not-found",
            f"{folder} holds no dataset.json (Medical Segmentation Decathlon, nnU-Net) and no case folders with "
            "CASE/CASE_t1.nii.gz and so on (BraTS); name the folder of a data set in one of these three layouts.",
            path=str(folder),
        )
    return data_set
