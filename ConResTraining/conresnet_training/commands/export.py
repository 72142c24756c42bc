"""``python -m conresnet_training export``: a run as a model package."""

from pathlib import Path

import click

from conresnet_training.commands.options import FOLDER, data_option


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The package to make; a .zip or a folder."
)
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a package that is there.")
@data_option
def export(run: Path, output: Path, checkpoint: str, overwrite: bool, data: Path | None) -> None:
    """Pack the network of RUN as a model, with its figures on the held-out cases measured by the engine itself."""
    from conresnet_training.export import export_run
    from conresnet_training.run import open_run

    click.echo(export_run(open_run(run, data), output, checkpoint, overwrite))
