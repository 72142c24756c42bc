"""A case as a model sees it: in the model's space, its intensity measured, read a block at a time. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from conresnet.errors import UserError
from conresnet.foreground import background_value, foreground_box, foreground_mask
from conresnet.geometry import ModelSpace
from conresnet.grid import Volume
from conresnet.image_checks import check_channel_count, check_volume
from conresnet.intensity import split_steps
from conresnet.intensity.filters import filtered
from conresnet.intensity.fitting import apply, measure
from conresnet.package.description import ModelDescription
from conresnet.roi import BoxROI


@dataclass(frozen=True, eq=False)
class PreparedChannel:
    """One channel of the network, made of one image by its own intensity steps or those of a copy.

    Args:
        image: which of ``PreparedCase.images`` it is made of.
        values: (S, H, W): that image itself, or, where there are filters among the steps, float32 after them.
        intensity: the other steps, fitted to ``values``, see ``conresnet.intensity.fitting.measure``.
    """

    image: int
    values: np.ndarray
    intensity: list[dict]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """Made by ``prepare``.

    Images whose voxels are the model's own are views of what was read. A channel with filters holds a float32 array,
    4 bytes a voxel; without filters there is no float copy of a volume.

    Args:
        space: the way to the model and back; cut to the ROI.
        images: (S, H, W) each, one an input of the model, of the stored type where not resampled.
        backgrounds: each image's background value.
        foreground: see ``conresnet.foreground.foreground_mask``.
        channels: what the network takes, in its order; copies included.
        inside: (S, H, W) bool, the model's voxels in a ROI that the array is not merely cut to; None is all.
    """

    space: ModelSpace
    images: tuple[np.ndarray, ...]
    backgrounds: tuple[float, ...]
    foreground: str
    channels: tuple[PreparedChannel, ...]
    inside: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the model's array (S, H, W)."""
        return self.space.grid.shape

    def box(self) -> tuple[slice, slice, slice]:
        """The smallest box around the foreground of all images."""
        return foreground_box(self.images, self.foreground, self.backgrounds)

    def block(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """(C, S, H, W) float32 as the network takes it, 0 beyond the array's end.

        Args:
            start: first voxel (S, H, W), inside the array.
            size: may reach beyond its end.
        """
        values = np.zeros((len(self.channels), *size), dtype=np.float32)
        part = tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))
        masks = [None] * len(self.images)
        if self.foreground != "all":
            masks = [
                foreground_mask(image[part], self.foreground, background)
                for image, background in zip(self.images, self.backgrounds, strict=True)
            ]
        for row, channel in zip(values, self.channels, strict=True):
            cut = channel.values[part]
            s, h, w = cut.shape
            row[:s, :h, :w] = apply(channel.intensity, cut, masks[channel.image], start[0])
        return values


def prepare(
    description: ModelDescription,
    volumes: Sequence[Volume],
    roi: BoxROI | None = None,
    check: Callable[[], None] = lambda: None,
) -> PreparedCase:
    """Bring a case to a model.

    Background and intensity are measured on the model's array, cut to the ROI, and filters see no more of the image
    than that, so that a crop gives the same whether it was cut out before or is cut out by a ROI.

    Args:
        volumes: one an input of the model, in its order; the first one's grid is that of the results.
        roi: where to segment; None is the whole image.
        check: called now and then; what it raises ends the work.

    Raises:
        UserError: "wrong-channel-count", "roi-empty", "channels-apart", and those of ``check_volume`` and
            ``ModelSpace.fit``.
    """
    inputs, how = description.inputs, description.preparation.foreground
    check_channel_count([volume.name for volume in volumes], [item.name for item in inputs])
    for volume in volumes:
        check_volume(volume)
        check()
    orientation, spacing = description.preparation.orientation, description.preparation.spacing
    space = ModelSpace.fit(volumes[0].grid, orientation, spacing, roi, volumes[0].name)
    inside = _inside(space)
    images, backgrounds, channels = [], [], []
    for index, (volume, item) in enumerate(zip(volumes, inputs, strict=True)):
        array = space.to_model(volume, background_value(volume.array))
        check()
        if roi is not None and array.min() == array.max():
            raise UserError(
                "roi-empty",
                f"{volume.name} is empty inside the ROI ({roi}): all voxels there are {array.flat[0]:g}; move the ROI.",
                name=volume.name,
                roi=str(roi),
                value=float(array.flat[0]),
            )
        background = background_value(array)
        mask = None if how == "all" else foreground_mask(array, how, background)
        measured = _both(inside, space.covered(volume.grid))
        if measured is not None and not measured.any():
            raise UserError(
                "channels-apart",
                f"{volume.name} shows nothing of the place in {volumes[0].name} that is to be segmented; choose images "
                "of one examination, register them, or move the ROI.",
                name=volume.name,
                first=volumes[0].name,
            )
        images.append(array)
        backgrounds.append(background)
        for steps in item.channels:
            filters, others = split_steps(steps)
            values = array
            if filters:
                values = filtered(filters, array, space.grid.spacing[::-1], _both(mask, measured), check)
            channels.append(PreparedChannel(index, values, measure(others, values, mask, measured)))
            check()
    return PreparedCase(space, tuple(images), tuple(backgrounds), how, tuple(channels), inside)


def _inside(space: ModelSpace) -> np.ndarray | None:
    """Which of the model's voxels lie in the ROI; None where all do."""
    if space.roi is None:
        return None
    mask = space.roi.contains(space.grid.array_affine, space.grid.shape)
    return None if mask.all() or not mask.any() else mask


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
