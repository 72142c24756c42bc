"""The results of an evaluation for people: plots, pictures of cases with outlines, and one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.files import write_text
from conresnet.images import Volume, bounding_box, grown, reordering, whole_box
from conresnet.images.files import read_image
from conresnet_training.data import Case
from conresnet_training.data.label_maps import read_label
from conresnet_training.evaluation import PAGE_FILE, Evaluation, write_tables
from conresnet_training.evaluation.metrics import (
    METRICS,
    OVERALL,
    VOLUME,
    Cases,
    SegmentValues,
    crossing,
    per_case,
    remarks,
    summary_cells,
)
from conresnet_training.reporting import (
    INK,
    data_uri,
    fill_template,
    listed,
    outline,
    plot_name,
    style_axes,
    to_png,
    to_svg,
)

Colors = Mapping[str, Sequence[int]]

HEIGHT = 2.9


def metric_plot(cases: Cases, metric: str, colors: Colors) -> bytes:
    """For each segment every case as a point, and a box with quartiles and median."""
    segments = list(next(iter(cases.values())))
    figure, axes = _figure(max(2.6, 0.9 + 0.75 * len(segments)), METRICS[metric].heading)
    jitter = np.random.default_rng(0)
    thin = {"color": INK, "linewidth": 0.8}
    for place, segment in enumerate(segments):
        values = np.array(list(per_case(cases, segment, metric).values()))
        if not values.size:
            continue
        color = _shade(colors[segment])
        axes.boxplot(
            values,
            positions=[place],
            widths=0.55,
            showfliers=False,
            medianprops={"color": INK, "linewidth": 1.4},
            boxprops=thin,
            whiskerprops=thin,
            capprops=thin,
        )
        axes.scatter(place + jitter.uniform(-0.18, 0.18, values.size), values, s=9, color=color, alpha=0.75, lw=0)
    names = [plot_name(name) for name in segments]
    axes.set_xticks(range(len(segments)), names, rotation=20, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(segments) - 0.4)
    if METRICS[metric].better == "zero":
        axes.axhline(0, color=INK, linewidth=0.6)
    return to_svg(figure)


def dice_against_volume(cases: Cases, colors: Colors) -> bytes:
    """Dice of each case over the reference's volume, to show whether small segments do worse."""
    figure, axes = _figure(3.8, METRICS["dice"].heading, "Reference volume (mL)")
    volumes = []
    for segment in next(iter(cases.values())):
        rows = [rows[segment] for rows in cases.values() if rows[segment][VOLUME] > 0]
        volumes += [row[VOLUME] for row in rows]
        points = [row[VOLUME] for row in rows], [row["dice"] for row in rows]
        axes.scatter(*points, s=12, color=_shade(colors[segment]), alpha=0.75, lw=0, label=plot_name(segment))
    if volumes and max(volumes) > 20 * min(volumes):
        axes.set_xscale("log")
    if (count := len(axes.get_legend_handles_labels()[1])) > 1:
        axes.legend(fontsize=7, frameon=False, ncols=1 + count // 12)
    return to_svg(figure)


def bland_altman(cases: Cases, segment: str, colors: Colors) -> bytes:
    """Result minus reference over the mean of both volumes, with mean difference and limits of agreement."""
    rows = [rows[segment] for rows in cases.values()]
    difference = np.array([row["volume_difference_ml"] for row in rows])
    middle = np.array([row[VOLUME] for row in rows]) + difference / 2
    figure, axes = _figure(3.3, "Result minus reference (mL)", "Mean of both (mL)")
    axes.set_title(plot_name(segment), fontsize=9, color=INK)
    axes.scatter(middle, difference, s=12, color=_shade(colors[segment]), alpha=0.75, lw=0)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axhline(difference.mean(), color=_shade(colors[segment]), linewidth=1.4)
    if difference.size > 1:
        for side in (-1.96, 1.96):
            limit = difference.mean() + side * difference.std(ddof=1)
            axes.axhline(limit, color=_shade(colors[segment]), linewidth=1, linestyle="dashed")
    return to_svg(figure)


def _figure(width: float, vertical: str, horizontal: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(vertical, fontsize=8, color=INK)
    axes.set_xlabel(horizontal, fontsize=8, color=INK)
    style_axes(axes, size=7.5)
    return figure, axes


def _shade(color: Sequence[int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)


# Indices increase to inferior, posterior and left, so that slices are shown as radiologists view them.
ORIENTATION = "IPL"
MARGIN_MM = 12.0
PANEL_INCHES, DPI = 3.0, 110
REFERENCE_COLOR = "white"


def draw_case(
    image: Volume,
    found: np.ndarray,
    truth: np.ndarray,
    values: Mapping[str, SegmentValues],
    colors: Colors,
    planes: int = 3,
    worst: bool = True,
) -> bytes:
    """A PNG of slices of a case, one per plane.

    The image is cut to the segments of both label maps with a margin, and reoriented to its nearest anatomical axes.
    The result is outlined in the segments' colors, the reference in dashed white.

    Args:
        found, truth: the label maps [k, j, i] of the result and the reference, on the image's grid.
        values: of each segment in them.
        planes: how many of axial, coronal and sagittal, in this order.
        worst: show the slices with the most wrong voxels; otherwise, or if none is wrong, those with the most voxels of
            the reference.
    """
    reorder = reordering(image.grid, ORIENTATION)
    spacing = reorder.grid(image.grid).spacing[::-1]
    found, truth = reorder.view(found), reorder.view(truth)
    shown = (found != 0) | (truth != 0)
    margins = np.ceil(MARGIN_MM / spacing).astype(int)
    box = grown(bounding_box(shown) or whole_box(shown.shape), margins, shown.shape)
    gray = reorder.view(image.array)[box].astype(np.float32)
    masks = {name: (np.isin(found[box], item.found), np.isin(truth[box], item.truth)) for name, item in values.items()}
    wrong = [found_mask != truth_mask for found_mask, truth_mask in masks.values()]
    place = _place_with_most(wrong) if worst else None
    place = place or _place_with_most([truth_mask for _, truth_mask in masks.values()])
    place = place or [side // 2 for side in gray.shape]
    low, high = np.percentile(gray[np.isfinite(gray)], [1, 99.5]) if np.isfinite(gray).any() else (0, 1)
    figure = Figure(figsize=(PANEL_INCHES * planes, PANEL_INCHES), facecolor="black", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis, axes in enumerate(np.ravel(figure.subplots(1, planes))):
        rows, columns = (other for other in range(3) if other != axis)
        axes.imshow(
            gray.take(place[axis], axis),
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            aspect=spacing[rows] / spacing[columns],
            interpolation="nearest",
        )
        for name, (found_mask, truth_mask) in masks.items():
            found_slice, truth_slice = found_mask.take(place[axis], axis), truth_mask.take(place[axis], axis)
            outline(axes, found_slice, colors=[_shade(colors[name])], linewidths=1.6)
            outline(axes, truth_slice, colors=REFERENCE_COLOR, linewidths=0.9, linestyles="dashed")
        # Outlines extend half a voxel beyond the slice.
        height, width = gray.take(place[axis], axis).shape
        axes.set(xlim=(-1, width), ylim=(height, -1))
        axes.set_axis_off()
    return to_png(figure, DPI)


def _place_with_most(masks: Sequence[np.ndarray]) -> list[int] | None:
    """Along each axis the slice with the most voxels of all masks together; None if they are empty."""
    total = sum(mask.astype(np.int32) for mask in masks)
    if not total.any():
        return None
    return [int(total.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


def make_page(evaluation: Evaluation, pictures: Mapping[str, bytes], colors: Mapping[str, Sequence[int]]) -> str:
    """The page as HTML.

    Args:
        pictures: PNG images of the worst cases, worst first.
        colors: red, green and blue, 0 to 255, by segment.
    """
    cases, summary = evaluation.cases, evaluation.summary
    blocks = [(name, summary["segments"][name]) for name in evaluation.segments]
    if len(blocks) > 1:
        blocks.append(("Mean of segments", summary[OVERALL]))
    tables = [
        (name, [(METRICS[metric].heading, summary_cells(metric, found)) for metric, found in metrics.items() if found])
        for name, metrics in blocks
    ]
    captions = {
        name: ", ".join(f"{segment} {row['dice']:.3f}" for segment, row in cases[name].items()) for name in pictures
    }
    return fill_template(
        "evaluation/page.html",
        evaluation=evaluation,
        version=__version__,
        metrics=METRICS,
        volume=VOLUME,
        tables=tables,
        missing=listed(evaluation.missing),
        remarks=remarks(summary),
        plots=[data_uri(metric_plot(cases, metric, colors), "svg+xml") for metric in METRICS],
        volume_plot=data_uri(dice_against_volume(cases, colors), "svg+xml"),
        agreement_plots=[data_uri(bland_altman(cases, segment, colors), "svg+xml") for segment in evaluation.segments],
        pictures=[(name, data_uri(picture, "png"), captions[name]) for name, picture in pictures.items()],
        swatches={name: "#{:02x}{:02x}{:02x}".format(*colors[name]) for name in evaluation.segments},
        shown=_shown,
    )


def _shown(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


WORST_CASES = 6


@dataclass(frozen=True)
class Measured:
    """An evaluation, and what is needed for pictures of its cases.

    Args:
        files: each case with the label map of its result.
        values: label values by segment.
        colors: red, green and blue, 0 to 255, by segment.
        errors: for each case that could not be measured, why.
    """

    evaluation: Evaluation
    files: Mapping[str, tuple[Case, Path]]
    values: Mapping[str, SegmentValues]
    colors: Colors
    errors: Mapping[str, UserError]


def write_results(measured: Measured, output: Path) -> None:
    """Write the page, the CSV file and finally the JSON file."""
    pictures = {
        name: picture
        for name in measured.evaluation.worst_first()[:WORST_CASES]
        if (picture := picture_of(name, measured)) is not None
    }
    write_text(output / PAGE_FILE, make_page(measured.evaluation, pictures, measured.colors))
    write_tables(measured.evaluation, output)


def picture_of(name: str, measured: Measured, **options) -> bytes | None:
    """A case's PNG picture, see ``draw_case`` for the options; None if its image is not available.

    Also None if regions overlap in part: the label map, from which the outlines are drawn, does not show all of them.
    """
    case, found_file = measured.files[name]
    if not case.images or not case.images[0].exists() or crossing(measured.values):
        return None
    image, found, truth = read_image(case.images[0]), read_label(found_file), read_label(case.label)
    # With several channels, the first one is shown.
    first = Volume(image.components[0], image.grid, name)
    return draw_case(first, found.array, truth.array, measured.values, measured.colors, **options)
