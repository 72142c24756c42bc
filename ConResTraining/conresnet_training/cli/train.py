"""``python -m conresnet_training train``, ``resume`` and ``stop``: a run started, continued, and ended early."""

from pathlib import Path

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
@click.option("--output", type=FOLDER, required=True, help="The folder of the run; new, or empty.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
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
) -> None:
    """Train by PLAN; checkpoints, curves and the plan itself go into the run's folder.

    Ctrl-C, a signal of a queue, or the command stop end it after its step with a checkpoint.
    """
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.runs.run import Run, start_run
    from conresnet_training.training.trainer import fit, is_first_process

    followed = with_settings(read_plan(plan, data), settings)
    # Of several processes the first makes the folder; the others only have to know where it is.
    run = start_run(followed, output, fold) if is_first_process() else Run(output, followed, fold)
    _say_end(output, fit(run, max_steps, devices=devices, nodes=nodes))


@click.command()
@click.argument("run", type=FOLDER)
@data_option
@steps_option
@devices_option
@nodes_option
def resume(run: Path, data: Path | None, max_steps: int | None, devices: int, nodes: int) -> None:
    """Go on with the run in the folder RUN from its newest checkpoint, as if it had never stopped."""
    from conresnet_training.runs.run import open_run
    from conresnet_training.training.trainer import fit

    _say_end(run, fit(open_run(run, data), max_steps, devices=devices, nodes=nodes))


@click.command()
@click.argument("run", type=FOLDER)
def stop(run: Path) -> None:
    """Ask the run or cross-validation in the folder RUN to end after the current step, with a checkpoint."""
    from conresnet_training.runs.running import ask_to_stop

    ask_to_stop(run)
    click.echo(f"{run} is asked to stop; it ends after its step, with a checkpoint.", err=True)


def _say_end(folder: Path, outcome) -> None:
    from conresnet_training.training.trainer import is_first_process

    if not is_first_process():
        return
    done = f"{outcome.step} of {outcome.steps} steps"
    if outcome.finished:
        sentence = f'The run {folder} is finished, {done}; "python -m conresnet_training export" makes a model of it.'
    else:
        sentence = f'The run {folder} stands at {done}; "python -m conresnet_training resume" goes on with it.'
    click.echo(sentence, err=True)
