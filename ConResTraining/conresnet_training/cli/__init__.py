"""``python -m conresnet_training``: the list of commands, and the options that both of their files use.

For the exit status, see ``conresnet.cli``.
"""

import math
import sys
from pathlib import Path
from typing import Any

import click

from conresnet import __version__
from conresnet.cli import LazyGroup
from conresnet.cli import main as run_command
from conresnet.errors import UserError
from conresnet.needs import TRAINING_PACKAGES, report


class FiniteRange(click.FloatRange):
    """A range of numbers, none of which is infinite or NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


FOLDER = click.Path(path_type=Path, file_okay=False)
FOLDER.name = "folder"  # in help and messages, in place of "directory"
FILE = click.Path(path_type=Path, dir_okay=False)
device_option = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:N or mps. With --devices, the first of them.",
)
settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the plan, such as training.steps=500. May be repeated.",
)

# Command: module in conresnet_training.cli, its click command, summary.
_COMMANDS = {
    "check": (".data_set", "check", "Check every case of a data set for errors."),
    "plan": (".data_set", "plan", "Make a training plan for a data set."),
    "train": (".run_commands", "train", "Train a model according to a plan."),
    "resume": (".run_commands", "resume", "Continue a run from its latest checkpoint."),
    "stop": (".run_commands", "stop", "Stop a run after the current step, with a checkpoint."),
    "crossval": (".run_commands", "crossval", "Train and evaluate all folds of a plan."),
    "evaluate": (".run_commands", "evaluate", "Evaluate a run or other predictions, case by case."),
    "compare": (".run_commands", "compare", "Compare two evaluations on the same cases."),
    "fit-review": (".run_commands", "fit_review", "Fit the review list of a model package to held-out cases."),
    "export": (".run_commands", "export", "Make a model package from a run."),
}


class TrainingGroup(LazyGroup):
    """Names all missing packages. Many are missing if the wheel was installed without its training packages."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            installed = report(TRAINING_PACKAGES, really_import=False)["packages"]
            if not (names := [name for name in TRAINING_PACKAGES if name not in installed]):
                raise
            values = {"python": sys.executable, "names": " ".join(names)}
            raise UserError("training-packages-missing", **values) from error


@click.command(cls=TrainingGroup, package="conresnet_training.cli", modules=_COMMANDS)
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet_training() -> None:
    """Train ConResNet's networks and make model packages from them.

    For research only; not a medical device. Every command has its own --help.
    """


def main() -> int:
    """Run one command and return its exit status."""
    return run_command(None, conresnet_training, "python -m conresnet_training")
