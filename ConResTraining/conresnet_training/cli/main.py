"""``python -m conresnet_training``: the commands by name; for exit status see ``conresnet.cli.main``."""

import click

from conresnet import __version__
from conresnet.cli.main import LazyGroup
from conresnet.cli.main import main as run_command

# Command: module in conresnet_training.cli, its click command, summary.
_COMMANDS = {
    "check": ("check", "check", "Check every case of a data set for errors."),
    "plan": ("plan", "plan", "Plan a training for a data set."),
    "train": ("train", "train", "Train by a plan."),
    "resume": ("train", "resume", "Continue a run from its latest checkpoint."),
    "stop": ("train", "stop", "Stop a run after the current step, with a checkpoint."),
    "crossval": ("crossval", "crossval", "Train and evaluate all folds of a plan."),
    "evaluate": ("evaluate", "evaluate", "Measure a run or other predictions, case by case."),
    "compare": ("evaluate", "compare", "Compare two evaluations on the same cases."),
    "fit-review": ("export", "fit_review", "Fit the review list of a model package to held-out cases."),
    "export": ("export", "export", "Make a model package from a run."),
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
