"""``python -m conresnet_training``: the commands by name; they end by the rules of ``conresnet.cli.main``."""

import click

from conresnet import __version__
from conresnet.cli.main import LazyGroup
from conresnet.cli.main import main as run_command

# Command: module below conresnet_training.cli, its click command, what it does in a line.
_COMMANDS = {
    "check": ("check", "check", "Look at every case of a data set and say what is wrong."),
    "plan": ("plan", "plan", "Look at a data set and write a plan for it."),
    "train": ("train", "train", "Train by a plan."),
    "resume": ("train", "resume", "Go on with a run from its newest checkpoint."),
    "stop": ("train", "stop", "Ask a run to end after its step, with a checkpoint."),
    "crossval": ("crossval", "crossval", "Train and measure all folds of a plan."),
    "evaluate": ("evaluate", "evaluate", "Measure a run, or any predictions, case by case."),
    "compare": ("evaluate", "compare", "Compare two evaluations on the same cases."),
    "export": ("export", "export", "Pack the network of a run as a model."),
}


@click.command(cls=LazyGroup, package="conresnet_training.cli", modules=_COMMANDS)
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet_training() -> None:
    """Train ConResNet's networks and pack them as models.

    For research; not a medical device. Every command has its own --help.
    """


def main() -> int:
    """Run one command and return its exit status."""
    return run_command(None, conresnet_training, "python -m conresnet_training")
