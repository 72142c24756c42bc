"""``python -m conresnet_training``: the list of commands, and the options that several of them share.

For exit status see ``conresnet.cli.main``.
"""

from pathlib import Path

import click

from conresnet import __version__
from conresnet.cli.main import LazyGroup
from conresnet.cli.main import main as run_command

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
data_option = click.option("--data", type=FOLDER, help="Folder of the data set, if it is not where the plan says.")
steps_option = click.option("--max-steps", type=click.IntRange(min=1), help="Stop after this many steps in total.")
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
    help="Number of computers; torchrun or SLURM starts the command on each.",
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

# Command: module in conresnet_training.cli, its click command, summary.
_COMMANDS = {
    "check": ("data_set", "check", "Check every case of a data set for errors."),
    "plan": ("data_set", "plan", "Plan a training for a data set."),
    "train": ("train", "train", "Train by a plan."),
    "resume": ("train", "resume", "Continue a run from its latest checkpoint."),
    "stop": ("train", "stop", "Stop a run after the current step, with a checkpoint."),
    "crossval": ("train", "crossval", "Train and evaluate all folds of a plan."),
    "evaluate": ("results", "evaluate", "Measure a run or other predictions, case by case."),
    "compare": ("results", "compare", "Compare two evaluations on the same cases."),
    "fit-review": ("results", "fit_review", "Fit the review list of a model package to held-out cases."),
    "export": ("results", "export", "Make a model package from a run."),
}


@click.command(cls=LazyGroup, package="conresnet_training.cli", modules=_COMMANDS)
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet_training() -> None:
    """Train ConResNet's networks and make model packages from them.

    For research only; not a medical device. Every command has its own --help.
    """


def main() -> int:
    """Run one command and return its exit status."""
    return run_command(None, conresnet_training, "python -m conresnet_training")
