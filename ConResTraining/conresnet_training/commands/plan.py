"""``python -m conresnet_training plan``: a plan made from the data."""

from pathlib import Path

import click

from conresnet_training.commands.options import FILE, FOLDER


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--output", type=FILE, required=True, help="The plan to write, a YAML file.")
def plan(data: Path, output: Path) -> None:
    """Look at the data set in the folder DATA and write a plan for it, every line of which may be edited."""
    from conresnet_training.data_sets import read_data_set
    from conresnet_training.plan import write_plan
    from conresnet_training.planning import make_plan

    data_set = read_data_set(data)
    write_plan(make_plan(data_set, data), output)
    click.echo(f"Planned for {len(data_set.cases)} cases; read and edit {output}, then train by it.")
