"""A check's results as files: one HTML page that contains its plots and pictures, and JSON."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.files import make_folder, write_text
from conresnet_training.check import ERROR, WARNING, CaseReport, SetReport, Tile
from conresnet_training.data import LAYOUTS
from conresnet_training.reporting import (
    GOLDEN_RATIO,
    INK,
    bright_colors,
    data_uri,
    fill_template,
    outline,
    plot_name,
    product,
    style_axes,
    to_png,
)

BLUE = "#3b7ea1"
AXES = ("superior-\ninferior", "anterior-\nposterior", "right-\nleft")
# Values that span more than this factor are drawn on a logarithmic axis.
WIDE = 50
TILE_INCHES = 2.0
PLOT_DPI, TILE_DPI = 150, 96


def plot_sizes(cases: Sequence[CaseReport]) -> bytes:
    """Size in voxels and spacing in mm along the patient's axes, one point per case."""
    figure = _figure(7.6, 2.9)
    for axes, attribute, title in zip(
        figure.subplots(1, 2), ("patient_size", "patient_spacing"), ("Size (voxels)", "Spacing (mm)"), strict=True
    ):
        values = np.array([value for case in cases if (value := getattr(case, attribute)) is not None])
        _style(axes, title)
        for place in range(3):
            _strip(axes, values[:, place], place, BLUE, vertical=True)
        axes.set_xticks(range(3), AXES)
        axes.set_xlim(-0.6, 2.6)
        axes.set_ylim(0, 1.08 * values.max())
    return to_png(figure, PLOT_DPI)


def plot_intensities(cases: Sequence[CaseReport], channels: Sequence[str]) -> bytes:
    """For each channel the cases by ascending median: median, quartiles, and 0.5th to 99.5th percentile."""
    shown = [name for name in channels if any(name in case.intensities for case in cases)]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = _figure(3.8 * columns, 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, shown, strict=False):
        values = np.array(sorted((c.intensities[name] for c in cases if name in c.intensities), key=lambda v: v[2]))
        _style(axes, plot_name(name))
        # Steps of equal width, so that a single case is visible too.
        places = np.arange(len(values) + 1)
        ends = np.vstack([values, values[-1:]])
        for low, high, alpha in ((0, 4, 0.2), (1, 3, 0.4)):
            axes.fill_between(places, ends[:, low], ends[:, high], step="post", color=BLUE, alpha=alpha, lw=0)
        axes.step(places, ends[:, 2], where="post", color=INK, lw=1)
        smallest = np.abs(values[:, 2]).min()
        if values[:, 4].max() > WIDE * smallest > 0:
            axes.set_yscale("symlog", linthresh=smallest / 2)
        axes.set_xlim(0, len(values))
        axes.set_xticks([])
        axes.set_xlabel("Cases by their median", fontsize=8, color=INK)
    return to_png(figure, PLOT_DPI)


def plot_volumes(cases: Sequence[CaseReport], colors: Mapping[str, Sequence[float]]) -> bytes:
    """Volume of each label in mL, one point per case that has it; the name shows how many have none."""
    measured = [case.label_ml for case in cases if case.label_ml]
    figure = _figure(7.6, 0.9 + 0.34 * len(colors))
    axes = figure.subplots()
    _style(axes, "", along="x")
    names, all_values = [], []
    for place, (name, color) in enumerate(colors.items()):
        values = np.array([volumes[name] for volumes in measured if volumes[name] > 0])
        _strip(axes, values, place, color, vertical=False)
        lacking = len(measured) - len(values)
        names.append(plot_name(name) + (f" (not in {lacking})" if lacking else ""))
        all_values.extend(values)
    if all_values and max(all_values) > WIDE * min(all_values):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("Volume (mL)", fontsize=8, color=INK)
    return to_png(figure, PLOT_DPI)


def draw_tile(tile: Tile, colors: Mapping[int, Sequence[float]]) -> bytes:
    """The slice with its labels outlined, the patient's right on the left as radiologists view it.

    Args:
        colors: red, green and blue, 0 to 1, by label value.
    """
    rows, columns = tile.image.shape
    height, width = rows * tile.aspect, columns
    scale = TILE_INCHES / max(height, width)
    figure = Figure(figsize=(max(width * scale, 0.5), max(height * scale, 0.5)), facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(tile.image, cmap="gray", vmin=0, vmax=255, aspect="auto", origin="lower")
    for value in np.unique(tile.label):
        if value:
            outline(axes, tile.label == value, colors=[colors.get(int(value), (1, 1, 1))], linewidths=1.2)
    axes.set(xlim=(columns - 0.5, -0.5), ylim=(-0.5, rows - 0.5))
    axes.set_axis_off()
    return to_png(figure, TILE_DPI)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _style(axes: Axes, title: str, along: str = "y") -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    style_axes(axes, along)


def _strip(axes: Axes, values: np.ndarray, place: int, color: Sequence[float] | str, vertical: bool) -> None:
    """One point per value, spread sideways so that equal ones are visible, and a line at the median."""
    if not values.size:
        return
    sideways = place + 0.5 * (np.arange(values.size) * GOLDEN_RATIO % 1 - 0.5)
    axes.scatter(*((sideways, values) if vertical else (values, sideways)), s=9, color=color, alpha=0.6, lw=0, zorder=2)
    if values.size > 1:
        line = axes.hlines if vertical else axes.vlines
        line(np.median(values), place - 0.33, place + 0.33, color=INK, lw=1.2, zorder=1)


PAGE_FILE, JSON_FILE = "check.html", "check.json"
MOST_LISTED = 500


def make_output_folder(output: Path, data: Path) -> Path:
    """Create the folder for a check's files, so that a folder that cannot be written to is reported before the work
    begins.

    Raises:
        UserError: ``output-in-data`` for a place in the data set's folder, which is never modified, or those of
            ``make_folder``.
    """
    if output.resolve().is_relative_to(data.resolve()):
        raise UserError("output-in-data", path=str(output))
    make_folder(output)
    return output


def write_check(report: SetReport, output: Path) -> None:
    """Write ``check.html`` and ``check.json`` into the folder ``output``, each completely or not at all.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    for name, text in ((PAGE_FILE, make_page(report)), (JSON_FILE, json.dumps(report.to_dict(), indent=1))):
        write_text(output / name, text + "\n")


def make_page(report: SetReport) -> str:
    data_set, cases = report.data_set, report.cases
    colors = dict(zip(data_set.labels, bright_colors(len(data_set.labels)), strict=True))
    by_name = {name: colors[value] for value, name in data_set.labels.items()}
    listed = [case for level in (ERROR, WARNING) for case in cases if case.level == level]
    measured = any(case.patient_size for case in cases)
    png = partial(data_uri, kind="png")
    return fill_template(
        "check/page.html",
        report=report,
        version=__version__,
        facts=_facts(report),
        listed=listed[:MOST_LISTED],
        unlisted=len(listed) - MOST_LISTED,
        swatches={name: to_hex(color) for name, color in by_name.items()},
        sizes=png(plot_sizes(cases)) if measured else None,
        intensities=png(plot_intensities(cases, data_set.channels))
        if any(case.intensities for case in cases)
        else None,
        volumes=png(plot_volumes(cases, by_name)) if any(case.label_ml for case in cases) else None,
        tiles=[(case.name, png(draw_tile(case.tile, colors))) for case in cases if case.tile],
    )


def _facts(report: SetReport) -> list[tuple[str, str]]:
    data_set = report.data_set
    facts = [
        ("Folder", str(report.data)),
        ("Layout", LAYOUTS[data_set.layout]),
        ("Cases", str(len(report.cases))),
        ("Channels", ", ".join(data_set.channels)),
        ("Labels", ", ".join(f"{value} {name}" for value, name in data_set.labels.items())),
    ]
    if data_set.regions:
        regions = (f"{name} ({' + '.join(map(str, values))})" for name, values in data_set.regions.items())
        facts.append(("Regions", ", ".join(regions)))
    if (size := report.median("patient_size")) and (spacing := report.median("patient_spacing")):
        facts.append(("Median size", f"{product(size)} voxels (superior-inferior, anterior-posterior, right-left)"))
        facts.append(("Median spacing", f"{product(spacing)} mm"))
    if data_set.licence:
        facts.append(("License", data_set.licence))
    return facts
