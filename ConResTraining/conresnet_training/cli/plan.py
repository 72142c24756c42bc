"""``python -m conresnet_training plan``: a plan made from the data."""

from pathlib import Path

import click

from conresnet_training.cli.options import FILE, FOLDER, settings_option
from conresnet_training.planning.systems import DEFAULT, SYSTEMS


def _listed_systems() -> str:
    """The systems for the help, as they stand in the catalogue; the mark keeps click from filling the lines."""
    width = max(map(len, SYSTEMS)) + 2
    return "\n".join(["\b", "Systems:", *(f"  {name:<{width}}{entry.title}" for name, entry in SYSTEMS.items())])


@click.command(epilog=_listed_systems())
@click.argument("data", type=FOLDER)
@click.option("--output", type=FILE, required=True, help="The plan to write, a YAML file.")
@click.option(
    "--system",
    type=click.Choice(list(SYSTEMS)),
    metavar="NAME",
    default=DEFAULT,
    show_default=True,
    help="What is trained; the names stand below.",
)
@click.option(
    "--kind",
    type=click.Choice(["labels", "regions"]),
    help="Whether each voxel gets one label, or regions may overlap.  [default: regions where the data set has them]",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory of the GPU that will train.  [default: what is free here, of the GPU or else of the computer]",
)
@click.option(
    "--residual-axis",
    type=click.Choice(["S", "H", "W"]),
    help="The model's axis across which the network compares neighboring slices.  [default: S]",
)
@click.option(
    "--base-width",
    type=click.IntRange(min=8),
    metavar="CHANNELS",
    help="Channels of the networks' first stage, a multiple of 8.  [default: what fits the memory, 32 at the most]",
)
@click.option("--overwrite", is_flag=True, help="Replace a plan that is there, and what was edited in it.")
@settings_option
def plan(
    data: Path,
    output: Path,
    system: str,
    kind: str | None,
    memory: float | None,
    residual_axis: str | None,
    base_width: int | None,
    overwrite: bool,
    settings: tuple[str, ...],
) -> None:
    """Look at the data set in the folder DATA and write a plan for it, every line of which may be edited.

    DATA is a folder in the layout of the Medical Segmentation Decathlon, of nnU-Net's raw data, or of BraTS, or one of
    label maps with a label_maps.json, from which training images are synthesized. What was planned, and why, is shown.
    """
    from conresnet.errors import UserError
    from conresnet_training.data import read_data_set
    from conresnet_training.planning.memory import Budget
    from conresnet_training.planning.plan import chosen_batch, with_settings, write_plan
    from conresnet_training.planning.planner import Choices, plan_with_reasons

    if output.exists() and not overwrite:
        sentence = f"{output} is there already; name another file, or give --overwrite to lose what was edited in it."
        raise UserError("plan-exists", sentence, path=str(output))
    data_set = read_data_set(data)
    budget = Budget.given(memory) if memory else Budget.here()
    choices = Choices(system, kind, residual_axis, base_width, chosen_batch(settings))
    made, reasons = plan_with_reasons(data_set, data, budget, choices)
    made = with_settings(made, settings)
    write_plan(made, output)
    widths = [max(len(getattr(reason, column)) for reason in reasons) for column in ("what", "value")]
    for reason in reasons:
        click.echo(f"{reason.what:<{widths[0]}}  {reason.value:<{min(widths[1], 40)}}  {reason.why}")
    for setting in settings:
        click.echo(f"{'set by you':<{widths[0]}}  {setting}")
    click.echo(f"Planned for {len(data_set.cases)} cases; read and edit {output}, then train by it.", err=True)
