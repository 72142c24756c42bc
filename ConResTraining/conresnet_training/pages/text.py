"""Counts, names and sizes as people read them.

Folders that commands write to.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from conresnet.files import write_error


def cases_in_words(count: int) -> str:
    """ "1 case", "2 cases"."""
    return "1 case" if count == 1 else f"{count} cases"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names; of more than ``most`` the first, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def product(values: Iterable[float], digits: int = 4) -> str:
    """Such as "1.5 x 2 x 2": sides of a box, or spacings, with so many significant digits."""
    return " x ".join(f"{value:.{digits}g}" for value in values)


def make_folder(folder: Path) -> None:
    """Make it, so that a place that cannot be written to is known before the work.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
