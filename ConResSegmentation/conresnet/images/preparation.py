"""A case as a model sees it: in the model's space, its intensity measured, read block by block. Torch-free.

The first part separates the image from the empty air or padding around it (foreground and background); `prepare` then
brings images to a model, and the `PreparedCase` that it returns serves blocks of them as the network takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Box, Volume, box_of_flags, check_volume, reordering, whole_box
from conresnet.images.geometry import ModelSpace
from conresnet.images.inputs import BoxROI, check_channel_count, wants_roi
from conresnet.intensity import apply, filtered, ignores_offset, measure, of_slices, split_steps
from conresnet.messages import rounded, sentence
from conresnet.package import ModelDescription


def background_value(array: np.ndarray) -> float:
    """The value of most of the eight corner voxels; the smallest of equally frequent ones.

    The paper's authors use one corner; all eight give the same answer however the axes are stored.
    """
    corners = [array[corner] for corner in product((0, -1), repeat=3)]
    values, counts = np.unique(np.array(corners), return_counts=True)
    return float(values[counts.argmax()])


def foreground_mask(array: np.ndarray, how: str, background: float | None = None) -> np.ndarray:
    """Which voxels of an array, or a block of one, belong to the image: bool of the same shape.

    Args:
        how: "not_background" (voxels that differ from the background value) or "all", as a model's description checks;
            it is not checked here.
        background: the whole image's ``background_value``; None uses this array's own.
    """
    if how == "all":
        return np.ones(array.shape, dtype=bool)
    return array != (background_value(array) if background is None else background)


def foreground_box(channels: Sequence[np.ndarray], how: str, backgrounds: Sequence[float]) -> Box:
    """The smallest box around the foreground of all channels (S, H, W) together, or all if no voxel is foreground.

    ``how`` and ``backgrounds``, one per channel, are as for ``foreground_mask``.
    """
    shape = channels[0].shape
    if how == "all":
        return whole_box(shape)
    occupied = [np.zeros(size, dtype=bool) for size in shape]
    # Slice by slice, so that no mask of a whole volume is needed.
    for index in range(shape[0]):
        mask = np.zeros(shape[1:], dtype=bool)
        for channel, background in zip(channels, backgrounds, strict=True):
            mask |= channel[index] != background
        occupied[0][index] = mask.any()
        occupied[1] |= mask.any(axis=1)
        occupied[2] |= mask.any(axis=0)
    return box_of_flags(occupied) or whole_box(shape)


# Of its largest value, the range that an image must have for float32, with 24 bits, to keep 4096 of its levels apart.
_LEAST_RANGE = 2.0**-12


def without_offset(array: np.ndarray) -> np.ndarray:
    """The array minus its lowest foreground value if float32 would lose the differences between values, else the array.

    This happens if signed values were stored as unsigned ones, which adds 2**31 to each: float32 keeps only multiples
    of 256 there. The array is returned unchanged if its type loses nothing, so for nearly every image.
    """
    if np.can_cast(array.dtype, np.float32, "safe"):
        return array
    background = background_value(array)
    low, high = np.inf, -np.inf
    for plane in array:
        # The background may be 0, far below everything else.
        inside = plane[plane != background]
        if inside.size:
            low, high = min(low, float(inside.min())), max(high, float(inside.max()))
    if not 0 < high - low < _LEAST_RANGE * max(-low, high):
        return array
    return np.subtract(array, low, out=np.empty(array.shape, np.float32), dtype=np.float64)


# Share of the segmented region that every image should cover.
_ENOUGH_SHOWN = 0.95
# Modalities that cannot replace one another; other DICOM images, such as secondary captures, may be any of them.
_MODALITIES = {"CT", "MR", "PT", "NM", "US"}
# Hounsfield units: only air and lungs are below the first; above the others are bone, and teeth and metal. With an
# offset of 1024, as in stored values that were not rescaled, soft tissue is among the last.
_AIR, _BONE, _TEETH = -200, 200, 700
_LEAST_CONTRAST, _MOST_TEETH, _MOST_CLIPPED = 20, 0.01, 0.02
# Not even noise is below the first. Padding is, such as -2000 or -3024, but has few values. With the offset subtracted
# twice, air is around -2000, and almost nothing is above -200.
_VACUUM, _MOST_VACUUM, _PADDING, _LEAST_TISSUE = -1500, 0.05, 0.1, 0.002
# A label map has few values, and most neighbors in its segments have the same one: 58% even at 4 mm, where parts of the
# brain are a few voxels thick. In scans it is less than 20%.
_MOST_LABELS, _LEAST_EQUAL = 128, 0.4
# The share of a model's window that an image should cover along each axis; crops are often smaller than a window.
_MUCH_SMALLER = 0.25
# How many times as long as the largest training image a crop may be along an axis. With 12 mm around a hippocampus
# instead of the 3 to 13 in training, its Dice falls by 0.006; with 16 mm, by 0.03.
_LARGER_CROP = 1.25
# Models for scans of 1 mm still find structures in slices of 3 mm.
_MUCH_THICKER = 3.0
_AXES = {**dict.fromkeys("RL", "left-right"), **dict.fromkeys("AP", "front-back"), **dict.fromkeys("SI", "head-foot")}


@dataclass(frozen=True, eq=False)
class PreparedChannel:
    """One channel of the network, computed from one image by its own intensity steps or those of a copy.

    Args:
        image: index in `PreparedCase.images`.
        values: (S, H, W): that image itself or, if there are filters among the steps, float32 after them.
        intensity: the other steps, fitted to ``values``, see `conresnet.intensity.measure`.
    """

    image: int
    values: np.ndarray
    intensity: list[dict]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in a model's space. Made by `prepare`.

    Images whose voxels are the model's own are views of what was read. A channel with filters holds a float32 array,
    4 bytes per voxel; without filters there is no float copy of a volume.

    Args:
        space: the way to the model and back; cut to the ROI, or to its surroundings that the model sees.
        images: (S, H, W) each, one per input of the model, of the stored type unless resampled.
        backgrounds: each image's background value.
        foreground: see `foreground_mask`.
        channels: the network's inputs in its order, copies included.
        inside: (S, H, W) bool, the model's voxels in an ROI, unless the array is cut to exactly the ROI; None is all.
        warnings: sentences for the user.
        part: where windows are needed, if that is known; None is wherever there is foreground.
    """

    space: ModelSpace
    images: tuple[np.ndarray, ...]
    backgrounds: tuple[float, ...]
    foreground: str
    channels: tuple[PreparedChannel, ...]
    inside: np.ndarray | None
    warnings: tuple[str, ...] = ()
    part: Box | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the model's array (S, H, W)."""
        return self.space.grid.shape

    def box(self) -> Box:
        """The box that windows must cover: ``part``, or the smallest one around the foreground of all images."""
        return self.part or foreground_box(self.images, self.foreground, self.backgrounds)

    def block(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """(C, S, H, W) float32 as the network takes it, from a first voxel on; 0 beyond the array's end."""
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

    A model of crops sees only the ROI: background and intensity are measured in it, and filters see no more, so that a
    crop gives the same result whether it was cropped before or by an ROI. For a model of whole scans all of that is
    done on the whole image, and the array includes the surroundings of the ROI, so that an ROI limits what is segmented
    without changing what the network sees there. See `conresnet.package.Preparation`.

    Args:
        volumes: one per input of the model, in its order; results are on the first one's grid.
        roi: where to segment; None is the whole image.
        check: called repeatedly; an exception that it raises ends the work.

    Raises:
        UserError: "wrong-channel-count", "roi-empty", "channels-apart", and those of ``check_volume`` and
            ``ModelSpace``.
    """
    check_channel_count([volume.name for volume in volumes], [item.name for item in description.inputs])
    for volume in volumes:
        check_volume(volume)
        check()
    how, first = description.preparation, volumes[0]
    is_limited = roi is not None and how.roi == "limit"
    window = description.inference.window if is_limited else None
    space = ModelSpace(first.grid, how.orientation, how.spacing, roi, first.name, window)
    seen = _whole(description, first) if is_limited else space
    part, inside = space.part_of(seen), _inside(space)
    images, backgrounds, channels = [], [], []
    warnings = [warning for volume in volumes for warning in volume.warnings]
    warnings += _warn_of_channels(description, volumes)
    warnings += _warn_of_size(description, first, whole_scan=roi is None)
    warnings += _warn_of_crop(description, first, space, drawn=roi is not None)
    for index, (volume, item) in enumerate(zip(volumes, description.inputs, strict=True)):
        if all(map(ignores_offset, item.channels)):
            volume = replace(volume, array=without_offset(volume.array))
        whole = seen.to_model(volume, background_value(volume.array))
        check()
        background = background_value(whole)
        mask = None if how.foreground == "all" else foreground_mask(whole, how.foreground, background)
        covered = seen.covered(volume.grid)
        measured = _both(None if is_limited else inside, covered)
        images.append(_kept(whole, part))
        backgrounds.append(background)
        if covered is not None:
            wanted = _both(inside, images[0] != backgrounds[0])
            warnings += _warn_where_missing(volume, wanted, covered[part], first.name)
        if roi is not None:
            values = images[-1] if inside is None else images[-1][inside]
            if values.min() == values.max():
                raise UserError("roi-empty", name=volume.name, roi=str(roi), value=float(values.flat[0]))
        for steps in item.channels:
            filters, others = split_steps(steps)
            values, cut = whole, images[-1]
            if filters:
                values = filtered(filters, whole, space.grid.spacing[::-1], _both(mask, measured), check)
                cut = _kept(values, part)
            fitted = measure(others, values, mask, measured)
            channels.append(PreparedChannel(index, cut, of_slices(fitted, part[0])))
            check()
    return PreparedCase(
        space, tuple(images), tuple(backgrounds), how.foreground, tuple(channels), inside, tuple(warnings)
    )


def _warn_of_size(description: ModelDescription, volume: Volume, whole_scan: bool) -> list[str]:
    """Warnings if an image is much larger or smaller than the model's window, or much coarser than its voxels."""
    names = {"name": volume.name, "model": description.title}
    warnings = []
    if whole_scan and wants_roi(description, volume.grid):
        warnings.append(sentence("warn-much-larger", names))
    how = description.preparation
    own = reordering(volume.grid, how.orientation).grid(volume.grid)
    spacing = own.spacing[::-1]
    seen = np.multiply(description.inference.window, how.spacing or spacing)
    for axis, letter in enumerate(how.orientation):
        covered = own.shape[axis] * spacing[axis]
        along = {**names, "axis": _AXES[letter]}
        if covered < _MUCH_SMALLER * seen[axis]:
            sizes = {"covered": rounded(covered), "seen": rounded(seen[axis])}
            warnings.append(sentence("warn-much-smaller", {**along, **sizes}))
        if how.spacing and spacing[axis] > _MUCH_THICKER * how.spacing[axis]:
            sizes = {"spacing": rounded(spacing[axis]), "wanted": rounded(how.spacing[axis])}
            warnings.append(sentence("warn-much-thicker", {**along, **sizes}))
    return warnings


def _warn_of_crop(description: ModelDescription, volume: Volume, space: ModelSpace, drawn: bool) -> list[str]:
    """A warning if a model of crops sees much more than in training, unless it is told to draw an ROI anyway."""
    how, seen = description.preparation, space.grid.shape * space.grid.spacing[::-1]
    if how.roi != "cut" or not how.largest_crop or (seen <= np.multiply(_LARGER_CROP, how.largest_crop)).all():
        return []
    if not drawn and wants_roi(description, volume.grid):
        return []
    sizes = {name: " x ".join(map(rounded, sorted(mm))) for name, mm in (("size", seen), ("largest", how.largest_crop))}
    return [sentence("warn-larger-crop", {"name": volume.name, "model": description.title, **sizes})]


def _warn_of_channels(description: ModelDescription, volumes: Sequence[Volume]) -> list[str]:
    """Warnings if an image has another modality than the model's, is a label map, or two are of different patients, or
    the same.
    """
    warnings = []
    for item, volume in zip(description.inputs, volumes, strict=True):
        names = {"name": volume.name, "model": description.title}
        # Images of nuclear medicine may have only a few counts.
        if item.modality in _MODALITIES - {"NM"} and looks_like_labels(volume.array):
            warnings.append(sentence("warn-like-labels", names))
        if item.modality == "CT" and not may_be_hounsfield(volume.array):
            limits = {"low": volume.array.min(), "high": volume.array.max()}
            warnings.append(sentence("warn-not-hounsfield", {**names, **limits}))
        if item.modality in _MODALITIES and volume.modality in _MODALITIES - {item.modality}:
            modalities = {"modality": volume.modality, "wanted": item.modality}
            warnings.append(sentence("warn-modality", {**names, **modalities}))
        elif item.modality == "MR" and volume.modality not in _MODALITIES and _looks_like_ct(volume.array):
            warnings.append(sentence("warn-like-ct", names))
    for (first, one), (second, other) in combinations(zip(description.inputs, volumes, strict=True), 2):
        names = {"first": first.name, "second": second.name}
        if one.patient and other.patient and one.patient != other.patient:
            warnings.append(sentence("warn-two-patients", names))
        if one.grid.matches(other.grid):
            # Different images differ in the middle one of their slices.
            middle = len(one.array) // 2
            if all(np.array_equal(one.array[part], other.array[part]) for part in (middle, slice(None))):
                warnings.append(sentence("warn-same-image", names))
    return warnings


def may_be_hounsfield(array: np.ndarray) -> bool:
    """Whether a CT's values look like Hounsfield units, not shifted, scaled or clipped to a window."""
    low, high = float(array.min()), float(array.max())
    if low < _AIR:
        some = array[:: max(1, len(array) // 32)]
        # Interpolation changes the last digits of padding, and goes below it at its edges.
        _values, counts = np.unique(np.rint(some[some < _VACUUM]), return_counts=True)
        vacuum = counts[counts < _PADDING * counts.sum()].sum() / some.size
        return bool(vacuum <= _MOST_VACUUM and np.mean(some > _AIR) >= _LEAST_TISSUE)
    # Without air, it may be a small crop. With bone or contrast agent, even one has fat or noise below 0, and most bone
    # is not that dense.
    dense = np.mean(array > _TEETH)
    is_shifted = dense > max(_MOST_TEETH, np.mean(array > _BONE) - dense)
    is_unsigned = low >= 0 and (high > _BONE or np.mean(array == low) > _MOST_CLIPPED)
    return high - low >= _LEAST_CONTRAST and not is_shifted and not is_unsigned


def _looks_like_ct(array: np.ndarray) -> bool:
    """Whether an image has the air and the soft tissue of a CT; no MR is that far below 0, normalized or not."""
    some = array[:: max(1, len(array) // 32)]
    air, tissue = np.mean((some < -800) & (some > _VACUUM)), np.mean(abs(some) < 200)
    return bool(min(air, tissue) > 0.05)


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether an image has whole numbers from 0, few of them, in areas of one value."""
    some = array[:: max(1, len(array) // 32)]
    one, other = some[..., 1:], some[..., :-1]
    inside = (one != 0) & (other != 0)
    if some.min() != 0 or np.count_nonzero((one == other) & inside) < _LEAST_EQUAL * max(1, np.count_nonzero(inside)):
        return False
    values = np.unique(some)
    return len(values) <= _MOST_LABELS and bool((values == np.rint(values)).all())


def _whole(description: ModelDescription, volume: Volume) -> ModelSpace:
    """The space of the whole image, for a model that segments a part of it but measures all of it."""
    how = description.preparation
    try:
        return ModelSpace(volume.grid, how.orientation, how.spacing, name=volume.name)
    except UserError as error:
        if error.code != "image-too-large":
            raise
        values = {"name": volume.name, "size": error.values["size"], "model": description.title}
        raise UserError("image-too-large-to-measure", **values) from error


def _warn_where_missing(volume: Volume, wanted: np.ndarray, covered: np.ndarray, first: str) -> list[str]:
    """A warning if an image does not cover all requested voxels; an image that covers none is refused."""
    share = covered[wanted].mean() if wanted.any() else covered.any()
    if share >= _ENOUGH_SHOWN:
        return []
    if not share:
        raise UserError("channels-apart", name=volume.name, first=first)
    return [sentence("warn-partly-covered", {"name": volume.name, "share": share, "first": first})]


def _kept(array: np.ndarray, part: tuple[slice, ...]) -> np.ndarray:
    """A part of an array; a copy if nothing else uses the array, so that its other parts are freed."""
    cut = array[part]
    return cut.copy() if cut.size < array.size and array.base is None else cut


def _inside(space: ModelSpace) -> np.ndarray | None:
    """Which of the model's voxels are in the ROI; None if all are."""
    if space.roi is None:
        return None
    mask = space.roi.contains(space.grid.array_affine, space.grid.shape)
    return None if mask.all() or not mask.any() else mask


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
