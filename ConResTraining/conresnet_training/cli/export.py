"""``python -m conresnet_training export``: runs as a model package."""

from pathlib import Path

import click

from conresnet_training.cli.options import FOLDER, checkpoint_option, data_option


@click.command()
@click.argument("folders", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The package to make; a .zip or a folder."
)
@checkpoint_option
@click.option("--name", help="The model's name, instead of the plan's.")
@click.option("--title", help="What people read of it, instead of the plan's.")
@click.option("--overwrite", is_flag=True, help="Replace a package that is there.")
@data_option
def export(
    folders: tuple[Path, ...],
    output: Path,
    checkpoint: str,
    name: str | None,
    title: str | None,
    overwrite: bool,
    data: Path | None,
) -> None:
    """Pack the network of RUN as a model, or those of several runs (folds, seeds) as an ensemble.

    RUN is the folder of a run, or of a cross-validation with fold_0, fold_1 and so on. The package holds the figures on
    the held-out cases, measured by the engine itself, each case by the networks that never saw it; a model card; and a
    picture.
    """
    from conresnet_training.evaluation.runs import open_runs
    from conresnet_training.runs.export import export_runs
    from conresnet_training.runs.run import open_run

    runs = [run for folder in folders for run in open_runs(folder, data) or [open_run(folder, data)]]
    click.echo(export_runs(runs, output, checkpoint, overwrite, name, title), err=True)
