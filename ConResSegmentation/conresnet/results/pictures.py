"""Pictures of a result for its report: slices with outlines, maps in color, shaded surfaces. NumPy and SimpleITK only.

Slicer's Python has no matplotlib, and neither has a server that only segments.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from conresnet.images import Box, Volume, bounding_box, grown, reordering, whole_box
from conresnet.inference.labels import segment_boxes, segment_mask
from conresnet.package.outputs import Output

# Indices increase to inferior, posterior and left, so that slices are shown as radiologists view them.
ORIENTATION = "IPL"
PLANES = ("axial", "coronal", "sagittal")
MARGIN_MM = 10.0
PANEL, GAP = 300, 6
# Colors from black over red to yellow, even in brightness (those of matplotlib's inferno, CC0).
_COLORS = bytes.fromhex("000004 280b54 65156e 9f2a63 d44842 f57d15 fac127 fcffa4")
HEAT = np.frombuffer(_COLORS, np.uint8).reshape(-1, 3).astype(np.float32)
_SURFACE_VOXELS = 150
# Number of values from which the display range is estimated.
_SAMPLE = 100_000
# From the patient's left, front and above; and from the right, behind and above. RAS.
_VIEWS = ((-0.6, 0.7, 0.4), (0.6, -0.7, 0.4))


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of (height, width, 3) uint8, made in memory: a full temporary folder must not cost a result."""
    height, width, _ = pixels.shape
    # Each row as its difference from the one above (filter type 2), which compresses better.
    lines = np.full((height, 1 + 3 * width), 2, np.uint8)
    lines[:, 1:] = np.diff(pixels.reshape(height, -1), axis=0, prepend=np.uint8(0))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # 8 bits, RGB.
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines.tobytes())), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Scene:
    """A result cut to its segments with a margin, along the axes nearest to the patient's; arrays are in `ORIENTATION`.

    Args:
        image: the image.
        labels, regions, output: see ``SegmentResult``; on the image's grid.
    """

    def __init__(self, image: Volume, labels: np.ndarray, regions: np.ndarray | None, output: Output):
        self._reorder = reordering(image.grid, ORIENTATION)
        self.output = output
        # mm along the axes.
        self.spacing = self._reorder.grid(image.grid).spacing[::-1]
        labels = self._reorder.view(labels)
        found = bounding_box(labels) or whole_box(labels.shape)
        self._box = grown(found, np.ceil(MARGIN_MM / self.spacing).astype(int), labels.shape)
        self.image, self.labels = self.cut(image.array), labels[self._box]
        self.regions = None if regions is None else self.cut(regions)
        step = max(1, round((self.image.size / _SAMPLE) ** (1 / 3)))
        some = self.image[::step, ::step, ::step].astype(np.float32)
        some = some[np.isfinite(some)]
        # The values that are shown as black and as white.
        self.window = tuple(float(x) for x in np.percentile(some, (1, 99.5))) if some.size else (0.0, 1.0)

    @cached_property
    def boxes(self) -> list[Box | None]:
        """The box around each segment; None for one that is not there."""
        return segment_boxes(self.labels, self.regions, self.output)

    def mask(self, index: int) -> np.ndarray:
        """Where a segment is in its box: bool."""
        box = self.boxes[index]
        regions = None if self.regions is None else self.regions[(slice(None), *box)]
        return segment_mask(self.labels[box], regions, self.output, index)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The part of an array [..., k, j, i] on the image's grid that the scene shows."""
        return self._reorder.view(array)[(..., *self._box)]

    def place(self, index: int | None) -> list[int]:
        """Along each axis the slice with most of a segment, or of all for None; the middle if there is nothing."""
        box = self.boxes[index] if index is not None else whole_box(self.labels.shape)
        mask = self.labels > 0 if index is None else self.mask(index) if box else np.zeros((1, 1, 1), bool)
        if not mask.any():
            return [side // 2 for side in self.labels.shape]
        most = [int(np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
        return [part.start + place for part, place in zip(box, most, strict=True)]

    def slices(
        self, place: Sequence[int], shown: np.ndarray | None = None, limits: tuple[float, float] = (0.0, 1.0)
    ) -> np.ndarray:
        """(height, width, 3) uint8: an axial, a coronal and a sagittal slice, with the outlines of all segments.

        Args:
            place: which slice along each axis.
            shown: a map in colors over the image.
            limits: its values with the first and the last color; near the first it is transparent.
        """
        panels = []
        for axis in range(3):
            rows, columns = (other for other in range(3) if other != axis)
            extent = np.array([self.labels.shape[side] * self.spacing[side] for side in (rows, columns)])
            size = np.maximum(1, np.rint(PANEL * extent / extent.max())).astype(int)

            def drawn(array: np.ndarray, axis: int = axis, size: np.ndarray = size) -> np.ndarray:
                return _resized(_slice(array, axis, place[axis]).astype(np.float32), size)

            low, high = self.window
            gray = np.clip((np.nan_to_num(drawn(self.image)) - low) / max(high - low, 1e-6), 0, 1)
            picture = np.repeat(gray[..., None], 3, axis=2)
            if shown is not None:
                values = np.clip((drawn(shown) - limits[0]) / max(limits[1] - limits[0], 1e-6), 0, 1)
                weight = (0.75 * np.clip(values / 0.15, 0, 1))[..., None]
                picture = (1 - weight) * picture + weight * heat(values)
            labels = _slice(self.labels, axis, place[axis])
            regions = None if self.regions is None else _slice(self.regions, axis + 1, place[axis])
            for index, item in enumerate(self.output.segments):
                mask = segment_mask(labels, regions, self.output, index)
                if mask.any():
                    picture[_edge(_resized(mask.astype(np.float32), size) > 0.5)] = np.array(item.color) / 255
            panel = np.zeros((PANEL, PANEL, 3), np.float32)
            first = (PANEL - size) // 2
            panel[first[0] : first[0] + size[0], first[1] : first[1] + size[1]] = picture
            panels += [panel, np.ones((PANEL, GAP, 3), np.float32)]
        return np.rint(255 * np.concatenate(panels[:-1], axis=1)).astype(np.uint8)

    def surfaces(self) -> np.ndarray:
        """The segments' surfaces from two sides, shaded, next to each other: (height, width, 3) uint8.

        Regions that include others show what is inside them.
        """
        segments = self.output.segments
        found = [index for index, box in enumerate(self.boxes) if box]
        # Finer than a pixel would be lost.
        finest = float((np.array(self.labels.shape) * self.spacing).max()) / PANEL
        meshes = {index: _surface_points(self.mask(index), self.boxes[index], self.spacing, finest) for index in found}
        panels = []
        for view in _VIEWS:
            picture = np.ones((2 * PANEL, 2 * PANEL, 3), np.float32)
            layers = _layers([meshes[index] for index in found], np.array(view))
            # Opaque segments hide each other by depth; what is translucent is laid over them.
            nearest = np.full(picture.shape[:2], np.inf, np.float32)
            for through in (False, True):
                for index, (depth, light) in zip(found, layers, strict=True):
                    if bool(segments[index].includes) != through:
                        continue
                    seen = depth < nearest
                    color = light[seen][:, None] * np.array(segments[index].color) / 255
                    picture[seen] = 0.65 * picture[seen] + 0.35 * color if through else color
                    if not through:
                        nearest[seen] = depth[seen]
            panels.append(picture.reshape(PANEL, 2, PANEL, 2, 3).mean(axis=(1, 3)))
        return np.rint(255 * np.clip(np.concatenate(panels, axis=1), 0, 1)).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """Colors (..., 3) from 0 to 1 of values from 0 to 1."""
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, places, HEAT[:, part] / 255) for part in range(3)], axis=-1)


def _slice(array: np.ndarray, axis: int, place: int) -> np.ndarray:
    """One slice as a view; ``take`` would copy a whole array that is not stored in this order."""
    return array[(slice(None),) * axis + (place,)]


def _resized(slice_: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A slice in another size, linearly between its voxels."""
    for axis, count in enumerate(size):
        places = np.clip((np.arange(count) + 0.5) * slice_.shape[axis] / count - 0.5, 0, slice_.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, slice_.shape[axis] - 1)
        weight = (places - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        slice_ = slice_.take(low, axis) * (1 - weight) + slice_.take(high, axis) * weight
    return slice_


def _edge(mask: np.ndarray) -> np.ndarray:
    """The outline of a mask, two pixels wide, inside it."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _surface_points(
    mask: np.ndarray, box: Box, spacing: np.ndarray, finest: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Points on the smoothed surface of a mask, their outward normals, and the distance between points, not finer than
    ``finest`` mm.

    Both are (n, 3) in RAS mm from the first voxel of the array in which the mask has a box.
    """
    import SimpleITK as sitk

    # Room for smoothing, which also closes what touches the border.
    padded = np.pad(mask, 3).astype(np.float32)
    image = sitk.GetImageFromArray(padded)
    image.SetSpacing([float(side) for side in spacing[::-1]])
    extent = np.array(padded.shape) * spacing
    step = max(float(extent.max()) / _SURFACE_VOXELS, finest)
    smooth = sitk.SmoothingRecursiveGaussian(image, 0.7 * float(spacing.max()))
    # A gradient needs two voxels along each axis.
    size = [max(2, int(side)) for side in np.ceil(extent[::-1] / step)]
    fine = sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, [0.0, 0.0, 0.0], [step] * 3)
    values = sitk.GetArrayFromImage(fine)
    # A segment thinner than the smoothing still has a surface.
    level = min(0.5, 0.5 * float(values.max()))
    inside = values > level
    core = np.zeros_like(inside)
    core[1:-1, 1:-1, 1:-1] = inside[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for shift in (-1, 1):
            core &= np.roll(inside, shift, axis)
    shell = np.argwhere(inside & ~core)
    gradient = np.stack([part[tuple(shell.T)] for part in np.gradient(values)], axis=1)
    # Axes I, P, L to R, A, S; normals point from high to low values.
    points = -(shell * step + ([part.start for part in box] - np.array(3)) * spacing)[:, ::-1]
    normals = gradient[:, ::-1]
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6), step


def _layers(
    meshes: Sequence[tuple[np.ndarray, np.ndarray, float]], toward: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each surface as seen from a direction: depth (infinite where it is not) and light (0 to 1) of square pictures."""
    if not meshes:
        return []
    toward = toward / np.linalg.norm(toward)
    right = np.cross((0, 0, 1), toward)
    right /= np.linalg.norm(right)
    up = np.cross(toward, right)
    side = 2 * PANEL
    projected = [points @ np.stack([right, -up, -toward], axis=1) for points, _, _ in meshes]
    low = np.min([part.min(axis=0) for part in projected], axis=0)
    high = np.max([part.max(axis=0) for part in projected], axis=0)
    scale = 0.9 * side / max(float((high - low)[:2].max()), 1e-6)
    offset = side / 2 - scale * (low + high)[:2] / 2
    lamp = 0.8 * toward + 0.3 * up - 0.3 * right
    layers = []
    for place, (_, normals, step) in zip(projected, meshes, strict=True):
        light = 0.3 + 0.7 * np.clip(normals @ (lamp / np.linalg.norm(lamp)), 0, 1)
        depth, shade = np.full((side, side), np.inf, np.float32), np.zeros((side, side), np.float32)
        order = np.argsort(-place[:, 2])  # the nearest last, which numpy keeps
        pixel = np.rint(place[order, :2] * scale + offset).astype(int)
        reach = int(np.ceil(0.75 * step * scale))
        for x in range(-reach, reach + 1):
            for y in range(-reach, reach + 1):
                column, row = np.clip(pixel[:, 0] + x, 0, side - 1), np.clip(pixel[:, 1] + y, 0, side - 1)
                near = np.full((side, side), np.inf, np.float32)
                near[row, column] = place[order, 2]
                lit = np.zeros((side, side), np.float32)
                lit[row, column] = light[order]
                closer = near < depth
                depth[closer], shade[closer] = near[closer], lit[closer]
        layers.append((depth, shade))
    return layers
