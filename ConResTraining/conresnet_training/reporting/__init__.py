"""How results are shown to people: counts, lists and sizes as text, safe terminal output and a progress bar, the colors
of segments, plots with a common look, outlines, image files and HTML pages.

What is slow to import, or missing in Slicer's Python, is imported where it is used.
"""

from __future__ import annotations

import base64
import colorsys
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from conresnet.messages import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def case_count(count: int) -> str:
    """ "1 case", "2 cases"."""
    return "1 case" if count == 1 else f"{count} cases"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names, separated by commas; beyond ``most``, only the number of remaining names."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def shortened(text: str) -> str:
    """The text, cut to 200 letters, so that a sentence that names it stays readable."""
    return text if len(text) <= 200 else text[:197] + "..."


def backend_command(*arguments: object) -> str:
    """A command of the training backend as it is typed in a terminal; arguments with spaces are in quotation marks."""
    words = (str(argument) for argument in arguments)
    return " ".join(("python -m conresnet_training", *(f'"{word}"' if " " in word else word for word in words)))


def product(values: Iterable[float], digits: int = 4) -> str:
    """Sizes or spacings such as "1.5 x 2 x 2", with ``digits`` significant digits."""
    return " x ".join(f"{value:.{digits}g}" for value in values)


def time_left(seconds: float) -> str:
    """The time remaining, such as "about 3 h 20 min left", rounded to minutes unless it is less than one."""
    if seconds < 59.5:
        return f"about {max(round(seconds), 1)} s left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"


def echo(text: str, err: bool = False) -> None:
    """Print text that may contain arbitrary names, see ``printable``; does nothing if the terminal was closed."""
    from conresnet.cli import say

    say("\n".join(map(printable, text.split("\n"))), err)


@contextmanager
def progress_bar(cases: int) -> Iterator[Callable[[str], None]]:
    """Return a function to call with the name of each finished case; it advances a bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    import click

    with click.progressbar(length=cases, file=sys.stderr, item_show_func=lambda name: printable(name or "")) as bar:
        yield lambda name: bar.update(1, name)


# Similar to Slicer's.
FIRST = ([111, 184, 210], [216, 101, 79], [128, 174, 128], [241, 214, 145], [177, 122, 101], [192, 104, 88])
# Its multiples spread evenly over the hues, however many there are.
GOLDEN_RATIO = 0.618034


def segment_color(place: int) -> list[int]:
    """Red, green and blue, 0 to 255, for the segment with this index."""
    if place < len(FIRST):
        return list(FIRST[place])
    return [round(255 * part) for part in colorsys.hsv_to_rgb(place * GOLDEN_RATIO % 1, 0.55, 0.85)]


def bright_colors(count: int) -> list[tuple[float, float, float]]:
    """Red, green and blue, 0 to 1, for a number of labels, bright enough for outlines on gray images."""
    return [colorsys.hsv_to_rgb((0.03 + place * GOLDEN_RATIO) % 1, 0.8, 0.9) for place in range(count)]


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
    import matplotlib

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
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

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
