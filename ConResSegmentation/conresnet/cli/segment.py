"""``python -m conresnet segment``: one case, or many that a CSV file lists, with the same engine as in Slicer."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conresnet.cli import say
from conresnet.cli.cases import read_case_list, result_text, segment_to_folder, shown_progress
from conresnet.errors import UserError
from conresnet.images.checks import kind_of
from conresnet.images.files import check_files
from conresnet.images.inputs import by_channel, check_locator, sort_by_channel
from conresnet.inference.labels import check_postprocessing
from conresnet.messages import sentence
from conresnet.package.outputs import check_maps
from conresnet.package.store import read_model
from conresnet.request import OptionSpec, SegmentOptions, check_backend
from conresnet.results import check_replaceable, check_writable
from conresnet.systems import check_system

if TYPE_CHECKING:
    from conresnet.package import Input, ModelDescription
    from conresnet.package.reader import ModelPackage

_PATH = click.Path(path_type=Path)
# Endings of an --output that seems to be meant as one file with the segmentation.
_IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


def _engine_options(command: Callable) -> Callable:
    """A click option for each of ``SegmentOptions``."""
    for name, spec in reversed(SegmentOptions.specs().items()):
        # A flag that is not given is None, as any option.
        how = {"is_flag": True, "default": None} if spec.is_flag else {"type": _click_type(spec)}
        name = f"--{name.replace('_', '-')}"
        command = click.option(name, metavar=spec.metavar, help=spec.help, **how)(command)
    return command


def _click_type(spec: OptionSpec) -> click.ParamType | None:
    if spec.choices:
        return click.Choice(spec.choices)
    if spec.least is None:
        return None
    return click.IntRange(spec.least) if isinstance(spec.least, int) else click.FloatRange(spec.least, min_open=True)


@click.command(context_settings={"max_content_width": 100})
@click.argument("images", nargs=-1, type=_PATH, metavar="[IMAGE]...")
@click.option("--model", required=True, metavar="NAME|PATH", help="The model: its name, or the path of its package.")
@click.option("--output", required=True, type=_PATH, metavar="FOLDER", help="The folder for the results.")
@click.option(
    "--channel",
    "named",
    multiple=True,
    metavar="NAME=FILE",
    help="Instead of IMAGE: the image for the channel NAME, which `models show` lists. Repeat it for each channel.",
)
@_engine_options
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in FOLDER.")
@click.option(
    "--cases",
    type=_PATH,
    metavar="LIST.csv",
    help="Segment many cases, except those already segmented. Columns: name, one per channel, and optionally roi. "
    "Results go to FOLDER/name.",
)
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="With --cases: segment N cases at once, in separate processes."
)
@click.option(
    "--scheduler", metavar="URL", help="With --cases: use the workers of this Dask scheduler (tcp:// or tls://)."
)
def segment(
    images: tuple[Path, ...],
    model: str,
    output: Path,
    named: tuple[str, ...],
    overwrite: bool,
    cases: Path | None,
    jobs: int | None,
    scheduler: str | None,
    **given: object,
) -> None:
    """Segment a case: one IMAGE per channel, or one 4D file with all of them.

    Images whose names show their channel, such as pat_T1.nii.gz and pat_FLAIR.nii.gz, may be in any order. Otherwise,
    give them in the model's order.

    An image is a NIfTI, Analyze, NRRD, MetaImage, MINC or HDF5 file, or a folder that contains one DICOM series. The
    command writes these files to the output folder: segmentation.nii.gz (the model's label values on the first image's
    grid), <map>.nii.gz for each of --maps, the files of --seg-nrrd, --review, --statistics and --report, and
    report.json (volumes in mL, windows, device, precision, seconds).
    """
    ways = sum(map(bool, (images, named, cases)))
    if not ways:
        raise click.UsageError(
            "No image was given: name the images as IMAGE..., each with --channel, or in a list with --cases."
        )
    if ways > 1:
        raise click.UsageError(
            "Give the images in one way only: as IMAGE..., each with --channel, or in a list with --cases."
        )
    if cases and given["roi"] is not None:
        raise click.UsageError("With --cases, each case has its own roi in the list.")
    if cases and given["report_name"] is not None:
        raise click.UsageError("With --cases, leave out --report-name; all reports would have the same name.")
    if (jobs or scheduler) and not cases:
        raise click.UsageError("--jobs and --scheduler need a list of cases (--cases).")
    if jobs and scheduler:
        raise click.UsageError("Name either --jobs or --scheduler.")
    if given["report_name"] is not None and not given["report"]:
        raise click.UsageError("--report-name needs --report.")
    if str(output) == "-":
        raise click.UsageError("Name a folder for --output; results cannot be written to the standard output.")
    # Check everything that needs no torch first: importing it and loading the model take seconds.
    package = read_model(model)
    channels = [item.name for item in package.description.inputs]
    options = _options(given, package.description)
    if cases:
        listed = read_case_list(cases, channels)
        if output.exists() and not output.is_dir():
            raise UserError("output-not-folder", path=str(output))
        if not any((output / case.name).exists() for case in listed):
            check_writable(output)
    else:
        paths = by_channel(_files(named), channels) if named else _sorted(images, package.description.inputs)
        # Report a missing image rather than existing results, because that is more useful.
        try:
            check_files(paths, channels)
        except UserError as error:
            if error.code == "wrong-channel-count" and len(paths) > len(channels):
                raise error.within(_hint(paths)) from error
            raise
        check_replaceable(output, options, overwrite, paths)
        check_writable(output)
    if output.name.lower().endswith(_IMAGE_SUFFIXES) and not output.exists():
        # No error, because scripts may name the folder of a case after its image.
        say(sentence("warn-output-is-folder", {"path": output}), err=True)
    # The warnings that the engine logs are printed with the result; without a handler they would appear twice.
    logging.getLogger("conresnet").addHandler(logging.NullHandler())
    if cases:
        from conresnet.cli.cohort import segment_cohort

        how = {"case_list": cases, "overwrite": overwrite, "jobs": jobs or 0, "scheduler": scheduler or ""}
        segment_cohort(listed, package, options, output, **how)
    else:
        _segment(package, paths, options, output, overwrite)


def _hint(images: Sequence[Path]) -> str:
    """The code of the sentence that says what to do with more images than the model has channels."""
    with contextlib.suppress(UserError, OSError):
        if kind_of(images[0]) == "dicom":
            return "several-slices"
    return "several-cases"


def _options(given: dict[str, object], description: ModelDescription) -> SegmentOptions:
    """The options that were given on the command line, for a model."""
    specs = SegmentOptions.specs()
    if given["maps"] is not None and not specs["maps"].from_text(given["maps"]):
        raise UserError("argument-blank", option="--maps")
    texts = {name: value for name, value in given.items() if value is not None}
    options = SegmentOptions(**{name: specs[name].from_text(text) for name, text in texts.items()})
    check_backend(options.device, options.precision)
    check_postprocessing(options)
    check_locator(description, options.roi)
    # Without its system and networks, the model would appear to have no maps.
    check_system(description)
    return replace(options, maps=check_maps(options.maps, description))


def _sorted(images: Sequence[Path], inputs: Sequence[Input]) -> list[Path]:
    """Sort the images into the model's order, with a message if the order changes."""
    if len(images) != len(inputs) or len(images) == 1:
        return list(images)
    paths = [images[place] for place in sort_by_channel(inputs, [path.name for path in images])]
    if paths != list(images):
        taken = (f"{path.name} as {item.name}" for path, item in zip(paths, inputs, strict=True))
        say(f"Assigned by name: {', '.join(taken)}.")
    return paths


def _files(named: Sequence[str]) -> dict[str, Path]:
    """The files of NAME=FILE."""
    files: dict[str, Path] = {}
    for text in named:
        name, _, file = text.partition("=")
        if not file:
            raise click.BadParameter(f'"{text}" does not have the form NAME=FILE.', param_hint="--channel")
        if name in files:
            raise UserError("channel-repeated", name=name)
        files[name] = Path(file)
    return files


def _segment(
    package: ModelPackage, images: Sequence[Path], options: SegmentOptions, output: Path, overwrite: bool
) -> None:
    """Segment one case, and print its warnings and volumes."""
    began = time.monotonic()
    from conresnet.inference.segmentation import load_model

    model = load_model(package, options.device, options.precision)
    loading = time.monotonic() - began
    with shown_progress() as progress:
        result = segment_to_folder(model, images, options, output, overwrite, images, progress, loading)
    note = result.report.get("review", {}).get("note")
    for warning in [*result.warnings, *([note] if note else [])]:
        say(" ".join(warning.split()), err=True)
    say(result_text("Wrote", output, result.volumes_ml))
