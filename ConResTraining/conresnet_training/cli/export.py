"""``python -m conresnet_training export``: make a model package from runs."""

from pathlib import Path

import click

from conresnet_training.cli.options import FOLDER, checkpoint_option, data_option


@click.command()
@click.argument("folders", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The package to write: a .zip file or a folder."
)
@checkpoint_option
@click.option("--name", help="The model's name, instead of the plan's.")
@click.option("--title", help="The model's title, instead of the plan's.")
@click.option("--overwrite", is_flag=True, help="Replace an existing package.")
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
    """Make a model of the network of RUN, or an ensemble of those of several runs (folds, seeds).

    RUN is the folder of a run, or of a cross-validation with fold_0, fold_1 and so on. The package contains figures of
    the held-out cases, measured by the engine itself, each case by the networks that never saw it; a model card; and a
    picture.
    """
    from conresnet_training.evaluation.runs import open_runs
    from conresnet_training.reporting.text import echo
    from conresnet_training.runs.export import export_runs
    from conresnet_training.runs.run import open_run

    runs = [run for folder in folders for run in open_runs(folder, data) or [open_run(folder, data)]]
    echo(export_runs(runs, output, checkpoint, overwrite, name, title), err=True)
