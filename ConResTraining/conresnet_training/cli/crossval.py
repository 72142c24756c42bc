"""``python -m conresnet_training crossval``: all folds of a plan, and their evaluation."""

from pathlib import Path

import click

from conresnet_training.cli.options import (
    FILE,
    FOLDER,
    data_option,
    devices_option,
    settings_option,
    steps_option,
)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, help="The folder of the cross-validation.  [default: PLAN's name and _crossval]")
@click.option("--folds", help="Which, as in 0,1,2.  [default: all of the plan]")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="So many folds are trained side by side."
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
) -> None:
    """Train the folds of PLAN, each in a process of its own, and measure every case by the fold that never saw it.

    Given again, the command goes on with what is not finished, each fold by the training settings of its own plan.yaml.
    A stop ends every fold after its step.
    """
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.runs.cross_validation import cross_validate

    followed = with_settings(read_plan(plan, data), settings)
    output = output or Path(f"{plan.stem}_crossval")
    options = ["--devices", str(devices), "--data", str(followed.data)]
    if max_steps is not None:
        options += ["--max-steps", str(max_steps)]
    runs, is_done = cross_validate(
        followed,
        output,
        _numbers(folds, followed.training.folds),
        jobs,
        max_steps,
        options,
        click.echo,
    )
    if not is_done:
        click.echo(f"The cross-validation {output} was stopped; the same command goes on with it.", err=True)
        return
    from conresnet_training.evaluation import evaluate_runs, summary_table

    evaluation = evaluate_runs(runs, output / "evaluation")
    click.echo(summary_table(evaluation.summary))
    click.echo(
        f"{len(runs)} folds are trained and measured on {len(evaluation.cases)} cases: mean Dice "
        f"{evaluation.mean('dice'):.3f}; see {output / 'evaluation'}.",
        err=True,
    )


def _numbers(folds: str | None, count: int) -> list[int]:
    if folds is None:
        return list(range(count))
    try:
        return sorted({int(number) for number in folds.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{folds} is not a list of folds such as 0,1,2.", param_hint="--folds") from error
