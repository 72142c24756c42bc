"""Cases brought into the model's space by the engine's own code, and kept on disk for the training loop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.geometry import ModelSpace
from conresnet.grid import Volume
from conresnet.image_files import read_channels, read_volume
from conresnet.package.description import ModelDescription
from conresnet.preparation import prepare
from conresnet_training.data_sets import Case


@dataclass(frozen=True)
class TrainingCase:
    """A labelled case in the model's space, memory-mapped.

    Args:
        image: (channel, S, H, W) float32, as the network takes it.
        label: (S, H, W) uint8, label values.
    """

    name: str
    image: np.ndarray
    label: np.ndarray


def prepare_case(case: Case, model: ModelDescription, folder: Path) -> TrainingCase:
    """Bring a case into ``model``'s space and keep it in ``folder``; one that is there already is only opened.

    Raises:
        UserError: ``label-grid-differs``, or any of reading the files.
    """
    image_file, label_file = folder / f"{case.name}_image.npy", folder / f"{case.name}_label.npy"
    if not label_file.exists():
        image, label = _prepare(case, model)
        for array, path in ((image, image_file), (label, label_file)):
            temporary = path.with_suffix(".part")
            with open(temporary, "wb") as file:
                np.save(file, array)
            temporary.replace(path)
    return TrainingCase(case.name, np.load(image_file, mmap_mode="r"), np.load(label_file, mmap_mode="r"))


def _prepare(case: Case, model: ModelDescription) -> tuple[np.ndarray, np.ndarray]:
    channels = read_channels(list(case.images), [item.name for item in model.inputs])
    label = read_volume(case.label)
    if not label.grid.matches(channels[0].grid):
        raise UserError(
            "label-grid-differs",
            f"{case.label} does not lie on the grid of {case.images[0]}; resample the label map onto the image.",
            path=str(case.label),
        )
    prepared = prepare(model, channels)
    return prepared.block((0, 0, 0), prepared.shape), _label(label, prepared.space)


def _label(volume: Volume, space: ModelSpace) -> np.ndarray:
    """(S, H, W) uint8; where the case is resampled, each voxel takes the label with the largest interpolated share."""
    if space.exact:
        return np.ascontiguousarray(space.to_model(volume)).astype(np.uint8)
    values = np.unique(volume.array)
    shares = [space.to_model(Volume((volume.array == value).astype(np.float32), volume.grid, "")) for value in values]
    return values[np.argmax(shares, axis=0)].astype(np.uint8)
