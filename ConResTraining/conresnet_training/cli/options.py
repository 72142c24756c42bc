"""Options and kinds of arguments that several commands share."""

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
data_option = click.option(
    "--data", type=FOLDER, help="Where the data set lies on this computer, if not where the plan says."
)
steps_option = click.option("--max-steps", type=click.IntRange(min=1), help="Stop once so many steps were made in all.")
devices_option = click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs to use on each computer; processes where there is none. They share the plan's batch.",
)
nodes_option = click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Computers, each started by torchrun or SLURM.",
)
settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the plan, as in training.steps=500; may be given several times.",
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Of a run: the newest, or the best by validation Dice, whose figures are optimistic.",
)
