"""What the plots and pictures of all pages have in common: their look, outlines of segments, and image files.

Texts and pages made of a template; all pages extend ``pages/page.html``.
"""

import base64
import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#333333", "#dddddd"
LONGEST_NAME = 24


def style_axes(axes: Axes, along: str = "y", size: float = 8) -> None:
    """Two spines, a pale grid below what is drawn, and numbers in points of ``size``.

    Args:
        along: "x" or "y", of which axis the grid marks the values.
    """
    axes.tick_params(labelsize=size, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def short_name(name: str) -> str:
    """The name, cut where it would take the room of the plot."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def outline(axes: Axes, mask: np.ndarray, **style) -> None:
    """Draw the border of a mask, bool [row, column], over an image of its size; ``style`` is that of a contour."""
    if mask.any():
        # A border of background, so that what touches the picture's edge is outlined too.
        places = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
        axes.contour(*places, np.pad(mask, 1).astype(np.float32), levels=[0.5], **style)


def to_png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with _lacking_letters():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG without a background, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with _lacking_letters(), matplotlib.rc_context({"svg.hashsalt": "conresnet", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


@contextlib.contextmanager
def _lacking_letters() -> Iterator[None]:
    """matplotlib's own font lacks some scripts; their letters are drawn as boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def fill_template(name: str, **values: Any) -> str:
    """The text of a template, named by its path in this package; in .html what is filled in cannot become markup."""
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
    """An image as an address that holds it, so that a page is one file; ``kind`` is such as "png" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
