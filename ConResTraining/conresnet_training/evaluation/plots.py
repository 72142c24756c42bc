"""The plots of an evaluation as SVG images, the same bytes for the same figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conresnet_training.drawing import INK, short_name, style_axes, to_svg
from conresnet_training.evaluation.metrics import METRICS, VOLUME, Figures
from conresnet_training.evaluation.summary import per_case

Cases = Mapping[str, Mapping[str, Figures]]
Colors = Mapping[str, Sequence[int]]

HEIGHT = 2.9


def metric_plot(cases: Cases, metric: str, colors: Colors) -> bytes:
    """Every case as a point, and a box from quartile to quartile with the median, for each segment."""
    segments = list(next(iter(cases.values())))
    figure, axes = _figure(max(2.6, 0.9 + 0.75 * len(segments)), METRICS[metric].heading)
    jitter = np.random.default_rng(0)
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
            boxprops={"color": INK, "linewidth": 0.8},
            whiskerprops={"color": INK, "linewidth": 0.8},
            capprops={"color": INK, "linewidth": 0.8},
        )
        axes.scatter(place + jitter.uniform(-0.18, 0.18, values.size), values, s=9, color=color, alpha=0.75, lw=0)
    names = [short_name(name) for name in segments]
    axes.set_xticks(range(len(segments)), names, rotation=20, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(segments) - 0.4)
    if METRICS[metric].better == "zero":
        axes.axhline(0, color=INK, linewidth=0.6)
    return to_svg(figure)


def dice_against_volume(cases: Cases, colors: Colors) -> bytes:
    """Whether small segments fare worse: Dice of each case over the reference's volume."""
    figure, axes = _figure(3.8, METRICS["dice"].heading, "Reference volume (mL)")
    volumes = []
    for segment in next(iter(cases.values())):
        rows = [rows[segment] for rows in cases.values() if rows[segment][VOLUME] > 0]
        volumes += [row[VOLUME] for row in rows]
        points = [row[VOLUME] for row in rows], [row["dice"] for row in rows]
        axes.scatter(*points, s=12, color=_shade(colors[segment]), alpha=0.75, lw=0, label=segment)
    if volumes and max(volumes) > 20 * min(volumes):
        axes.set_xscale("log")
    _legend(axes)
    return to_svg(figure)


def bland_altman(cases: Cases, segment: str, colors: Colors) -> bytes:
    """Result less reference over the mean of both volumes, with the mean difference and the limits of agreement."""
    rows = [rows[segment] for rows in cases.values()]
    difference = np.array([row["volume_difference_ml"] for row in rows])
    middle = np.array([row[VOLUME] for row in rows]) + difference / 2
    figure, axes = _figure(3.3, "Result less reference (mL)", "Mean of both (mL)")
    axes.set_title(segment, fontsize=9, color=INK)
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


def _legend(axes: Axes) -> None:
    count = len(axes.get_legend_handles_labels()[1])
    if count > 1:
        axes.legend(fontsize=7, frameon=False, ncols=1 + count // 12)


def _shade(color: Sequence[int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)
