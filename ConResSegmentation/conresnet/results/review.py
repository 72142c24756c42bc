"""Where to look first in a result: slices and uncertain spots, those with the most expected errors first.

Slices follow one another along the model's residual axis. What is measured in each (its area, the entropy of its
probabilities, its neighbors, and where the residual helps the disagreement of predicted and actual residual) goes into
two small regressions: a Poisson one of the wrong area, and a fractional logit of the slice's Dice (Papke and
Wooldridge, Journal of Applied Econometrics 11, 1996). Their numbers, the model's ranking, are in the package's
``review.json``; ``python -m conresnet_training export`` fits them on held-out cases. NumPy only, so that Slicer can use
it; finding spots needs SimpleITK.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conresnet.files import csv_cell, replacing
from conresnet.images import Box, Grid, Reordering, bounding_box, grown, reordering, whole_box
from conresnet.inference.labels import segment_mask
from conresnet.messages import MESSAGES, UNFITTED, reason
from conresnet.package import ModelDescription
from conresnet.package.outputs import Output, provided_maps, slice_axis
from conresnet.package.reader import ModelPackage
from conresnet.package.schema import Place, field, load, load_json

if TYPE_CHECKING:
    from conresnet.inference.segmentation import SegmentResult

COLUMNS = ("rank", "kind", "segment", "slice", "r", "a", "s", "expected_wrong_voxels", "expected_dice", "reason")
ALL = "all"

# A spot is where the probabilities leave most of one bit open: 0.8 are those of 0.24 against 0.76. In a long uncertain
# boundary all of it would be one spot; one that is longer than this is cut to where it is more uncertain still, and in
# the end into cubes of this size.
SPOT_BITS = (0.8, 0.9, 0.95, 0.98)
LONGEST_SPOT_MM = 20.0
SMALLEST_SPOT = 5
MOST_SPOTS = 50
# Dice below which a slice is called bad.
BAD_DICE = 0.8

# Message codes for a value below and above the mean of the feature, see ``conresnet.messages``.
_REASONS = {
    "log_area": ("reason-small", "reason-large"),
    "log_entropy": ("", "reason-uncertain"),
    "log_change": ("", "reason-changing"),
    "overlap": ("reason-little-overlap", ""),
    "log_disagreement": ("", "reason-disagreement"),
}

RANKING_FILE = "review.json"
FORMAT, FORMAT_VERSION = "conresnet-review", 1
# What ``slice_features`` measures.
FEATURES = ("log_area", "log_entropy", "log_change", "overlap", "log_disagreement")
_LARGEST_RANKING = 2**18
_MOST_MM2 = 1e6


@dataclass(frozen=True)
class Regressions:
    """Predict the errors of a slice from its features.

    The wrong area in mm2 is ``exp(wrong_intercept + wrong_weights . features)``. The Dice of the slice is
    ``1 / (1 + exp(-(dice_intercept + dice_weights . features)))``.
    """

    means: tuple[float, ...] = field("mean of each feature where it was fitted; says which features stand out")
    wrong_intercept: float = field("of the wrong area in mm2", low=-1e6, high=1e6)
    wrong_weights: tuple[float, ...] = field("one per feature", low=-1e6, high=1e6)
    dice_intercept: float = field("of the slice's Dice", low=-1e6, high=1e6)
    dice_weights: tuple[float, ...] = field("one per feature", low=-1e6, high=1e6)

    def wrong_mm2(self, features: np.ndarray) -> np.ndarray:
        """Expected wrong area of each slice; ``features`` is (n, features)."""
        return np.exp(np.minimum(self.wrong_intercept + features @ self.wrong_weights, np.log(_MOST_MM2)))

    def dice(self, features: np.ndarray) -> np.ndarray:
        """Expected Dice of each slice; ``features`` is (n, features)."""
        return 1 / (1 + np.exp(-np.clip(self.dice_intercept + features @ self.dice_weights, -50, 50)))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The contents of a package's ``review.json``."""

    format: str = field("always `conresnet-review`", choices=(FORMAT,))
    format_version: int = field("version of the format of review.json", low=1, high=FORMAT_VERSION)
    what: str = field("how it was fitted and measured")
    features: tuple[str, ...] = field("features of a slice, in order", choices=FEATURES, least=1, unique=True)
    whole: Regressions = field("for all segments of a slice together")
    segments: Regressions = field("for each segment of a slice")
    spot_rate: float = field("wrong voxels per voxel of an uncertain spot", low=0, high=1)
    note: str = field("a sentence for users about how good the ranking is", default="")
    figures: dict[str, Any] = field("how good it is, cross-validated over the cases", default=None)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Lists whose length does not match the features."""
        for name in ("whole", "segments"):
            for key in ("means", "wrong_weights", "dice_weights"):
                if len(getattr(getattr(self, name), key)) != len(self.features):
                    yield f"{name}.{key}", f"must have {len(self.features)} entries, one per feature"


_FALLBACK = Regressions(
    means=(4.4, 3.3), wrong_intercept=-0.2, wrong_weights=(0.0, 0.95), dice_intercept=0.1, dice_weights=(1.3, -1.3)
)
FALLBACK = Ranking(
    format=FORMAT,
    format_version=FORMAT_VERSION,
    what="Fixed weights, rounded from those of the hippocampus model.",
    features=("log_area", "log_entropy"),
    whole=_FALLBACK,
    segments=_FALLBACK,
    spot_rate=0.45,
    note=MESSAGES["review-not-fitted"],
)


def read_ranking(package: ModelPackage) -> Ranking:
    """The ranking of a package, or `FALLBACK` if it has none.

    Raises UserError ``package-json`` or ``package-description``, or as ``ModelPackage.read_file``.
    """
    entry = package.description.files.get(RANKING_FILE)
    if entry is None:
        return FALLBACK
    place = Place(str(package.path / RANKING_FILE))
    if entry.bytes > _LARGEST_RANKING:
        place.refuse(f"has {entry.bytes} bytes")
    ranking = load(Ranking, load_json(package.read_file(RANKING_FILE), place.source), place, FORMAT_VERSION)
    if "log_disagreement" in ranking.features and "residual_difference" not in provided_maps(package.description):
        place.inside("features").refuse("needs a residual, which this model does not predict")
    return ranking


@dataclass(frozen=True)
class ReviewRow:
    """One place worth checking.

    Args:
        rank: from 1, the most expected wrong voxels first.
        kind: "slice" or "spot".
        segment: its name, or "all".
        slice: number along the voxel axis of the image that is closest to the residual axis, from 0.
        r, a, s: a point of the place in mm.
        expected_dice: of the slice; None for a spot.
        reason: in English; ``reason_codes`` are the same for ``conresnet.messages.reason``.
    """

    rank: int
    kind: str
    segment: str
    slice: int
    r: float
    a: float
    s: float
    expected_wrong_voxels: float
    expected_dice: float | None
    reason: str
    reason_codes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Slices:
    """A result slice by slice along the residual axis, in the model's direction; see ``Slices.of``.

    Args:
        labels, regions, output, grid: see ``SegmentResult``.
        orientation: of the model's arrays, such as "SAR".
        axis: of the model's arrays, along which slices follow one another (``conresnet.package.outputs.slice_axis``).
        bits: the entropy at an uncertainty of 1: of a choice among all classes, or of a yes or no for regions.
    """

    labels: np.ndarray
    regions: np.ndarray | None
    output: Output
    grid: Grid
    orientation: str
    axis: int
    bits: float

    @classmethod
    def of(cls, result: SegmentResult, description: ModelDescription) -> Slices:
        """The slices of a result of a model."""
        output = description.output
        bits = float(np.log2(len(output.segments) + 1)) if output.kind == "labels" else 1.0
        how = description.preparation.orientation, slice_axis(description), bits
        return cls(result.labels.array, result.regions, result.output, result.labels.grid, *how)

    @cached_property
    def _reorder(self) -> Reordering:
        return reordering(self.grid, self.orientation)

    @cached_property
    def _grid(self) -> Grid:
        return self._reorder.grid(self.grid)

    def __len__(self) -> int:
        return self._grid.shape[self.axis]

    @property
    def voxel_axis(self) -> int:
        """The axis of ``labels`` that the slices are numbered along: 0, 1 or 2 for k, j, i."""
        return self._reorder.axes[self.axis]

    @property
    def pixel_mm2(self) -> float:
        """Area of a voxel in a slice."""
        return self.grid.voxel_volume / float(self.grid.spacing[::-1][self.voxel_axis])

    def number(self, place: int) -> int:
        """The number of a slice in the image, for one in the model's direction."""
        return len(self) - 1 - place if self._reorder.flips[self.axis] else place

    def along(self, array: np.ndarray) -> np.ndarray:
        """An array [..., k, j, i] as a view [slice, ..., row, column] in the model's direction."""
        return np.moveaxis(self._reorder.view(array), self.axis - 3, 0)

    def mask(self, place: int, segment: int) -> np.ndarray:
        """(rows, columns) bool of a slice: all segments together (0), or one (1 + its index)."""
        labels = self.along(self.labels)[place]
        if segment == 0:
            return labels > 0
        regions = None if self.regions is None else self.along(self.regions)[place]
        return segment_mask(labels, regions, self.output, segment - 1)

    def held(self, place: int) -> list[int]:
        """Segments in a slice, numbered as for ``mask``; 0 comes first if there are any."""
        if self.regions is None:
            counts = np.bincount(self.along(self.labels)[place].ravel(), minlength=256)
            parts = [index for index, item in enumerate(self.output.segments, start=1) if counts[item.label]]
        else:
            parts = [index for index in range(1, len(self.output.segments) + 1) if self.mask(place, index).any()]
        return [0, *parts] if parts else []

    def point(self, place: int, mask: np.ndarray) -> tuple[float, float, float]:
        """RAS mm of the voxel of a slice's mask that is closest to its center."""
        voxels = np.argwhere(mask)
        nearest = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return tuple(float(x) for x in self._grid.to_ras(np.insert(nearest, self.axis, place)))


@dataclass(frozen=True, eq=False)
class SliceFeatures:
    """Measurements of a segment in one slice.

    Args:
        place: of the slice, in the model's direction.
        segment: 0 for all, else 1 + the segment's index.
        values: by the names in `FEATURES`; "log_disagreement" only where the residual was given.
        is_end: whether a neighboring slice does not contain the segment.
        point: RAS mm.
    """

    place: int
    segment: int
    values: Mapping[str, float]
    is_end: bool
    point: tuple[float, float, float]


def slice_features(
    slices: Slices, entropy: np.ndarray, difference: np.ndarray | None = None, check: Callable[[], None] = lambda: None
) -> Iterator[SliceFeatures]:
    """Measure every slice that contains a segment, in mm2, so that the result does not depend on the voxel size.

    Args:
        entropy: (K + 1, slices): sum over each slice of the uncertainty, then of each segment's binary entropy.
        difference: the map "residual_difference", [c, k, j, i].
        check: called for each slice; an exception that it raises ends the work.
    """
    unit, count = slices.pixel_mm2, len(slices)
    disagreements = None if difference is None else slices.along(difference)
    for place in range(count):
        check()
        for segment in slices.held(place):
            mask = slices.mask(place, segment)
            area = np.count_nonzero(mask)
            others = [slices.mask(other, segment) for other in (place - 1, place + 1) if 0 <= other < count]
            areas = [np.count_nonzero(other) for other in others] + [0] * (2 - len(others))
            shared = sum(np.count_nonzero(other & mask) for other in others)
            values = {
                "log_area": np.log1p(area * unit),
                "log_entropy": np.log1p(entropy[segment, place] * unit),
                "log_change": np.log1p(sum(abs(other - area) for other in areas) * unit),
                "overlap": shared / (2 * area),
            }
            if disagreements is not None:
                part = disagreements[place]
                part = part if segment == 0 or len(part) == 1 else part[segment - 1]
                values["log_disagreement"] = np.log1p(float(part.sum(dtype=np.float64)) * unit)
            yield SliceFeatures(place, segment, values, 0 in areas, slices.point(place, mask))


def make_review(
    slices: Slices,
    entropy: np.ndarray,
    uncertainty: np.ndarray,
    ranking: Ranking,
    difference: np.ndarray | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[ReviewRow]:
    """The review list of a result.

    Args:
        entropy, difference, check: see ``slice_features``; the difference where ``ranking`` uses it.
        uncertainty: the map [k, j, i].
    """
    names = [ALL, *slices.output.names]
    found = []
    for item in slice_features(slices, entropy, difference, check):
        regressions = ranking.segments if item.segment else ranking.whole
        features = np.array([item.values[name] for name in ranking.features])
        wrong = float(regressions.wrong_mm2(features)) / slices.pixel_mm2
        dice = float(regressions.dice(features))
        reasons = _reasons(item, features, regressions, ranking.features, dice)
        reasons += (UNFITTED,) if ranking is FALLBACK else ()
        found.append(("slice", names[item.segment], slices.number(item.place), item.point, wrong, dice, reasons))
    found += _spots(slices, uncertainty, ranking.spot_rate)
    found.sort(key=lambda row: (-round(row[4], 2), row[0], row[2], row[1]))
    rows = []
    for rank, (kind, segment, number, point, wrong, dice, reasons) in enumerate(found, start=1):
        r, a, s = (round(x, 2) for x in point)
        dice = None if dice is None else round(dice, 4)
        rows.append(ReviewRow(rank, kind, segment, number, r, a, s, round(wrong, 2), dice, reason(reasons), reasons))
    return rows


def _reasons(
    item: SliceFeatures, features: np.ndarray, regressions: Regressions, names: Sequence[str], dice: float
) -> tuple[str, ...]:
    """What sets a slice apart: the features that lower its Dice most if that is low, or else add most wrong voxels.

    A boundary grows with the square root of the area, and its entropy with it. So much of the entropy is counted as the
    area's, and only what exceeds it as uncertainty.
    """
    weights = -np.array(regressions.dice_weights) if dice < BAD_DICE else np.array(regressions.wrong_weights)
    distance = features - regressions.means
    if {"log_area", "log_entropy"} <= set(names):
        area, entropy = names.index("log_area"), names.index("log_entropy")
        weights[area] += weights[entropy] / 2
        distance[entropy] -= distance[area] / 2
    pushes = weights * distance
    codes = ["reason-end"] if item.is_end else []
    for index in np.argsort(-pushes)[:2]:
        code = _REASONS[names[index]][int(distance[index] > 0)]
        if pushes[index] > 0.1 and code:
            codes.append(code)
    return tuple(codes) or ("reason-typical",)


def find_spots(uncertainty: np.ndarray, bits: float, spacing: np.ndarray) -> tuple[np.ndarray, Box, list[int]]:
    """Connected regions where the model is undecided between two labels; voxels connect through faces.

    Args:
        uncertainty: the map [k, j, i].
        bits: see ``Slices``.
        spacing: mm along i, j, k.

    Returns:
        Each voxel's spot (from 1; 0 is none) in a box around all of them; that box; and the voxels of each spot.
    """
    import SimpleITK as sitk

    levels = np.array(SPOT_BITS) / bits
    open_ = uncertainty >= np.asarray(levels[0], uncertainty.dtype)
    box = bounding_box(open_)
    if box is None:
        return np.zeros((0, 0, 0), np.uint32), whole_box((0, 0, 0)), []
    # Larger by a voxel, so that what is around a spot is in the box, too.
    box = grown(box, (1, 1, 1), open_.shape)
    uncertainty, open_ = uncertainty[box], open_[box]
    spots, sizes = np.zeros(open_.shape, np.uint32), []
    sorting, shapes = sitk.RelabelComponentImageFilter(), sitk.LabelShapeStatisticsImageFilter()
    sorting.SetMinimumObjectSize(SMALLEST_SPOT)
    for level in levels:
        open_ &= uncertainty >= np.asarray(level, uncertainty.dtype)
        components = sorting.Execute(sitk.ConnectedComponent(sitk.GetImageFromArray(open_.astype(np.uint8))))
        shapes.Execute(components)
        extents = [np.array(shapes.GetBoundingBox(label)[3:]) * spacing for label in shapes.GetLabels()]
        found, counts = sitk.GetArrayFromImage(components), sorting.GetSizeOfObjectsInPixels()
        numbers = np.zeros(len(counts) + 1, np.uint32)
        for label, (extent, count) in enumerate(zip(extents, counts, strict=True), start=1):
            if extent.max() <= LONGEST_SPOT_MM:
                sizes.append(int(count))
                numbers[label] = len(sizes)
        spots += numbers[found]
        open_ = (numbers[found] == 0) & (found > 0)
    voxels = np.argwhere(open_)
    cubes = np.unique((voxels * spacing[::-1] // LONGEST_SPOT_MM).astype(int), axis=0, return_inverse=True)[1].ravel()
    for cube in range(cubes.max(initial=-1) + 1):
        piece = voxels[cubes == cube]
        if len(piece) >= SMALLEST_SPOT:
            sizes.append(len(piece))
            spots[tuple(piece.T)] = len(sizes)
    return spots, box, sizes


def _spots(slices: Slices, uncertainty: np.ndarray, rate: float) -> list[tuple]:
    import SimpleITK as sitk

    components, box, sizes = find_spots(uncertainty, slices.bits, slices.grid.spacing)
    if not sizes:
        return []
    origin, labels = np.array([part.start for part in box]), slices.labels[box]
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.GetImageFromArray(components))
    names = {segment.label: segment.name for segment in slices.output.segments}
    rows = []
    for spot in sorted(range(1, len(sizes) + 1), key=lambda spot: -sizes[spot - 1])[:MOST_SPOTS]:
        i, j, k, *extent = shapes.GetBoundingBox(spot)
        first = np.maximum(np.array([k, j, i]) - 1, 0)
        part = tuple(slice(a, b + 1) for a, b in zip(first, np.array([k, j, i]) + extent[::-1], strict=True))
        voxels = np.argwhere(components[part] == spot)
        center = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()] + first + origin
        # The most frequent segment in the spot and around it.
        values, counts = np.unique(labels[part], return_counts=True)
        inside = {int(value): count for value, count in zip(values, counts, strict=True) if value}
        segment = names[max(inside, key=inside.get)] if inside else ALL
        point = tuple(float(x) for x in slices.grid.to_ras(center))
        number = int(center[slices.voxel_axis])
        reasons = ("reason-uncertain" if inside else "reason-missed",)
        rows.append(("spot", segment, number, point, rate * sizes[spot - 1], None, reasons))
    return rows


def write_review(rows: Sequence[ReviewRow | Mapping[str, Any]], path: Path) -> None:
    """Write ``review.csv``; a spot's Dice is an empty field. Raises UserError "disk-full" or "cannot-write"."""
    values = [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "segment": csv_cell(row["segment"])} for row in values)
