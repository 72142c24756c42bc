"""Text, pictures and HTML pages for people, shared by all commands; no results are computed here."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from conresnet.messages import printable


def case_count(count: int) -> str:
    """ "1 case", "2 cases"."""
    return "1 case" if count == 1 else f"{count} cases"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names, separated by commas; beyond ``most`` only how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def product(values: Iterable[float], digits: int = 4) -> str:
    """Sizes or spacings such as "1.5 x 2 x 2", with ``digits`` significant digits."""
    return " x ".join(f"{value:.{digits}g}" for value in values)


def echo(text: str, err: bool = False) -> None:
    """Print lines of text that may hold names from outside; see ``printable``."""
    # Slicer's Python, which uses the rest of this module, has no click.
    import click

    click.echo("\n".join(map(printable, text.split("\n"))), err=err)


@contextmanager
def progress_bar(cases: int) -> Iterator[Callable[[str], None]]:
    """A function to call with each finished case's name; it advances a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    import click

    with click.progressbar(length=cases, file=sys.stderr, item_show_func=lambda name: printable(name or "")) as bar:
        yield lambda name: bar.update(1, name)
