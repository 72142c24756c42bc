"""Folders that commands write to."""

from pathlib import Path

from conresnet.atomic_file import write_error


def make_folder(folder: Path) -> None:
    """Make it, so that a place that cannot be written to is known before the work.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
