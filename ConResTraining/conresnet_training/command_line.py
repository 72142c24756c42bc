"""``python -m conresnet_training``: plan, train, resume, export."""

import importlib
from pathlib import Path

import click

from conresnet import __version__
from conresnet.command_line import main as run_command

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
data_option = click.option(
    "--data", type=FOLDER, help="Where the data set lies on this computer, if not where the plan says."
)
steps_option = click.option("--max-steps", type=click.IntRange(min=1), help="Stop once so many steps were made in all.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet_training() -> None:
    """Train ConResNet's networks and pack them as models.

    For research; not a medical device.
    """


@conresnet_training.command()
@click.argument("data", type=FOLDER)
@click.option("--output", type=FILE, required=True, help="The plan to write, a YAML file.")
def plan(data: Path, output: Path) -> None:
    """Look at the data set in the folder DATA and write a plan for it, every line of which may be edited."""
    plans, data_sets = _module("plan"), _module("data_set")
    data_set = data_sets.read_data_set(data)
    plans.write_plan(plans.make_plan(data_set, data), output)
    click.echo(f"Planned for {len(data_set.cases)} cases; read and edit {output}, then train by it.")


@conresnet_training.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="The folder of the run; new, or empty.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
@data_option
@steps_option
def train(plan: Path, output: Path, fold: int, data: Path | None, max_steps: int | None) -> None:
    """Train by PLAN; checkpoints, logs and the plan itself go into the run's folder."""
    runs = _module("run")
    runs.fit(runs.start_run(_module("plan").read_plan(plan, data), output, fold), max_steps)


@conresnet_training.command()
@click.argument("run", type=FOLDER)
@data_option
@steps_option
def resume(run: Path, data: Path | None, max_steps: int | None) -> None:
    """Go on with the run in the folder RUN from its newest checkpoint."""
    runs = _module("run")
    runs.fit(runs.open_run(run, data), max_steps)


@conresnet_training.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The package to make; a .zip or a folder."
)
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a package that is there.")
@data_option
def export(run: Path, output: Path, checkpoint: str, overwrite: bool, data: Path | None) -> None:
    """Pack the network of RUN as a model, with its figures on the held-out cases measured by the engine itself."""
    exported = _module("export").export_run(_module("run").open_run(run, data), output, checkpoint, overwrite)
    click.echo(exported)


def _module(name: str):
    """Import what a command needs when it runs, so that --help does not wait for torch."""
    return importlib.import_module(f"conresnet_training.{name}")


def main() -> int:
    """Run one command and return its exit status, by the rules of ``conresnet.command_line``."""
    return run_command(None, conresnet_training, "python -m conresnet_training")
