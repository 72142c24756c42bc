"""Arguments and options that several commands share."""

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
data_option = click.option("--data", type=FOLDER, help="Folder of the data set, if it is not where the plan says.")
steps_option = click.option(
    "--max-steps", type=click.IntRange(min=1), help="Stop once this many steps were made in total."
)
devices_option = click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs to use on each computer, or processes on a computer without GPUs. They share the plan's batch.",
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
    help="Replace a value of the plan, such as training.steps=500. May be repeated.",
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Latest checkpoint of a run, or the one with the best validation Dice, whose figures are optimistic.",
)
