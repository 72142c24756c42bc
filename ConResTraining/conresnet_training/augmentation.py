"""Random changes of a training sample, by MONAI. The seed of a sample decides all of them."""

import numpy as np
import torch
from monai import transforms as mt
from pydantic import BaseModel, ConfigDict, Field

KEYS = ("image", "label")
SPATIAL_AXIS = {"S": 0, "H": 1, "W": 2}


class Augmentation(BaseModel):
    """How strongly samples are changed; 0 switches a change off.

    The paper flips along all three axes and scales. Flipping along one alone, left to right, keeps anatomy possible.
    """

    model_config = ConfigDict(extra="forbid")

    flip_axes: list[str] = Field(default=["W"], description="of S, H and W, the axes to flip along")
    scaling: float = Field(default=0.2, ge=0, lt=1, description="up to so much larger or smaller")
    rotation_degrees: float = Field(default=15, ge=0, le=180)
    elastic: float = Field(default=0, ge=0, lt=0.5, description="bending: shift of a grid's points, in its cells")
    brightness: float = Field(default=0.3, ge=0, description="shift in standard deviations")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="scale, and exponent of a gamma curve")
    noise: float = Field(default=0.15, ge=0, description="standard deviation")
    coarsening: float = Field(default=0.5, gt=0, le=1, description="smallest resolution that is imitated, of the own")


def build_augmentation(settings: Augmentation) -> mt.Compose:
    """A transform of {"image": (C, S, H, W), "label": (1, S, H, W)} to tensors of the same size.

    What a rotated or scaled window shows beyond the case is 0, as padding is in inference.
    """
    angle, scale = np.deg2rad(settings.rotation_degrees), settings.scaling
    steps: list = []
    if angle or scale:
        affine = {"rotate_range": (angle,) * 3, "scale_range": (scale,) * 3, "padding_mode": "zeros"}
        steps.append(mt.RandAffined(KEYS, prob=0.8, mode=("bilinear", "nearest"), **affine))
    if settings.elastic:
        bend = {"distort_limit": settings.elastic, "num_cells": 4, "padding_mode": "zeros"}
        steps.append(mt.RandGridDistortiond(KEYS, prob=0.3, mode=("bilinear", "nearest"), **bend))
    steps += [mt.RandFlipd(KEYS, prob=0.5, spatial_axis=SPATIAL_AXIS[axis]) for axis in settings.flip_axes]
    if settings.coarsening < 1:
        widths = {f"sigma_{axis}": (0.3, 0.9) for axis in "xyz"}
        steps.append(mt.RandGaussianSmoothd("image", prob=0.1, **widths))
        steps.append(mt.RandSimulateLowResolutiond("image", prob=0.2, zoom_range=(settings.coarsening, 1.0)))
    if settings.contrast:
        steps.append(
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(1 - settings.contrast, 1 / (1 - settings.contrast)))
        )
        steps.append(mt.RandScaleIntensityd("image", prob=0.5, factors=settings.contrast))
    if settings.brightness:
        steps.append(mt.RandShiftIntensityd("image", prob=0.5, offsets=settings.brightness))
    if settings.noise:
        steps.append(mt.RandGaussianNoised("image", prob=0.2, std=settings.noise))
    return mt.Compose([*steps, mt.ToTensord(KEYS, dtype=torch.float32, track_meta=False)])
