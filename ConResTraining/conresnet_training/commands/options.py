"""Options and kinds of arguments that several commands share."""

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
data_option = click.option(
    "--data", type=FOLDER, help="Where the data set lies on this computer, if not where the plan says."
)
steps_option = click.option("--max-steps", type=click.IntRange(min=1), help="Stop once so many steps were made in all.")
