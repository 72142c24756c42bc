"""Measurements of one segment in one case, on the image's own grid, and their summary over cases.

If a segment is empty

- in both label maps, Dice and surface Dice are 1, because it was correctly left out, and there is no distance;
- in only one, Dice and surface Dice are 0, and there is no distance. The summary counts such cases as "missed" if the
  reference has the segment and as "invented" if only the result has it.

A missing distance is None and part of no mean, because neither 0 nor the size of the image would say how far off the
result is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from conresnet.images import Volume, bounding_box, whole_box
from conresnet.inference.labels import region_mask
from conresnet.package.outputs import Segment
from conresnet_training.data import DataSet
from conresnet_training.reporting import case_count

Figures = dict[str, float | None]

PERCENTILE = 95.0
DECIMALS = 8


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        unit: "" for a ratio.
        better: "higher", "lower", or "zero" for one with a sign.
        decimals: shown.
    """

    title: str
    unit: str
    better: str
    decimals: int

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "dice": Metric("Dice", "", "higher", 3),
    "surface_dice": Metric("Surface Dice", "", "higher", 3),
    "hd95": Metric("Hausdorff 95%", "mm", "lower", 2),
    "hd": Metric("Hausdorff", "mm", "lower", 2),
    "volume_difference_ml": Metric("Volume difference", "mL", "zero", 3),
}
VOLUME = "volume_ml"

# The measurements of every case and segment.
Cases = Mapping[str, Mapping[str, Figures]]

OVERALL = "overall"
# Volumes of different segments are not averaged, because errors in opposite directions would cancel.
AVERAGED = tuple(name for name in METRICS if name != "volume_difference_ml")
LEAST_CASES_OF_AN_INTERVAL = 5
RESAMPLES = 9999
SEED = 0


def segment_figures(
    found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], voxel_ml: float, tolerance_mm: float
) -> Figures:
    """Compare one segment of a result with the reference.

    Surfaces are the voxels of a mask with a face neighbor outside of it, distances are between voxel centers, both by
    MONAI. The Hausdorff distance is the largest distance from any voxel of one surface to the other surface; its 95th
    percentile is the larger of the two directions' 95th percentiles, each over its own surface. Surface Dice is the
    share of both surfaces' voxels within the tolerance of the other surface (not weighted by area).

    Args:
        found, truth: bool [k, j, i].
        spacing: mm along k, j, i.
        voxel_ml: volume of a voxel.
        tolerance_mm: of surface Dice.

    Returns:
        "dice", "surface_dice", "hd95" and "hd" (mm), "volume_difference_ml" (result minus reference), and
        "volume_ml", the reference's.
    """
    size_found, size_truth = np.count_nonzero(found), np.count_nonzero(truth)
    both = size_found + size_truth
    figures: Figures = {
        "dice": 2 * np.count_nonzero(found & truth) / both if both else 1.0,
        "surface_dice": 0.0 if both else 1.0,
        "hd95": None,
        "hd": None,
        "volume_difference_ml": (int(size_found) - int(size_truth)) * voxel_ml,
        VOLUME: int(size_truth) * voxel_ml,
    }
    if size_found and size_truth:
        figures |= _surface_figures(found, truth, spacing, tolerance_mm)
    return {name: None if value is None else round(float(value), DECIMALS) for name, value in figures.items()}


def _surface_figures(found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> Figures:
    # Imported here because MONAI takes seconds to import, and comparing evaluations does not need it.
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    box = bounding_box(found | truth)
    surfaces = get_mask_edges(found[box], truth[box])
    ways = [get_surface_distance(*pair, spacing=list(spacing)) for pair in (surfaces, surfaces[::-1])]
    return {
        "surface_dice": sum(np.count_nonzero(way <= tolerance_mm) for way in ways) / sum(way.size for way in ways),
        "hd95": max(np.percentile(way, PERCENTILE) for way in ways),
        "hd": max(way.max() for way in ways),
    }


@dataclass(frozen=True)
class SegmentValues:
    """The label values of one segment.

    Args:
        truth: in the reference's label map.
        found: in the result's, where regions inside it may be painted over it with their own values.
    """

    truth: tuple[int, ...]
    found: tuple[int, ...]


def values_of_model(segments: Sequence[Segment], targets: Mapping[str, Sequence[int]]) -> dict[str, SegmentValues]:
    """For the segments of a model trained for ``targets``; a region also has the values of those inside it."""
    painted = {segment.name: segment.label for segment in segments}
    return {name: SegmentValues(tuple(targets[name]), tuple(_inside(name, targets, painted))) for name in painted}


def values_of_data_set(data_set: DataSet) -> dict[str, SegmentValues]:
    """For label maps with the data set's own values, or the values its regions are painted with.

    A segment of several values is found by any of them: a model writes only the first, other tools may keep them all.
    """
    if not data_set.regions:
        own = {name: data_set.values_of_labels.get(name, (value,)) for value, name in sorted(data_set.labels.items())}
        return {name: SegmentValues(values, values) for name, values in own.items()}
    return {
        name: SegmentValues(own, tuple(sorted({*own, *_inside(name, data_set.regions, data_set.region_labels)})))
        for name, own in data_set.regions.items()
    }


def _inside(name: str, members: Mapping[str, Sequence[int]], painted: Mapping[str, int]) -> list[int]:
    return sorted(painted[other] for other in members if set(members[other]) <= set(members[name]))


def crossing(values: Mapping[str, SegmentValues]) -> tuple[str, str] | None:
    """The first two regions that overlap while neither is inside the other, if any.

    Where they overlap, a label map can only show one of them.
    """
    for (name, item), (other_name, other) in combinations(values.items(), 2):
        shared = set(item.truth) & set(other.truth)
        if shared and shared != set(item.truth) and shared != set(other.truth):
            return name, other_name
    return None


def compare_label_maps(
    found: Volume,
    truth: Volume,
    values: Mapping[str, SegmentValues],
    tolerance_mm: float,
    regions: np.ndarray | None = None,
) -> dict[str, Figures]:
    """Measure every segment of a case whose label maps are on the same grid.

    Args:
        regions: overlapping regions of the result in full, as in ``SegmentResult``, in the order of ``values``; they
            are measured instead of ``found``.
    """
    box = bounding_box((found.array != 0) | (truth.array != 0)) or whole_box(truth.array.shape)
    ours, theirs = found.array[box], truth.array[box]
    packed = None if regions is None else regions[(slice(None), *box)]
    spacing, voxel_ml = truth.grid.spacing[::-1], truth.grid.voxel_volume / 1000
    figures = {}
    for place, (name, item) in enumerate(values.items()):
        mask = np.isin(ours, item.found) if packed is None else region_mask(packed, place)
        figures[name] = segment_figures(mask, np.isin(theirs, item.truth), spacing, voxel_ml, tolerance_mm)
    return figures


def summarize(cases: Cases) -> dict[str, Any]:
    """Summarize the measurements of every case and segment.

    Returns:
        "segments": for each segment and metric "cases" (with a value), "mean", "interval" (see ``mean_interval``),
        "median", "lower_quartile", "upper_quartile", "lowest", "highest"; None for a metric without any value.
        "overall": the same for the mean over each case's segments. "empty": for each segment the number of cases in
        which it was "missed", "invented", or correctly "absent".
    """
    segments = next(iter(cases.values()))
    return {
        OVERALL: {metric: describe(per_case(cases, OVERALL, metric).values()) for metric in AVERAGED},
        "segments": {
            segment: {metric: describe(per_case(cases, segment, metric).values()) for metric in METRICS}
            for segment in segments
        },
        "empty": {segment: _empty([rows[segment] for rows in cases.values()]) for segment in segments},
    }


def per_case(cases: Cases, segment: str, metric: str) -> dict[str, float]:
    """The values of the cases that have one; for ``OVERALL`` the mean over the segments that have one."""
    found = {}
    for case, rows in cases.items():
        chosen = rows.values() if segment == OVERALL else [rows[segment]]
        values = [row[metric] for row in chosen if row[metric] is not None]
        if values:
            found[case] = float(np.mean(values))
    return found


def describe(values: Sequence[float]) -> dict[str, Any] | None:
    """One summary, rounded; None if there are no values."""
    values = np.array(list(values), dtype=float)
    if not values.size:
        return None
    quartiles = np.percentile(values, [25, 50, 75])
    numbers = {
        "mean": values.mean(),
        "median": quartiles[1],
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "lowest": values.min(),
        "highest": values.max(),
    }
    return {
        "cases": int(values.size),
        **{name: round(float(number), 6) for name, number in numbers.items()},
        "interval": mean_interval(values),
    }


def mean_interval(values: np.ndarray) -> list[float] | None:
    """The 95% percentile bootstrap interval of the mean over cases, rounded; the same values give the same interval.

    None for fewer than five cases: resampling so few gives an interval that is far too narrow.
    """
    if values.size < LEAST_CASES_OF_AN_INTERVAL:
        return None
    # In blocks, so that a thousand cases do not take a thousand times 9999 numbers at once.
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=999, vectorized=True, method="percentile", rng=SEED
    )
    return [round(float(end), 6) for end in result.confidence_interval]


def _empty(rows: Sequence[Figures]) -> dict[str, int]:
    """How often the segment is absent from one label map or both."""
    counts = {"missed": 0, "invented": 0, "absent": 0}
    for row in rows:
        if row["hd"] is None:
            kind = "absent" if row["dice"] == 1 else "missed" if row["volume_difference_ml"] < 0 else "invented"
            counts[kind] += 1
    return counts


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """A sentence about every segment that was empty in some case."""
    words = {
        "missed": "missed in {}",
        "invented": "invented in {}",
        "absent": "correctly absent in {}, which counts as a Dice of 1",
    }
    sentences = []
    for segment, counts in summary["empty"].items():
        parts = [words[kind].format(case_count(count)) for kind, count in counts.items() if count]
        if parts:
            sentences.append(f"{segment} was {', '.join(parts)}; these cases have no distances.")
    return sentences


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as text, one line per segment and metric."""
    rows = [("segment", "metric", "mean", "95% interval", "median", "quartiles", "lowest", "highest", "cases")]
    blocks = dict(summary["segments"])
    if len(blocks) > 1:
        blocks["mean of segments"] = summary[OVERALL]
    for segment, metrics in blocks.items():
        for name, found in metrics.items():
            if found is not None:
                rows.append((segment, METRICS[name].heading, *summary_cells(name, found)))
    return text_table(rows)


def summary_cells(metric: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Mean, interval, median, quartiles, lowest, highest and number of cases as text."""

    def shown(*names: str) -> str:
        return " to ".join(f"{found[name]:.{METRICS[metric].decimals}f}" for name in names)

    interval = found["interval"]
    between = "" if interval is None else " to ".join(f"{end:.{METRICS[metric].decimals}f}" for end in interval)
    quartiles = shown("lower_quartile", "upper_quartile")
    return (shown("mean"), between, shown("median"), quartiles, shown("lowest"), shown("highest"), str(found["cases"]))


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first two, which are names, flush left, the others, which are numbers, flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)
