"""Random changes of training samples: geometry in one resampling, and intensities.

MONAI has a transform for each rotation, scale, bend and flip, but each resamples the window again, image and label
separately, and sees nothing outside of it; that took half of the time of a sample. Most intensity changes come from
MONAI. Added here are the field of a receiver coil, skull stripping, and the couch, cushion or mask around the patient
in a real scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai import transforms as mt
from monai.data import set_track_meta
from monai.transforms import RandBiasField
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool3d

from conresnet.package import AXES
from conresnet_training.planning.plan import Augmentation


@dataclass(frozen=True)
class Warp:
    """Mapping from a transformed window to the voxels of the case.

    Args:
        window: voxels (S, H, W).
        turn: (3, 3) matrix from offsets from the window's center to offsets in the case, in voxels; None for neither
            rotation nor scale.
        bends: for each axis, by how many voxels its planes are shifted along it before the turn.
        flips: axes to flip along.
        displacements: (3, a, b, c), by how many voxels of the case each place is moved along its axes, at nodes spread
            evenly over the window; in between they are interpolated. Only ``cut_label`` follows them.
    """

    window: tuple[int, int, int]
    turn: np.ndarray | None = None
    bends: tuple[np.ndarray, ...] = (0, 0, 0)
    flips: tuple[int, ...] = ()
    displacements: np.ndarray | None = None

    @property
    def is_mirror_image(self) -> bool:
        """Whether left and right are exchanged; two flips amount to a rotation by 180 degrees."""
        return len(self.flips) % 2 == 1

    @property
    def _offsets(self) -> list[np.ndarray]:
        """For each axis, how far its planes are from the window's center after the bends, in voxels."""
        return [np.arange(n) - (n - 1) / 2 + bend for n, bend in zip(self.window, self.bends, strict=True)]

    def cut(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        """Cut the window from a case; outside the case it is 0, as padding is in inference.

        Args:
            image: (C, S, H, W) float32 of the case.
            label: (S, H, W) uint8.
            corner: index (S, H, W) of the unchanged window's first voxel; negative if it begins outside the case.

        Returns:
            Image (C, S, H, W) float32 and label (S, H, W) uint8 of the window's size.
        """
        if self.turn is None:
            cut = (torch.from_numpy(_cut(array, corner, self.window)) for array in (image, label))
        else:
            cut = self._resampled(image, label, corner)
        return tuple(torch.flip(part, [axis - 3 for axis in self.flips]) if self.flips else part for part in cut)

    def cut_label(self, label: np.ndarray, corner: np.ndarray) -> Tensor:
        """``cut`` of a label map alone, displacements included.

        Voxels are looked up by index, which takes a third of the time of ``grid_sample``.
        """
        if self.turn is None and self.displacements is None:
            cut = torch.from_numpy(_cut(label, corner, self.window))
        else:
            inside, flat = torch.ones(self.window, dtype=torch.bool), torch.zeros(self.window, dtype=torch.int32)
            for axis, size in enumerate(label.shape):
                place = self._places(axis, float(corner[axis])).round_().to(torch.int32)
                inside &= (place >= 0) & (place < size)
                flat.mul_(size).add_(place)
            values = torch.from_numpy(np.array(label).reshape(-1))
            cut = torch.where(inside, values[flat.masked_fill_(~inside, 0)], values.new_zeros(()))
        return torch.flip(cut, self.flips) if self.flips else cut

    def _places(self, axis: int, corner: float) -> Tensor:
        """(S, H, W): position of each voxel along one axis of the case."""
        turn = np.eye(3) if self.turn is None else self.turn
        s, h, w = (torch.from_numpy((own * turn[axis, k]).astype(np.float32)) for k, own in enumerate(self._offsets))
        places = s[:, None, None] + (h[:, None] + (w + (corner + (self.window[axis] - 1) / 2)))
        if self.displacements is not None:
            nodes = torch.from_numpy(self.displacements[axis].astype(np.float32))
            across = [_linear(length, count) for length, count in zip(self.window, nodes.shape, strict=True)]
            places += torch.einsum("sa,hb,abc->shc", *across[:2], nodes) @ across[2].T
        return places

    def _resampled(self, image: np.ndarray, label: np.ndarray, corner: np.ndarray) -> tuple[Tensor, Tensor]:
        middle = (np.array(self.window) - 1) / 2
        # (n, 3) each: what each axis of the window adds to a voxel's position in the case.
        steps = [offsets[:, None] * column for offsets, column in zip(self._offsets, self.turn.T, strict=True)]
        # Only the part of the case that the window shows is read.
        low = np.floor(corner + middle + sum(step.min(axis=0) for step in steps)).astype(int)
        high = np.ceil(corner + middle + sum(step.max(axis=0) for step in steps)).astype(int) + 1
        low, high = np.clip(low, 0, label.shape), np.clip(high, 0, label.shape)
        size = high - low
        if not (size > 0).all():
            return torch.zeros(len(image), *self.window), torch.zeros(self.window, dtype=torch.uint8)
        box = tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))
        # In the units of grid_sample: from -1 at the first voxel's edge to 1 at the last one's, W first.
        s, h, w = (torch.from_numpy((2 * step / size)[:, ::-1].astype(np.float32)) for step in steps)
        first = torch.from_numpy(((2 * (corner + middle - low) + 1) / size - 1)[::-1].astype(np.float32))
        grid = s[:, None, None] + (h[:, None] + (w + first))
        moved = _sample(torch.from_numpy(image[:, *box].copy()), grid, "bilinear")
        values = torch.from_numpy(label[box].astype(np.float32))
        return moved, _sample(values[None], grid, "nearest")[0].to(torch.uint8)


def draw_turn(degrees: float, scaling: float, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A random ``Warp.turn``: a rotation about each axis, and a scale along each, both in millimeters.

    Args:
        degrees: largest angle in either direction.
        scaling: largest fraction by which the window shows more or less.
        spacing: voxel size (S, H, W) in mm.
    """
    turn = np.diag(1 + random.uniform(-scaling, scaling, 3))
    for axis, angle in enumerate(np.deg2rad(random.uniform(-degrees, degrees, 3))):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[one, other], [one, other]] = np.cos(angle)
        rotation[one, other], rotation[other, one] = -np.sin(angle), np.sin(angle)
        turn = rotation @ turn
    return turn * np.array(spacing) / np.array(spacing)[:, None]


def draw_quarter_turns(spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A random ``Warp.turn`` by a multiple of 90 degrees about each axis, of voxels with a spacing (S, H, W) in mm."""
    turn = np.eye(3)
    for axis, quarters in enumerate(random.integers(0, 4, 3)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        quarter = np.eye(3)
        quarter[[one, other]] = quarter[[other, one]]
        quarter[one, other] = -1
        turn = np.linalg.matrix_power(quarter, quarters) @ turn
    return turn * np.array(spacing) / np.array(spacing)[:, None]


def draw_bend(length: int, cells: int, strength: float, random: np.random.Generator) -> np.ndarray:
    """Random shifts (length,) along an axis, in voxels, that widen or narrow each of its cells by up to ``strength``.

    The middle of the axis stays in place.
    """
    edges = np.linspace(0, length, cells + 1)
    shifts = np.concatenate([[0], np.cumsum(random.uniform(-strength, strength, cells) * length / cells)])
    return np.interp(np.arange(length) + 0.5, edges, shifts - shifts[-1] / 2)


def _cut(array: np.ndarray, corner: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """The window of an array whose last axes are (S, H, W); 0 outside the array."""
    cut = np.zeros((*array.shape[:-3], *window), array.dtype)
    source = tuple(slice(max(c, 0), min(c + w, n)) for c, w, n in zip(corner, window, array.shape[-3:], strict=True))
    place = tuple(slice(part.start - c, part.stop - c) for part, c in zip(source, corner, strict=True))
    cut[(..., *place)] = array[(..., *source)]
    return cut


def _linear(length: int, nodes: int) -> Tensor:
    """(length, nodes): weights for linear interpolation between nodes spread evenly over the length."""
    place = torch.linspace(0, nodes - 1, length)
    return (1 - (place[:, None] - torch.arange(nodes)).abs()).clamp(min=0)


def _sample(array: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, S, H, W) of the grid's size."""
    return grid_sample(array[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]


# Shares of the samples that are rotated and scaled, bent, and flipped along each axis.
TURNED_SHARE, BENT_SHARE, FLIPPED_SHARE = 0.8, 0.3, 0.5
BENT_CELLS = 4
FIELD_DEGREE = 3
# A window with a smaller labeled share has too few voxels for normalization.
SMALLEST_SHARE = 0.02
# Voxels that simulated skull stripping leaves around the labels.
LARGEST_MARGIN = 2

# MONAI's tensors with metadata take more time than most of these transforms.
set_track_meta(False)


class SampleChanges:
    """Draws the random changes of a sample.

    Args:
        settings: strength and frequency of the changes.
        spacing: voxel size (S, H, W) in mm. Defaults to cubes.
    """

    def __init__(self, settings: Augmentation, spacing: Sequence[float] | None = None):
        self.settings, self.spacing = settings, tuple(spacing or (1, 1, 1))
        self.flip_axes = [AXES.index(axis) for axis in settings.flip_axes]
        self.intensity = _intensity_transforms(settings)

    def draw_warp(self, window: Sequence[int], random: np.random.Generator) -> Warp:
        """Draw random geometry for a window (S, H, W)."""
        settings, turn, bends = self.settings, None, (0, 0, 0)
        if (settings.rotation_degrees or settings.scaling) and random.random() < TURNED_SHARE:
            turn = draw_turn(settings.rotation_degrees, settings.scaling, self.spacing, random)
        if settings.quarter_turns:
            turn = draw_quarter_turns(self.spacing, random) @ (np.eye(3) if turn is None else turn)
        if settings.elastic and random.random() < BENT_SHARE:
            turn = np.eye(3) if turn is None else turn
            bends = tuple(draw_bend(length, BENT_CELLS, settings.elastic, random) for length in window)
        flips = tuple(axis for axis in self.flip_axes if random.random() < FLIPPED_SHARE)
        return Warp(tuple(window), turn, bends, flips)

    def change_intensities(self, image: Tensor, label: Tensor, random: np.random.Generator) -> Tensor:
        """Change the intensities of an image (C, S, H, W) with a label map (S, H, W)."""
        if self.settings.isolation and random.random() < self.settings.isolation:
            image = isolated(image, label, int(random.integers(LARGEST_MARGIN + 1)))
        if self.settings.couch_and_mask and random.random() < self.settings.couch_and_mask:
            image = paint_couch_and_mask(image, self.spacing, random)
        # MONAI uses numpy's legacy generators; creating one per transform took longer than most transforms.
        state = np.random.RandomState(random.bit_generator)
        for transform in self.intensity:
            image = transform.set_random_state(state=state)(image)
        return image


class EachChannel(mt.Randomizable):
    """A change of one channel that is drawn for each separately, because the sequences of a scan vary independently."""

    def __init__(self, change: mt.RandomizableTransform):
        self.change = change

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> "EachChannel":
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """Apply the change to each channel of an image (C, S, H, W)."""
        return torch.cat([self.change(channel[None]) for channel in image])


def _intensity_transforms(settings: Augmentation) -> list[mt.Randomizable]:
    steps: list[mt.Randomizable] = []
    if settings.coarsening < 1:
        steps.append(mt.RandGaussianSmooth(prob=0.1, **{f"sigma_{axis}": (0.3, 0.9) for axis in "xyz"}))
        # "nearest", MONAI's default, takes voxels from one side and so shifts the image off its labels.
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


class RandCoilField(RandBiasField):
    """A smooth field of brightness, as from a receiver coil. The smallest value, air, does not change.

    MONAI's transform multiplies the values themselves, which after a z-score would darken dark tissue near the coil.
    """

    def __init__(self, largest: float):
        super().__init__(degree=FIELD_DEGREE, coeff_range=(-largest, largest), prob=0.5)

    def __call__(self, image: Tensor) -> Tensor:
        """Apply a random field to an image (C, S, H, W)."""
        air = image.amin((1, 2, 3), keepdim=True)
        return super().__call__(image - air) + air


def isolated(image: Tensor, label: Tensor, margin: int) -> Tensor:
    """Set everything but the labels to air and normalize again, like a skull-stripped head.

    Args:
        image: (C, S, H, W).
        label: (S, H, W), 0 for background.
        margin: voxels around the labels that are kept.

    Returns:
        (C, S, H, W); ``image`` itself if hardly anything in it is labeled.
    """
    kept = (label > 0).float()[None]
    if margin:
        kept = max_pool3d(kept, 2 * margin + 1, stride=1, padding=margin)
    kept = kept[0] > 0
    if kept.float().mean() < SMALLEST_SHARE:
        return image
    inside = image[:, kept]
    deviation, mean = torch.std_mean(inside, dim=1)
    stripped = torch.where(kept, image, image.amin((1, 2, 3), keepdim=True))
    return (stripped - mean.view(-1, 1, 1, 1)) / deviation.clamp(min=1e-3).view(-1, 1, 1, 1)


# Shares of the painted samples that get a mask, a couch, and a cushion between body and couch.
MASK_SHARE, COUCH_SHARE, CUSHION_SHARE = 0.6, 0.7, 0.5
# A couch is usually below or above the body along H; along W it is next to it, as arm rests are.
ALONG_W_SHARE = 0.15
# Brightness as a share of the way from air to the median of the body; one shell in ten is as bright as metal.
SHELL_LEVELS, CUSHION_LEVELS, METAL_LEVELS, METAL_SHARE = (0.1, 1.5), (0.02, 0.8), (1.5, 4.0), 0.1
# Millimeters.
MASK_GAP, MASK_THICKNESS = (0.0, 15.0), (1.5, 6.0)
COUCH_GAP, COUCH_THICKNESS, COUCH_HEIGHT = (0.0, 25.0), (2.0, 20.0), (15.0, 70.0)
# With less air than this, there is no room to paint in.
LEAST_AIR = 0.03


def paint_couch_and_mask(image: Tensor, spacing: Sequence[float], random: np.random.Generator) -> Tensor:
    """Paint a random couch, cushion and mask into the air around the body.

    Air is the image's smallest value, as in data sets in which everything outside the body was set to one value. Other
    images are returned unchanged, and so are windows that show hardly any air. Labels need no change, because nothing
    inside the body does.

    Args:
        image: (C, S, H, W); S is the patient's long axis.
        spacing: voxel size (S, H, W) in mm.

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
    # Clipping limits metal to the largest value that the model can see.
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
    """Share of each voxel, ``voxel`` mm long, filled by a plate from ``begin`` to ``begin + thickness``."""
    overlap = np.minimum(distance + voxel / 2, begin + thickness) - np.maximum(distance - voxel / 2, begin)
    return np.clip(overlap / voxel, 0, 1)


def _level(random: np.random.Generator) -> float:
    return random.uniform(*(METAL_LEVELS if random.random() < METAL_SHARE else SHELL_LEVELS))
