"""The results of ``compare_systems.py`` as a picture: one line per row, one panel per figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparison_table import COMPARED, Comparison, Result
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from conresnet.files import replacing
from conresnet_training.evaluation.metrics import METRICS
from conresnet_training.reporting.drawing import INK, style_axes

COLORS = {"systems": "#2166ac", "peers": "#b2622d", "study": "#5b8c5a"}
GROUP_TITLES = {"systems": "systems", "peers": "peers", "study": "ConResNet's study"}
INCHES_PER_ROW = 0.27


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw Dice and Hausdorff distance with their 95% intervals and the cost of each row, as a PNG.

    Under-trained rows have hollow markers. Raises UserError if the file cannot be written.
    """
    results = comparison.results
    figure = Figure(figsize=(15, 1.5 + INCHES_PER_ROW * len(results)), layout="constrained")
    panels = figure.subplots(1, 6, sharey=True, width_ratios=(1.6, 1.6, 1, 1, 1, 1))
    for panel, metric in zip(panels, COMPARED, strict=False):
        _draw_means(panel, results, metric)
    costs = {
        "parameters (M)": [item.cost["parameters"] / 1e6 for item in results],
        "multiply-adds per window (G)": [item.cost["multiply_adds"] / 1e9 for item in results],
        "seconds per case": [item.seconds_per_case for item in results],
        "peak memory (GB)": [item.cost["peak_bytes"] / 1e9 for item in results],
    }
    for panel, (title, values) in zip(panels[2:], costs.items(), strict=True):
        _draw_costs(panel, results, title, values)
    titles = [f"{item.row.title} {comparison.marks(item)}".rstrip() for item in results]
    panels[0].set_yticks(range(len(results)), titles)
    panels[0].set_ylim(len(results) - 0.4, -0.6)
    present = [group for group in COLORS if any(item.row.group == group for item in results)]
    figure.legend(
        handles=[Patch(color=COLORS[group], label=GROUP_TITLES[group]) for group in present],
        loc="outside upper left",
        ncols=len(present),
        fontsize=8,
        frameon=False,
    )
    explained = ["Lines: 95% intervals over cases. Hollow markers: † or ?.", *comparison.notes()]
    figure.supxlabel("\n".join(explained), x=0.01, ha="left", fontsize=8, color=INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _draw_means(panel: Axes, results: Sequence[Result], metric: str) -> None:
    for place, result in enumerate(results):
        if found := result.mean(metric):
            low, high = found["interval"] or (found["mean"], found["mean"])
            panel.plot([low, high], [place, place], color=_color(result), linewidth=1.6)
            panel.plot(found["mean"], place, "o", markersize=6, **_marker(result))
    _dress(panel, METRICS[metric].heading)


def _draw_costs(panel: Axes, results: Sequence[Result], title: str, values: Sequence[float]) -> None:
    panel.barh(range(len(results)), values, height=0.62, color=[_color(result) for result in results], alpha=0.75)
    panel.set_xlim(0, 1.3 * max(values))
    for place, value in enumerate(values):
        panel.text(value, place, f" {value:.3g}", va="center", fontsize=7, color=INK)
    _dress(panel, title)


def _color(result: Result) -> str:
    return COLORS[result.row.group]


def _marker(result: Result) -> dict:
    is_sure = result.late_rise is not None and not result.is_under_trained
    return {"markeredgecolor": _color(result), "markerfacecolor": _color(result) if is_sure else "white"}


def _dress(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=9.5, color=INK)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    style_axes(panel, "x")
