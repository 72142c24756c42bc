"""``python -m conresnet_training train``, ``resume``, ``stop`` and ``crossval``: one run, or all folds of a plan."""

from pathlib import Path
from typing import Any

import click

from conresnet_training.cli.main import (
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
    """Train a model according to PLAN. Checkpoints, curves and a copy of the plan go into the run's folder.

    Ctrl-C, a signal from a queue, or the command stop ends training after the current step and saves a checkpoint. The
    exit status is then 128 plus the signal's number (130 after the command stop).
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
    from conresnet_training.reporting import echo
    from conresnet_training.runs.state import ask_to_stop

    ask_to_stop(run)
    echo(f"Stopping {run} after the current step; a checkpoint will be saved.", err=True)


def _report_end(run: Any, outcome: Any) -> int:
    """Say how far the run came, and return the exit status. Processes other than the first are silent."""
    from conresnet_training.reporting import echo

    if outcome is None:
        return 0
    done = f"{outcome.step} of {outcome.steps} steps"
    if outcome.finished:
        echo(f'{run.folder} is finished, {done}. Use "python -m conresnet_training export" to make a model.', err=True)
    else:
        echo(f'{run.folder} stopped at {done}. Use "python -m conresnet_training resume" to continue.', err=True)
    return outcome.status


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, help="Folder of the cross-validation.  [default: PLAN's name and _crossval]")
@click.option("--folds", help="Folds to train, such as 0,1,2.  [default: all of the plan]")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of folds to train in parallel."
)
@settings_option
@data_option
@steps_option
@devices_option
def crossval(
    plan: Path,
    output: Path | None,
    folds: str | None,
    jobs: int,
    settings: tuple[str, ...],
    data: Path | None,
    max_steps: int | None,
    devices: int,
) -> int:
    """Train the folds of PLAN, each in a process of its own, and measure every case with the fold that never saw it.

    Repeat the command to continue the folds that are not finished; each one uses the training settings in its own
    plan.yaml. Stopping ends every fold after its current step; the exit status is then that of a stopped training.
    """
    from conresnet_training.evaluation import evaluate_runs, summary_table
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.reporting import case_count, echo
    from conresnet_training.runs.cross_validation import cross_validate

    followed = with_settings(read_plan(plan, data), settings)
    output = output or Path(f"{plan.stem}_crossval")
    options = ["--devices", str(devices), "--data", str(followed.data)]
    if max_steps is not None:
        options += ["--max-steps", str(max_steps)]
    chosen = _numbers(folds, followed.training.folds)
    runs, status = cross_validate(followed, output, chosen, jobs, max_steps, options, echo)
    if status:
        echo(f"The cross-validation {output} was stopped. Repeat the command to continue.", err=True)
        return status
    evaluation = evaluate_runs(runs, output / "evaluation")
    echo(summary_table(evaluation.summary))
    trained = "1 fold" if len(runs) == 1 else f"{len(runs)} folds"
    measured = f"{case_count(len(evaluation.cases))}: mean Dice {evaluation.mean('dice'):.3f}"
    echo(f"Trained {trained} and measured {measured}. See {output / 'evaluation'}.", err=True)
    return 0


def _numbers(folds: str | None, count: int) -> list[int]:
    if folds is None:
        return list(range(count))
    try:
        return sorted({int(number) for number in folds.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{folds} is not a list of folds such as 0,1,2.", param_hint="--folds") from error
