"""``python -m conresnet models`` and ``import``: list, show, verify, install, remove and make model packages."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from conresnet import importing
from conresnet.errors import UserError
from conresnet.messages import printable, sentence
from conresnet.package import CARD_FILE, TILINGS, Input
from conresnet.package.download import get_model, read_catalog
from conresnet.package.outputs import Segment
from conresnet.package.reader import ModelPackage, figures, read_metrics, segment_figures
from conresnet.package.schema import load_json
from conresnet.package.store import (
    check_package_path,
    check_removable,
    find_model,
    install_model,
    is_removable,
    list_models,
    read_model,
    remove_model,
    user_folder,
)

_WIDTH = 100

_extra_folder = click.option(
    "--folder", metavar="PATH", help="Look here first: a folder of model packages, or one model package."
)


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List, show, verify, download, install and remove model packages.

    Models are searched for in the path given by --folder, then in your own models folder (or in the folders that the
    environment variable CONRESNET_MODELS names instead), then among those shipped. The first match is used.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@models.command("list", short_help="List the available models.")
@_extra_folder
def list_command(folder: str | None) -> None:
    """List the available models. For those that cannot be used, show the reason."""
    entries = list_models(folder)
    usable = [entry for entry in entries if entry.description]
    rows = [
        (
            entry.name,
            entry.description.version,
            entry.kind,
            ", ".join(item.name for item in entry.description.inputs),
            str(len(entry.description.output.segments)),
            entry.description.title,
        )
        for entry in usable
        if not entry.hidden_by
    ]
    if rows:
        click.echo(_table([("NAME", "VERSION", "FROM", "CHANNELS", "SEGMENTS", "TITLE"), *rows]))
    else:
        click.echo("No models are available.")
    for entry in usable:
        if entry.hidden_by:
            click.echo(f"\nHidden: {entry.path}, because {entry.hidden_by} is also named {entry.name} and comes first.")
    for entry in entries:
        if entry.problem:
            click.echo(f"\nCannot be used: {entry.problem.message}")
    try:
        click.echo(f"\nYour models folder is {user_folder()}.")
    except UserError as error:
        click.echo(f"\n{error.message}")


@models.command(short_help="Show a model's inputs, segments, settings and origin.")
@click.argument("model", metavar="NAME|PATH")
@_extra_folder
def show(model: str, folder: str | None) -> None:
    """Show a model's inputs, segments, settings, origin and measured accuracy."""
    click.echo(_shown(read_model(model, folder, verify=False)))


@models.command(short_help="Check that models are complete.")
@click.argument("names", metavar="NAME|PATH...", nargs=-1, required=True)
@_extra_folder
def verify(names: tuple[str, ...], folder: str | None) -> None:
    """Check that models are complete and can be used: description, sizes, checksums, networks and their weights."""
    problems = []
    for name in names:
        try:
            package = read_model(name, folder)
            _check_contents(package)
        except UserError as error:
            problems.append(error)
            if len(names) > 1:
                click.echo(f"{name}: {error.message}")
        else:
            files = ", ".join(package.description.files)
            click.echo(f"{name}: complete ({files}; {_megabytes(package)}).")
    if problems and len(names) == 1:
        raise problems[0]
    if problems:
        raise UserError("packages-wrong", wrong=len(problems), count=len(names))


_overwrite = click.option("--overwrite", is_flag=True, help="Replace a model of the same name.")


@models.command(short_help="Copy a model package into your models folder.")
@click.argument("source", metavar="PATH")
@_overwrite
def install(source: str, overwrite: bool) -> None:
    """Copy a model package, a folder or a .zip file, into your models folder."""
    _say_installed(install_model(source, overwrite))


@models.command(short_help="Delete an installed model.")
@click.argument("model", metavar="NAME|PATH")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
def remove(model: str, yes: bool) -> None:
    """Delete a model package from your models folder, even if it is damaged."""
    # The user's own models come first, and a damaged one is found here, too.
    removable = [entry.path for entry in list_models() if entry.name == model and is_removable(entry.path)]
    path = removable[0] if removable else find_model(model)
    check_removable(path)
    if not yes:
        click.confirm(f"Delete {path}?", abort=True)
    remove_model(path)
    click.echo(f"Deleted {path}.")


_catalog = click.option(
    "--catalog", default="", metavar="PATH|URL", help="Catalog to use instead of CONRESNET_CATALOG or the included one."
)


@models.command(short_help="List the models that can be downloaded.")
@_catalog
def catalog(catalog: str) -> None:
    """List the models that can be downloaded with `models get`."""
    entries = read_catalog(catalog)
    rows = [(item.name, item.version, f"{item.bytes / 1e6:.1f} MB", item.license, item.title) for item in entries]
    if rows:
        click.echo(_table([("NAME", "VERSION", "SIZE", "LICENSE", "TITLE"), *rows]))
    else:
        click.echo("The catalog lists no models yet, because all models come with ConResNet.")


@models.command(short_help="Download a model package and install it.")
@click.argument("source", metavar="NAME|URL")
@click.option("--sha256", default="", metavar="DIGITS", help="Expected checksum of the .zip file at a URL.")
@_catalog
@_overwrite
def get(source: str, sha256: str, catalog: str, overwrite: bool) -> None:
    """Download a model package and install it into your models folder.

    NAME is a model in the catalog; URL is the address of a .zip file. The checksum is verified before anything is
    installed. Repeat the command to continue an interrupted download. The system's proxy (HTTPS_PROXY) is used.
    """
    shown = -1

    def report(have: int, total: int) -> None:
        nonlocal shown
        percent = 100 * have // total if total else have >> 20
        if percent // 10 > shown // 10:
            whole = f" of {total / 1e6:.1f}" if total else ""
            click.echo(f"Downloaded {have / 1e6:.1f}{whole} MB", err=True)
        shown = percent

    if source.lower().endswith(".zip") and Path(source).is_file():
        raise UserError("download-local", file=source)
    _say_installed(get_model(source, sha256=sha256, catalog=catalog, overwrite=overwrite, on_progress=report))


def _say_installed(package: ModelPackage) -> None:
    click.echo(f"Installed {package.description.name} {package.description.version} as {package.path}.")
    for entry in list_models():
        if entry.hidden_by == package.path:
            click.echo(f"It is now used instead of {entry.path}, which has the same name.")


def _check_contents(package: ModelPackage) -> None:
    """Read the measurements and the review list, and build the networks with their weights, as for a segmentation."""
    # Imported here because it needs torch, which the other commands do not.
    from conresnet.results.review import read_ranking
    from conresnet.systems.predictors import build_system

    read_metrics(package)
    read_ranking(package)
    build_system(package)


def _shown(package: ModelPackage) -> str:
    # It imports numpy, which help does without.
    from conresnet.results.review import read_ranking

    description = package.description
    blocks = [
        f"{description.title} ({description.name} {description.version})",
        _pairs(_about(package)),
        "Channels\n" + textwrap.indent(_table(map(_channel_row, description.inputs)), "  "),
        "Segments\n" + textwrap.indent(_table(map(_segment_row, description.output.segments)), "  "),
        "Computation\n" + _pairs(_computation(package)),
    ]
    if metrics := read_metrics(package):
        # Unlike a description, metrics may be any JSON.
        columns = segment_figures(metrics)
        shown = [(printable(name), printable(_figure(value))) for name, value in figures(metrics)]
        blocks.append("Evaluation\n" + _pairs(shown))
        if columns:
            blocks.append(textwrap.indent(_table(_segment_table(columns)), "  "))
    ranking = read_ranking(package)
    if ranking.figures:
        shown = [(printable(name), printable(_figure(value))) for name, value in figures(ranking.figures) if value]
        blocks.append("Review list, cross-validated\n" + _pairs([*shown, ("Note", printable(ranking.note))]))
    return "\n\n".join(blocks)


def _about(package: ModelPackage) -> list[tuple[str, str]]:
    description = package.description
    pairs = [
        ("Location", f"{package.path} ({_megabytes(package)})"),
        ("Description", description.description),
        ("Intended use", description.intended_use),
        ("Limitations", description.limitations),
        ("Training data", description.training_data),
        ("License", description.license),
        ("Attribution", description.attribution),
        *(("Please cite", citation) for citation in description.citations),
        ("Model card", str(package.path / CARD_FILE) if CARD_FILE in description.files else ""),
    ]
    return [(key, text) for key, text in pairs if text]


def _computation(package: ModelPackage) -> list[tuple[str, str]]:
    from conresnet.package.outputs import MAPS, provided_maps, residual_plane

    description = package.description
    inference, preparation = description.inference, description.preparation
    spacing = " x ".join(f"{side:g}" for side in preparation.spacing) + " mm" if preparation.spacing else "the image's"
    plane = residual_plane(description)
    system = description.system
    arguments = "".join(f", {name.replace('_', ' ')} {_figure(value)}" for name, value in system.arguments.items())
    mirrored, locator = ", ".join(inference.mirror_axes), description.locator
    places = ", ".join(name for place in locator.places for name in place.segments) if locator else ""
    look = inference.coarse_look
    pairs = [
        *_networks(package),
        ("System", f"{system.type.replace('_', ' ')}{arguments}"),
        ("Residual", f"between {plane} slices" if plane else ""),
        ("Maps", ", ".join(name for name in MAPS if name in provided_maps(description))),
        ("Orientation", f"{preparation.orientation} (directions of the axes S, H and W)"),
        ("Voxels", spacing),
        ("Window", " x ".join(str(side) for side in inference.window) + f", {inference.tiling} tiling"),
        ("Coarse look", f"with voxels {look.scale:g} times as large, margin {look.margin:g} mm" if look else ""),
        ("Mirroring", f"averaged over copies mirrored along {mirrored}" if mirrored else ""),
        ("Locator", f"{locator.model}, which finds: {places}" if locator else ""),
    ]
    return [(key, text) for key, text in pairs if text]


def _networks(package: ModelPackage) -> Iterator[tuple[str, str]]:
    """One line for each kind and size of network."""
    sizes = ((item.type, package.count_parameters(item.weights)) for item in package.description.system.networks)
    for (kind, parameters), count in Counter(sizes).items():
        each = f"{count} of {kind}, each" if count > 1 else f"{kind},"
        yield ("Networks" if count > 1 else "Network"), f"{each} {parameters / 1e6:.2f} M parameters"


def _channel_row(item: Input) -> tuple[str, ...]:
    own, *copies = (
        ", ".join(step["step"].replace("_", " ") for step in steps) or "unchanged" for steps in item.channels
    )
    return (
        item.name,
        item.modality,
        f"recognized by: {', '.join(item.keywords) or 'nothing'}",
        "; ".join([f"intensity: {own}", *(f"a copy: {steps}" for steps in copies)]),
    )


def _segment_row(segment: Segment) -> tuple[str, ...]:
    code = segment.terminology.type if segment.terminology else None
    return (
        str(segment.label),
        segment.name,
        "#{:02x}{:02x}{:02x}".format(*segment.color),
        f"{code.scheme} {code.value} {code.meaning}" if code else "",
    )


def _segment_table(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """One line per segment, with a column for each measurement."""
    yield ["Segment", *map(printable, columns)]
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        values = (column.get(name) for column in columns.values())
        yield [printable(name), *("" if value is None else printable(_figure(value)) for value in values)]


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_figure(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _megabytes(package: ModelPackage) -> str:
    return f"{sum(entry.bytes for entry in package.description.files.values()) / 1e6:.1f} MB"


def _table(rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    margin = max((len(key) for key, _ in pairs), default=0) + 2
    return "\n".join(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent="  " + key.ljust(margin),
            subsequent_indent=" " * (margin + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, text in pairs
    )


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="PACKAGE",
    required=True,
    type=click.Path(path_type=Path),
    help="The model package to write: a .zip file if its name ends in .zip, otherwise a folder.",
)
@click.option("--name", metavar="NAME", help="The model's name.  [default: that of PACKAGE]")
@click.option("--title", help="The model's title in lists.")
@click.option("--license", "license_name", help="The license of the weights.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME",
    help="An input channel; repeat it for all of them, in the network's order.  [default: FLAIR T1 T1ce T2]",
)
@click.option(
    "--segment",
    "segments",
    multiple=True,
    metavar="NAME=LABEL",
    help="A region and its value in the label map; repeat it for all regions, in the network's order. Later ones cover "
    "earlier ones.  [default: enhancing tumor 4, whole tumor 2, tumor core 1; painted in the order whole, core, "
    "enhancing]",
)
@click.option(
    "--orientation", metavar="LETTERS", help="Directions in which the axes S, H and W increase.  [default: SLP]"
)
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
    check_package_path(output, overwrite)
    try:
        chosen = load_json(settings.read_bytes(), str(settings)) if settings else {}
    except OSError as error:
        raise UserError("settings-unreadable", file=str(settings), reason=error.strerror) from None
    except UserError as error:
        raise UserError("settings-unreadable", file=str(settings), reason=error.values["reason"]) from error
    chosen.setdefault("name", importing.model_name(output.stem if output.suffix.lower() == ".zip" else output.name))
    chosen.update({key: text for key, text in (("name", name), ("title", title), ("license", license_name)) if text})
    if channels:
        chosen["inputs"] = importing.inputs_named(channels)
    if segments:
        chosen["output"] = importing.segments_named(segments)
    if orientation:
        _section(chosen, "preparation")["orientation"] = orientation
    if spacing:
        _section(chosen, "preparation")["spacing"] = importing.spacing_named(spacing.split(","))
    if tiling:
        _section(chosen, "inference").update(importing.INFERENCE[tiling])
    package, average = importing.import_checkpoint(checkpoint, chosen, output, overwrite)
    if average:
        click.echo(sentence("import-average", {"place": average, "path": checkpoint}))
    parameters = package.count_parameters(importing.WEIGHTS_FILE) / 1e6
    click.echo(f"Wrote {package.path}: {package.description.title}, {parameters:.2f} M parameters in use.")


def _section(settings: dict[str, Any], key: str) -> dict[str, Any]:
    section = settings.setdefault(key, {})
    if not isinstance(section, dict):
        raise click.UsageError(f'"{key}" in the settings is not an object.')
    return section
