"""Paints what surrounds a patient in a real scan into images whose air was removed: a couch, a cushion, a mask."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from torch import Tensor

# Shares of the painted samples that get a mask, a couch, and a cushion between body and couch.
MASK_SHARE, COUCH_SHARE, CUSHION_SHARE = 0.6, 0.7, 0.5
# A couch is usually below or above the body along H; along W it is next to it, as arm rests are.
ALONG_W_SHARE = 0.15
# Brightness as a share of the way from air to the median of the body; one shell in ten is as bright as metal.
SHELL_LEVELS, CUSHION_LEVELS, METAL_LEVELS, METAL_SHARE = (0.1, 1.5), (0.02, 0.8), (1.5, 4.0), 0.1
# Millimeters.
MASK_GAP, MASK_THICKNESS = (0.0, 15.0), (1.5, 6.0)
COUCH_GAP, COUCH_THICKNESS, COUCH_HEIGHT = (0.0, 25.0), (2.0, 20.0), (15.0, 70.0)
# Less air than this leaves no room to paint in.
LEAST_AIR = 0.03


def paint_couch_and_mask(image: Tensor, spacing: Sequence[float], random: np.random.Generator) -> Tensor:
    """Paint a random couch, cushion and mask into the air around the body.

    Air is the image's smallest value, as in data sets in which everything outside the body was set to one value. Other
    images are returned unchanged, and so are windows that show hardly any air. Labels need no change, because nothing
    inside the body does.

    Args:
        image: (C, S, H, W); S is the patient's long axis.
        spacing: voxel size (S, H, W) in mm.
        random: source of all random numbers.

    Returns:
        (C, S, H, W): a new tensor, or ``image`` itself.
    """
    body = body_of(image[0].numpy())
    if not body.any() or (~body).mean() < LEAST_AIR:
        return image
    levels = np.zeros(body.shape, np.float32)
    has_mask, has_couch = random.random() < MASK_SHARE, random.random() < COUCH_SHARE
    if has_mask or not has_couch:
        np.maximum(levels, _mask(body, spacing, random), out=levels)
    if has_couch:
        np.maximum(levels, _couch(body, spacing, random), out=levels)
    levels[body] = 0
    painted = torch.from_numpy(levels)
    inside = image[:, torch.from_numpy(body)]
    air = image.amin((1, 2, 3))
    contrast = inside.median(dim=1).values - air
    surroundings = air[:, None, None, None] + contrast[:, None, None, None] * painted
    # Clipping makes metal no brighter than the brightest that the model can see.
    surroundings = torch.minimum(surroundings, image.amax((1, 2, 3), keepdim=True))
    return torch.where(painted > 0, surroundings, image)


def body_of(image: np.ndarray) -> np.ndarray:
    """Body mask (S, H, W) of an image (S, H, W): everything but air, holes in axial slices filled."""
    air = image.min()
    body = image > air + 1e-5 * (image.max() - air)
    return np.stack([binary_fill_holes(plane) for plane in body])


def _mask(body: np.ndarray, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A thin shell at an even distance from the skin, all around or on one side only, as levels (S, H, W)."""
    distance = distance_transform_edt(~body, sampling=spacing)
    gap, thickness = random.uniform(*MASK_GAP), random.uniform(*MASK_THICKNESS)
    in_plane = (spacing[1] + spacing[2]) / 2
    shell = _plate(distance - in_plane, gap, thickness, in_plane) * _level(random)
    half = random.integers(3)
    if half < 2:
        middle = int(np.argwhere(body.any((0, 2))).mean())
        shell[:, slice(None, middle) if half else slice(middle, None)] = 0
    return shell.astype(np.float32)


def _couch(body: np.ndarray, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """An upper and a lower plate that the body lies on, with or without a cushion, as levels (S, H, W)."""
    axis = 2 if random.random() < ALONG_W_SHARE else 1
    occupied = np.flatnonzero(body.any((0, 3 - axis)))
    positions = np.arange(body.shape[axis]) * float(spacing[axis])
    # Distance outward from the body's outermost voxel, on one side of it or on the other.
    if random.random() < 0.5:
        outward = positions - positions[occupied[-1]] - spacing[axis]
    else:
        outward = positions[occupied[0]] - positions - spacing[axis]
    top, thickness = random.uniform(*COUCH_GAP), random.uniform(*COUCH_THICKNESS)
    upper = _plate(outward, top, thickness, spacing[axis]) * _level(random)
    lower = _plate(outward, top + random.uniform(*COUCH_HEIGHT), thickness, spacing[axis]) * _level(random)
    filling = random.uniform(*CUSHION_LEVELS) * (outward > top) if random.random() < 0.5 else 0
    profile = np.maximum(np.maximum(upper, lower), filling)
    shape = [1, 1, 1]
    shape[axis] = -1
    levels = np.broadcast_to(profile.reshape(shape), body.shape).copy()
    if random.random() < CUSHION_SHARE:
        reach = spacing[axis] * random.integers(2, 12)
        below = np.broadcast_to(((outward < top) & (outward > -reach)).reshape(shape), body.shape)
        texture = 1 + 0.2 * random.standard_normal(body.shape)
        levels = np.where(below, np.maximum(levels, random.uniform(*CUSHION_LEVELS) * texture), levels)
    return np.maximum(levels, 0).astype(np.float32)


def _plate(distance: np.ndarray, begin: float, thickness: float, voxel: float) -> np.ndarray:
    """Share of each voxel, ``voxel`` mm long, that a plate fills which lies ``begin`` to ``begin + thickness`` away."""
    overlap = np.minimum(distance + voxel / 2, begin + thickness) - np.maximum(distance - voxel / 2, begin)
    return np.clip(overlap / voxel, 0, 1)


def _level(random: np.random.Generator) -> float:
    return random.uniform(*(METAL_LEVELS if random.random() < METAL_SHARE else SHELL_LEVELS))
