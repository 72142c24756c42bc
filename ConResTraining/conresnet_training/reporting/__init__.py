"""Text for people: counts, lists, sizes, safe terminal output and a progress bar; and the colors of segments."""

import colorsys
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from conresnet.messages import printable


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


def echo(text: str, err: bool = False) -> None:
    """Print text that may contain arbitrary names, see ``printable``; does nothing if the terminal was closed."""
    # Slicer's Python, which uses the rest of this module, has no click.
    from conresnet.cli.main import say

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
