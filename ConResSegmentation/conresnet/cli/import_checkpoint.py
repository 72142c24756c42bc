"""``python -m conresnet import``: a model package from a checkpoint by the paper's authors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from conresnet.errors import UserError
from conresnet.package.description import TILINGS


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="PACKAGE",
    required=True,
    type=click.Path(path_type=Path),
    help="The model package to write: a .zip file if its name ends in .zip, otherwise a folder.",
)
@click.option("--name", help="The model's name.  [default: that of PACKAGE]")
@click.option("--title", help="The model's title in lists.")
@click.option("--license", "license_name", help="The license of the weights.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME",
    help="An input channel; list all, in the network's order.  [default: FLAIR T1 T1ce T2]",
)
@click.option(
    "--segment",
    "segments",
    multiple=True,
    metavar="NAME=LABEL",
    help="A region and its value in the label map; list all, in the network's order. Later ones cover earlier "
    "ones.  [default: enhancing tumor 4, whole tumor 2, tumor core 1; painted in the order whole, core, "
    "enhancing]",
)
@click.option("--orientation", help="Directions in which S, H and W increase.  [default: SLP]")
@click.option("--spacing", metavar="S,H,W", help="Voxel size in mm.  [default: the image's own]")
@click.option("--tiling", type=click.Choice(TILINGS), help="How windows are placed.  [default: authors]")
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A JSON file with fields of model.json that replace the defaults, for anything that has no option here.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing model package.")
def import_checkpoint(
    checkpoint: Path,
    output: Path,
    name: str | None,
    title: str | None,
    license_name: str | None,
    channels: tuple[str, ...],
    segments: tuple[str, ...],
    orientation: str | None,
    spacing: str | None,
    tiling: str | None,
    settings: Path | None,
    overwrite: bool,
) -> None:
    """Make a model package from CHECKPOINT, a state_dict by the paper's authors (.pth).

    Channels, preparation, tiling and regions default to those of their BraTS 2018 models. Nothing in the checkpoint is
    executed. It must have all tensors of ConResNet and no others. Their names may have any prefix (DataParallel,
    torch.compile, Lightning), and the file may also hold the state of a training loop. If it holds both the weights
    and a running average of them, the average is used.
    """
    from conresnet.importing import INFERENCE, inputs_named, model_name
    from conresnet.package.store import check_replaceable

    check_replaceable(output, overwrite)
    chosen = _read_settings(settings) if settings else {}
    chosen.setdefault("name", model_name(output.stem if output.suffix.lower() == ".zip" else output.name))
    chosen.update({key: text for key, text in (("name", name), ("title", title), ("license", license_name)) if text})
    if channels:
        chosen["inputs"] = inputs_named(channels)
    if segments:
        chosen["output"] = _segments(segments)
    if orientation:
        _section(chosen, "preparation")["orientation"] = orientation
    if spacing:
        _section(chosen, "preparation")["spacing"] = _numbers(spacing)
    if tiling:
        _section(chosen, "inference").update(INFERENCE[tiling])
    _write(checkpoint, chosen, output, overwrite)


def _write(checkpoint: Path, settings: dict[str, Any], output: Path, overwrite: bool) -> None:
    from conresnet.importing import WEIGHTS_FILE, import_checkpoint

    package, average = import_checkpoint(checkpoint, settings, output, overwrite)
    if average:
        click.echo(f"The weights are a running average, from {average} in {checkpoint}.")
    parameters = package.count_parameters(WEIGHTS_FILE) / 1e6
    click.echo(f"Wrote {package.path}: {package.description.title}, {parameters:.2f} M parameters in use.")


def _read_settings(path: Path) -> dict[str, Any]:
    from conresnet.package.schema import load_json

    try:
        return load_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError("settings-unreadable", file=str(path), reason=error.strerror) from None


def _section(settings: dict[str, Any], key: str) -> dict[str, Any]:
    section = settings.setdefault(key, {})
    if not isinstance(section, dict):
        raise click.UsageError(f'"{key}" in the settings is not an object.')
    return section


def _segments(texts: Sequence[str]) -> dict[str, Any]:
    from conresnet.importing import segments_named

    try:
        return segments_named(texts)
    except ValueError as error:
        raise click.BadParameter(f'"{error}" does not have the form NAME=LABEL.', param_hint="--segment") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'"{text}" is not three numbers separated by commas.', param_hint="--spacing"
        ) from None
