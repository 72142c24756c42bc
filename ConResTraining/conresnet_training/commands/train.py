"""``python -m conresnet_training train`` and ``resume``: a run from its start, or on from its newest checkpoint."""

from pathlib import Path

import click

from conresnet_training.commands.options import FILE, FOLDER, data_option, steps_option


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="The folder of the run; new, or empty.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
@data_option
@steps_option
def train(plan: Path, output: Path, fold: int, data: Path | None, max_steps: int | None) -> None:
    """Train by PLAN; checkpoints, logs and the plan itself go into the run's folder."""
    from conresnet_training.fitting import fit
    from conresnet_training.plan import read_plan
    from conresnet_training.run import start_run

    fit(start_run(read_plan(plan, data), output, fold), max_steps)


@click.command()
@click.argument("run", type=FOLDER)
@data_option
@steps_option
def resume(run: Path, data: Path | None, max_steps: int | None) -> None:
    """Go on with the run in the folder RUN from its newest checkpoint."""
    from conresnet_training.fitting import fit
    from conresnet_training.run import open_run

    fit(open_run(run, data), max_steps)
