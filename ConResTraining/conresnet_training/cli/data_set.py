"""``python -m conresnet_training check`` and ``plan``: what is done with a data set before training."""

from pathlib import Path

import click

from conresnet_training.cli import FILE, FOLDER, FiniteRange, settings_option
from conresnet_training.planning.systems import DEFAULT, SYSTEMS, cataloged


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--output", type=FOLDER, help="Folder for the page and the JSON file.  [default: DATA_check]")
def check(data: Path, output: Path | None) -> int:
    """Read every case of the data set in the folder DATA and list errors and warnings, one line per case.

    DATA is a folder in the layout of the Medical Segmentation Decathlon, nnU-Net (raw data) or BraTS, or a folder of
    label maps with a label_maps.json; it is not modified. The results are check.html, a page with sizes, spacings,
    intensities, label volumes and slices, and check.json. The exit status is 2 if there are errors that would make
    training refuse the data, otherwise 0.
    """
    from conresnet_training.check import ERROR, WARNING, check_data_set, worst
    from conresnet_training.check.page import PAGE_FILE, make_output_folder, write_check
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.reporting import case_count, echo, progress_bar

    data_set = read_data_set(data)
    output = make_output_folder(output or Path(f"{data.resolve().name}_check"), data)
    with progress_bar(len(data_set.cases)) as done:
        report = check_data_set(data_set, data, done)
    for line in report.lines():
        echo(line)
    write_check(report, output)
    whole = "; the data set as a whole has errors" if worst(report.findings) == ERROR else ""
    echo(
        f"Checked {case_count(len(report.cases))} of {data_set.name}: {report.count(ERROR)} with errors, "
        f"{report.count(WARNING)} with warnings only{whole}. See {output / PAGE_FILE}.",
        err=True,
    )
    return 2 if report.has_errors else 0


MOST_GIGABYTES = 100_000


def _listed_systems() -> str:
    """The list of systems for the help; the mark keeps click from rewrapping it."""
    width = max(map(len, SYSTEMS)) + 2
    return "\n".join(["\b", "Systems:", *(f"  {name:<{width}}{entry.title}" for name, entry in SYSTEMS.items())])


@click.command(epilog=_listed_systems())
@click.argument("data", type=FOLDER)
@click.option("--output", type=FILE, required=True, help="The plan to write, a YAML file.")
@click.option("--system", metavar="NAME", default=DEFAULT, show_default=True, help="System to train (listed below).")
@click.option(
    "--kind",
    type=click.Choice(["labels", "regions"]),
    help="Whether each voxel gets one label, or regions may overlap.  [default: regions if the data set has them]",
)
@click.option(
    "--memory",
    type=FiniteRange(min=0, min_open=True, max=MOST_GIGABYTES),
    metavar="GB",
    help="Memory of the GPU used for training.  [default: free memory of the device]",
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Device that the model will be trained on: auto, cpu, cuda, cuda:N or mps.",
)
@click.option(
    "--residual-axis",
    type=click.Choice(["S", "H", "W"]),
    help="The model's axis along which the network compares neighboring slices.  [default: S]",
)
@click.option(
    "--base-width",
    type=click.IntRange(min=8),
    metavar="CHANNELS",
    help="Channels of the networks' first stage, a multiple of 8.  [default: what fits in memory, at most 32]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing plan, including any edits.")
@settings_option
def plan(
    data: Path,
    output: Path,
    system: str,
    kind: str | None,
    memory: float | None,
    device: str,
    residual_axis: str | None,
    base_width: int | None,
    overwrite: bool,
    settings: tuple[str, ...],
) -> None:
    """Examine the data set in the folder DATA and write a plan for training on it. You can edit every line of the plan.

    DATA is a folder in the layout of the Medical Segmentation Decathlon, nnU-Net (raw data) or BraTS, or a folder of
    label maps with a label_maps.json, from which training images are synthesized. The command shows what was planned
    and why.
    """
    from conresnet.errors import UserError
    from conresnet.package.store import read_model
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.planning.memory import Budget
    from conresnet_training.planning.plan import (
        check_is_plan,
        chosen_batch,
        chosen_orientation,
        chosen_spacing,
        write_plan,
    )
    from conresnet_training.planning.planner import Choices, make_plan
    from conresnet_training.reporting import case_count, echo
    from conresnet_training.runs.run import check_fits_data, check_folds, check_target_names, check_window
    from conresnet_training.training import steps_of_run

    cataloged(system)
    if output.exists():
        if not overwrite:
            raise UserError("plan-exists", path=str(output))
        check_is_plan(output)
    data_set = read_data_set(data)
    budget = Budget.given(memory) if memory else Budget.here(device)
    chosen = (choose(settings) for choose in (chosen_batch, chosen_orientation, chosen_spacing))
    choices = Choices(system, kind, residual_axis, base_width, *chosen)
    planned, reasons = make_plan(data_set, data, budget, choices, settings)
    check_window(planned)
    check_fits_data(data_set, planned)
    check_target_names(data_set, planned)
    check_folds(data_set, planned)
    # What was set may not fit together, which is better said now than by `train`.
    steps_of_run(planned)
    if planned.training.start_from:
        read_model(planned.training.start_from)
    write_plan(planned, output)
    widths = [max(len(getattr(reason, column)) for reason in reasons) for column in ("what", "value")]
    for reason in reasons:
        echo(f"{reason.what:<{widths[0]}}  {reason.value:<{min(widths[1], 40)}}  {reason.why}")
    for setting in settings:
        echo(f"{'set by you':<{widths[0]}}  {setting}")
    for sentence in data_set.warnings.values():
        echo(f"Warning: {sentence}.", err=True)
    echo(
        f"Planned for {case_count(len(data_set.cases))}. Review and edit {output}, then use it for training.", err=True
    )
