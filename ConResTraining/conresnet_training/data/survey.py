"""What a plan needs to know of the cases: their sizes and spacings, from headers, and the values inside of labels."""

from dataclasses import dataclass

import numpy as np

from conresnet.errors import UserError
from conresnet.images.files import read_channels, read_grid
from conresnet.images.geometry import ModelSpace
from conresnet.images.grid import Grid, reordering
from conresnet_training.data import Case, DataSet
from conresnet_training.data.label_maps import read_label
from conresnet_training.data.preparation import check_label_grid

# The first axis is the one across slices. Superior, anterior, right where the data do not speak for another.
USUAL_ORIENTATION = "SAR"
_ACROSS = {"S": USUAL_ORIENTATION, "A": "ASR", "R": "RSA"}
# From this ratio of the largest to the smallest spacing on, slices are thick.
THICK = 2.0
# Of so many cases, spread over the set, so many values each are looked at.
MOST_CASES, MOST_VALUES = 100, 10_000


@dataclass(frozen=True)
class Survey:
    """Medians over the cases, in the order of ``orientation``.

    Args:
        orientation: three letters in array order (S, H, W).
        spacing: mm.
        size: voxels at that spacing.
        ratio: of the largest to the smallest spacing.
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
        """Of the median case, in mm."""
        return max(size * mm for size, mm in zip(self.size, self.spacing, strict=True))


def survey(data_set: DataSet) -> Survey:
    """Read the header of every case's first image.

    The median spacing keeps the resolution in the plane of thick slices. The axis across such slices, where most cases
    have the same, becomes the model's first.

    Raises:
        UserError: ``case-incomplete``, or any of reading an image.
    """
    for case in data_set.cases:
        for path in case.missing:
            raise UserError(
                "case-incomplete",
                f"Case {case.name} lacks {path}; python -m conresnet_training check lists all that is missing.",
                case=case.name,
                path=str(path),
            )
    grids = [read_grid((*case.images, case.label)[0]) for case in data_set.cases]
    orientation = _orientation(grids)
    placed = [reordering(grid, orientation).grid(grid) for grid in grids]
    spacings = np.array([grid.spacing[::-1] for grid in placed])
    spacing = np.median(spacings, axis=0)
    size = np.median([grid.shape for grid in placed] * spacings / spacing, axis=0)
    return Survey(orientation, tuple(spacing.tolist()), tuple(size.tolist()), float(spacing.max() / spacing.min()))


def labelled_values(data_set: DataSet, channel: int) -> np.ndarray:
    """A channel's values inside of the labels, float64, of many cases that have labels; each counts alike.

    Of the whole images, where no case has a label.

    Raises:
        UserError: any of reading a case, and ``label-grid-differs``.
    """
    chosen = data_set.spread(MOST_CASES)
    found = [_values(data_set.cases[i], data_set, channel, seed=i) for i in chosen]
    # An image without a label is mostly air, and would draw the range there.
    return np.concatenate([inside for inside, _ in found if inside.size] or [whole for _, whole in found])


def _values(case: Case, data_set: DataSet, channel: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some values of a channel inside of the labels, and of all of it."""
    if len(case.images) == 1:
        image = read_channels(list(case.images), data_set.channels)[channel]
    else:
        (image,) = read_channels([case.images[channel]], [data_set.channels[channel]])
    label = read_label(case.label)
    if channel == 0:
        check_label_grid(label, image)
    # Further channels may lie on grids of their own.
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
