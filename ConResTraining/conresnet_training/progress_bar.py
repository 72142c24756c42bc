"""A bar on a terminal, for work that takes its time over many cases."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def counted(cases: int) -> Iterator[Callable[[str], None]]:
    """A function to call with each case's name once it is done; it moves a bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    with click.progressbar(length=cases, file=sys.stderr, item_show_func=lambda name: name or "") as bar:
        yield lambda name: bar.update(1, name)
