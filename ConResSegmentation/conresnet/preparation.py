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
from conresnet.intensity import apply, measure
from conresnet.package.description import ModelDescription
from conresnet.roi import BoxROI


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """Made by ``prepare``; holds no float copy of a volume whose voxels are the model's own.

    Args:
        space: the way to the model and back; cut to the ROI.
        channels: (S, H, W) each, of the stored type where not resampled.
        backgrounds: each channel's background value.
        foreground: see ``conresnet.foreground.foreground_mask``.
        intensity: each channel's fitted steps, see ``conresnet.intensity.measure``.
        inside: (S, H, W) bool, the model's voxels in a ROI that the array is not merely cut to; None is all.
    """

    space: ModelSpace
    channels: tuple[np.ndarray, ...]
    backgrounds: tuple[float, ...]
    foreground: str
    intensity: tuple[list[dict], ...]
    inside: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the model's array (S, H, W)."""
        return self.space.grid.shape

    def box(self) -> tuple[slice, slice, slice]:
        """The smallest box around the foreground of all channels."""
        return foreground_box(self.channels, self.foreground, self.backgrounds)

    def block(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """(C, S, H, W) float32 as the network takes it, 0 beyond the array's end.

        Args:
            start: first voxel (S, H, W), inside the array.
            size: may reach beyond its end.
        """
        values = np.zeros((len(self.channels), *size), dtype=np.float32)
        part = tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))
        for channel, array in enumerate(self.channels):
            cut = array[part]
            s, h, w = cut.shape
            mask = None
            if self.foreground != "all":
                mask = foreground_mask(cut, self.foreground, self.backgrounds[channel])
            values[channel, :s, :h, :w] = apply(self.intensity[channel], cut, mask)
        return values


def prepare(
    description: ModelDescription,
    volumes: Sequence[Volume],
    roi: BoxROI | None = None,
    check: Callable[[], None] = lambda: None,
) -> PreparedCase:
    """Bring a case to a model.

    Background and intensity are measured on the model's array, cut to the ROI, so that a crop gives the same whether
    it was cut out before or is cut out by a ROI.

    Args:
        volumes: one a channel of the model, in its order; the first one's grid is that of the results.
        roi: where to segment; None is the whole image.
        check: called now and then; what it raises ends the work.

    Raises:
        UserError: "wrong-channel-count", "roi-empty", and those of ``check_volume`` and ``ModelSpace.fit``.
    """
    inputs, how = description.inputs, description.preparation.foreground
    check_channel_count([volume.name for volume in volumes], [item.name for item in inputs])
    for volume in volumes:
        check_volume(volume)
        check()
    orientation, spacing = description.preparation.orientation, description.preparation.spacing
    space = ModelSpace.fit(volumes[0].grid, orientation, spacing, roi, volumes[0].name)
    inside = _inside(space)
    channels, backgrounds, intensity = [], [], []
    for volume, item in zip(volumes, inputs, strict=True):
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
        channels.append(array)
        backgrounds.append(background)
        intensity.append(measure(item.intensity, array, mask, measured))
        check()
    return PreparedCase(space, tuple(channels), tuple(backgrounds), how, tuple(intensity), inside)


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
