"""Cases brought into the model's space exactly as inference does, and kept on disk for the training loop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.foreground import background_value, foreground_mask
from conresnet.geometry import ModelSpace
from conresnet.grid import Volume
from conresnet.image_files import read_channels, read_volume
from conresnet.intensity import apply, measure
from conresnet.package.description import ModelDescription
from conresnet_training.data_set import Case


@dataclass(frozen=True)
class PreparedCase:
    """A case in the model's space, memory-mapped.

    Args:
        image: (channel, S, H, W) float32.
        label: (S, H, W) uint8, label values.
    """

    name: str
    image: np.ndarray
    label: np.ndarray


def prepare_case(case: Case, model: ModelDescription, folder: Path) -> PreparedCase:
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
    return PreparedCase(case.name, np.load(image_file, mmap_mode="r"), np.load(label_file, mmap_mode="r"))


def _prepare(case: Case, model: ModelDescription) -> tuple[np.ndarray, np.ndarray]:
    channels = read_channels(list(case.images), [item.name for item in model.inputs])
    label = read_volume(case.label)
    reference = channels[0].grid
    if not label.grid.matches(reference):
        raise UserError(
            "label-grid-differs",
            f"{case.label} does not lie on the grid of {case.images[0]}; resample the label map onto the image.",
            path=str(case.label),
        )
    space = ModelSpace.fit(reference, model.preparation.orientation, model.preparation.spacing)
    image = [
        _channel(volume, space, model.preparation.foreground, item.intensity)
        for volume, item in zip(channels, model.inputs, strict=True)
    ]
    return np.stack(image), _label(label, space)


def _channel(volume: Volume, space: ModelSpace, how: str, steps: tuple[dict, ...]) -> np.ndarray:
    background = background_value(volume.array)
    array = space.to_model(volume, background)
    foreground = foreground_mask(array, how, background)
    return apply(measure(steps, array, foreground), array, foreground)


def _label(volume: Volume, space: ModelSpace) -> np.ndarray:
    """Label values where each label's own share, interpolated linearly, is the largest."""
    if space.exact:
        return np.ascontiguousarray(space.to_model(volume)).astype(np.uint8)
    values = np.unique(volume.array)
    shares = [space.to_model(Volume((volume.array == value).astype(np.float32), volume.grid, "")) for value in values]
    return values[np.argmax(shares, axis=0)].astype(np.uint8)
