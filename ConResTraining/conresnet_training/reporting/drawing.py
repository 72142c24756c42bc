"""Plots, pictures and HTML pages: a common look, outlines of segments, image files and templates."""

import base64
import io
import warnings
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#333333", "#dddddd"
LONGEST_NAME = 24


def style_axes(axes: Axes, along: str = "y", size: float = 8) -> None:
    """Two spines, tick labels of ``size`` points, and a pale grid behind the data for the values along "x" or "y"."""
    axes.tick_params(labelsize=size, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def plot_name(name: str) -> str:
    """A name as matplotlib draws it literally: shortened, and without the dollar signs that would start a formula."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return short.replace("$", r"\$")


def outline(axes: Axes, mask: np.ndarray, **style) -> None:
    """Draw the border of a mask, bool [row, column], over an image of its size; ``style`` as for a contour."""
    if mask.any():
        # Padded with background, so that what touches the edge of the picture is outlined too.
        places = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
        axes.contour(*places, np.pad(mask, 1).astype(np.float32), levels=[0.5], **style)


def to_png(figure: Figure, dpi: int) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG with a transparent background; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "conresnet", "svg.fonttype": "path"}):
        return _saved(figure, format="svg", transparent=True, metadata={"Date": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib's own font has no glyphs for some scripts and draws boxes instead.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def fill_template(name: str, **values: Any) -> str:
    """Fill in a template, named by its path in this package; in .html, values are escaped."""
    environment = Environment(
        loader=PackageLoader("conresnet_training", ""),
        autoescape=select_autoescape(["html"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """An image as a URI that contains it, so that a page is one file; ``kind`` is "png" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
