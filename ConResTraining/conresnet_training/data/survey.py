"""What a plan needs to know about the cases: sizes and spacings from headers, and intensities inside the labels."""

from dataclasses import dataclass

import numpy as np

from conresnet.errors import UserError
from conresnet.images.files import read_channels, read_grid
from conresnet.images.geometry import ModelSpace
from conresnet.images.grid import Grid, reordering
from conresnet_training.data import Case, DataSet
from conresnet_training.data.label_maps import on_image_grid, read_label

# The first axis is the one across slices: superior, anterior, right unless the data suggest another order.
USUAL_ORIENTATION = "SAR"
_ACROSS = {"S": USUAL_ORIENTATION, "A": "ASR", "R": "RSA"}
# Slices are thick from this ratio of the largest to the smallest spacing on.
THICK = 2.0
# Cases, spread over the set, and values of each that are looked at.
MOST_CASES, MOST_VALUES = 100, 10_000


@dataclass(frozen=True)
class Survey:
    """Medians over the cases, in the order of ``orientation``.

    Args:
        orientation: three letters in array order (S, H, W).
        spacing: mm.
        size: voxels at that spacing.
        ratio: largest divided by smallest spacing.
    """

    orientation: str
    spacing: tuple[float, float, float]
    size: tuple[float, float, float]
    ratio: float

    @property
    def is_thick(self) -> bool:
        """Whether slices are thick."""
        return self.ratio >= THICK

    @property
    def longest_side(self) -> float:
        """Longest side of the median case in mm."""
        return max(size * mm for size, mm in zip(self.size, self.spacing, strict=True))


def survey(data_set: DataSet) -> Survey:
    """Read the header of every case's first image.

    The median spacing keeps the in-plane resolution of thick slices. The axis across thick slices becomes the model's
    first if most cases have the same.

    Raises:
        UserError: ``case-file-missing``, or any of reading an image.
    """
    for case in data_set.cases:
        for path in case.missing:
            raise UserError("case-file-missing", case=case.name, path=str(path))
    grids = [read_grid((*case.images, case.label)[0]) for case in data_set.cases]
    orientation = _orientation(grids)
    placed = [reordering(grid, orientation).grid(grid) for grid in grids]
    spacings = np.array([grid.spacing[::-1] for grid in placed])
    spacing = np.median(spacings, axis=0)
    size = np.median([grid.shape for grid in placed] * spacings / spacing, axis=0)
    return Survey(orientation, tuple(spacing.tolist()), tuple(size.tolist()), float(spacing.max() / spacing.min()))


def labelled_values(data_set: DataSet, channel: int) -> np.ndarray:
    """A channel's values inside the labels of many cases, float64, each case with equal weight.

    If no case has a label, values of the whole images.

    Raises:
        UserError: any of reading a case, and ``label-grid-differs``.
    """
    chosen = data_set.spread(MOST_CASES)
    found = [_values(data_set.cases[i], data_set, channel, seed=i) for i in chosen]
    # An image without labels is mostly air, which would dominate the range.
    return np.concatenate([inside for inside, _ in found if inside.size] or [whole for _, whole in found])


def _values(case: Case, data_set: DataSet, channel: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some values of a channel inside the labels, and some of the whole channel."""
    if len(case.images) == 1:
        image = read_channels(list(case.images), data_set.channels)[channel]
    else:
        (image,) = read_channels([case.images[channel]], [data_set.channels[channel]])
    label = read_label(case.label)
    # Other channels may have grids of their own.
    if channel == 0:
        label = on_image_grid(label, image)
    space = ModelSpace.fit(label.grid, USUAL_ORIENTATION)
    values = space.to_model(image)
    inside = values[space.to_model(label) > 0]

    def some(of: np.ndarray) -> np.ndarray:
        return np.random.default_rng(seed).choice(of, min(MOST_VALUES, of.size)).astype(np.float64)

    return some(inside), some(values.ravel())


def _orientation(grids: list[Grid]) -> str:
    thick = []
    for grid in grids:
        spacing = reordering(grid, USUAL_ORIENTATION).grid(grid).spacing[::-1]
        if spacing.max() / spacing.min() >= THICK:
            thick.append(USUAL_ORIENTATION[int(spacing.argmax())])
    if not thick:
        return USUAL_ORIENTATION
    across = max(_ACROSS, key=thick.count)
    return _ACROSS[across] if thick.count(across) > len(grids) / 2 else USUAL_ORIENTATION
