"""``python -m conresnet_training train``, ``resume`` and ``stop``: start, continue and stop a run."""

from pathlib import Path
from typing import Any

import click

from conresnet_training.cli.options import (
    FILE,
    FOLDER,
    data_option,
    devices_option,
    nodes_option,
    settings_option,
    steps_option,
)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder of the run: new, or empty.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold to hold out.")
@settings_option
@data_option
@steps_option
@devices_option
@nodes_option
def train(
    plan: Path,
    output: Path,
    fold: int,
    settings: tuple[str, ...],
    data: Path | None,
    max_steps: int | None,
    devices: int,
    nodes: int,
) -> int:
    """Train by PLAN. Checkpoints, curves and a copy of the plan go into the run's folder.

    Ctrl-C, a signal from a queue, or the command stop end it after the current step with a checkpoint. Its exit status
    is then 128 plus the signal's number (130 after the command stop).
    """
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.runs.run import Run
    from conresnet_training.training.trainer import fit

    run = Run(output, with_settings(read_plan(plan, data), settings), fold)
    return _report_end(run, fit(run, max_steps, devices, nodes, is_new=True))


@click.command()
@click.argument("run", type=FOLDER)
@data_option
@steps_option
@devices_option
@nodes_option
def resume(run: Path, data: Path | None, max_steps: int | None, devices: int, nodes: int) -> int:
    """Continue the run in the folder RUN from its latest checkpoint, as if it had never stopped."""
    from conresnet_training.runs.run import open_run
    from conresnet_training.training.trainer import fit

    opened = open_run(run, data)
    return _report_end(opened, fit(opened, max_steps, devices, nodes))


@click.command()
@click.argument("run", type=FOLDER)
def stop(run: Path) -> None:
    """Ask the run or cross-validation in the folder RUN to stop after the current step, with a checkpoint."""
    from conresnet_training.reporting.text import echo
    from conresnet_training.runs.running import ask_to_stop

    ask_to_stop(run)
    echo(f"Stopping {run} after the current step; a checkpoint will be saved.", err=True)


def _report_end(run: Any, outcome: Any) -> int:
    """Say how far the run came, and return the exit status. Processes other than the first are silent."""
    from conresnet_training.reporting.text import echo

    if outcome is None:
        return 0
    done = f"{outcome.step} of {outcome.steps} steps"
    if outcome.finished:
        echo(f'{run.folder} is finished, {done}. Use "python -m conresnet_training export" to make a model.', err=True)
    else:
        echo(f'{run.folder} stopped at {done}. Use "python -m conresnet_training resume" to continue.', err=True)
    return outcome.status
