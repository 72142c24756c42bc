"""Random changes of a training sample: of its place by ``warping``, of its intensities by MONAI."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai import transforms as mt
from monai.data import set_track_meta
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from conresnet_training.scanner_changes import RandCoilField, isolated
from conresnet_training.surroundings import paint_couch_and_mask
from conresnet_training.warping import Warp, draw_bend, draw_turn

AXES = {"S": 0, "H": 1, "W": 2}
TURNED_SHARE, BENT_SHARE, FLIPPED_SHARE = 0.8, 0.3, 0.5
BENT_CELLS = 4
LARGEST_MARGIN = 2

# MONAI's tensors that know where they lie in the patient cost more than most of what is done to them here.
set_track_meta(False)


class Augmentation(BaseModel):
    """How strongly samples are changed; 0 switches a change off.

    The paper flips along all three axes and scales. Flipping along one alone, left to right, keeps anatomy possible; a
    plan says which of the axes that is. Where segments are named for a side, it flips along none, or names the pairs of
    segments that change places in a mirror.
    """

    model_config = ConfigDict(extra="forbid")

    flip_axes: list[Literal["S", "H", "W"]] = Field(default=["W"], description="of S, H and W, the axes to flip along")
    swapped_segments: list[tuple[str, str]] = Field(
        default=[], description="pairs of segments, such as left and right, that trade places in a mirror image"
    )
    scaling: float = Field(default=0.2, ge=0, lt=1, description="up to so much larger or smaller")
    rotation_degrees: float = Field(default=15, ge=0, le=180)
    elastic: float = Field(
        default=0, ge=0, lt=0.5, description="bending: how much wider or narrower each quarter of an axis gets"
    )
    brightness: float = Field(default=0.3, ge=0, description="shift in standard deviations")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="scale, and exponent of a gamma curve")
    noise: float = Field(default=0.15, ge=0, description="standard deviation")
    bias_field: float = Field(default=0, ge=0, description="largest coefficient of a smooth field, as of a coil")
    isolation: float = Field(
        default=0, ge=0, le=1, description="share of samples with air around the labels, as after skull stripping"
    )
    couch_and_mask: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of samples with a couch, cushion or mask painted into air that is all of one value",
    )
    coarsening: float = Field(default=0.5, gt=0, le=1, description="smallest resolution that is imitated, of the own")


class SampleChanges:
    """Draws what is done to a sample.

    Args:
        settings: how strongly.
        spacing: mm (S, H, W) of a voxel. Defaults to voxels that are as long along every axis.
    """

    def __init__(self, settings: Augmentation, spacing: Sequence[float] | None = None):
        self.settings, self.spacing = settings, tuple(spacing or (1, 1, 1))
        self.flip_axes = [AXES[axis] for axis in settings.flip_axes]
        self.intensity = _intensity_transforms(settings)

    def draw_warp(self, window: Sequence[int], random: np.random.Generator) -> Warp:
        """Where the voxels of a window (S, H, W) are taken from."""
        settings, turn, bends = self.settings, None, (0, 0, 0)
        if (settings.rotation_degrees or settings.scaling) and random.random() < TURNED_SHARE:
            turn = draw_turn(settings.rotation_degrees, settings.scaling, self.spacing, random)
        if settings.elastic and random.random() < BENT_SHARE:
            turn = np.eye(3) if turn is None else turn
            bends = tuple(draw_bend(length, BENT_CELLS, settings.elastic, random) for length in window)
        flips = tuple(axis for axis in self.flip_axes if random.random() < FLIPPED_SHARE)
        return Warp(tuple(window), turn, bends, flips)

    def change_intensities(self, image: Tensor, label: Tensor, random: np.random.Generator) -> Tensor:
        """An image (C, S, H, W), whose label map is (S, H, W), with other intensities."""
        if self.settings.isolation and random.random() < self.settings.isolation:
            image = isolated(image, label, int(random.integers(LARGEST_MARGIN + 1)))
        if self.settings.couch_and_mask and random.random() < self.settings.couch_and_mask:
            image = paint_couch_and_mask(image, self.spacing, random)
        # MONAI draws by numpy's older interface; seeding one for each transform took longer than most transforms.
        state = np.random.RandomState(random.bit_generator)
        for transform in self.intensity:
            image = transform.set_random_state(state=state)(image)
        return image


class EachChannel(mt.Randomizable):
    """A change that is drawn for each channel by itself, as the sequences of one scan vary apart from each other.

    Args:
        change: of an image of one channel.
    """

    def __init__(self, change: mt.RandomizableTransform):
        self.change = change

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> "EachChannel":
        """See MONAI's."""
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """An image (C, S, H, W) with other intensities."""
        return torch.cat([self.change(channel[None]) for channel in image])


def _intensity_transforms(settings: Augmentation) -> list[mt.Randomizable]:
    steps: list[mt.Randomizable] = []
    if settings.coarsening < 1:
        steps.append(mt.RandGaussianSmooth(prob=0.1, **{f"sigma_{axis}": (0.3, 0.9) for axis in "xyz"}))
        # "nearest", MONAI's default, takes voxels from one side, and so moves the image off its labels.
        steps.append(
            mt.RandSimulateLowResolution(prob=0.2, downsample_mode="area", zoom_range=(settings.coarsening, 1.0))
        )
    if settings.bias_field:
        steps.append(RandCoilField(settings.bias_field))
    if settings.contrast:
        exponents = (1 - settings.contrast, 1 / (1 - settings.contrast))
        steps.append(EachChannel(mt.RandAdjustContrast(prob=0.3, gamma=exponents)))
        steps.append(EachChannel(mt.RandScaleIntensity(prob=0.5, factors=settings.contrast)))
    if settings.brightness:
        steps.append(EachChannel(mt.RandShiftIntensity(prob=0.5, offsets=settings.brightness)))
    if settings.noise:
        steps.append(mt.RandGaussianNoise(prob=0.2, std=settings.noise))
    return steps
