"""``python -m conresnet segment``: one case or many, by the same engine as in Slicer."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conresnet.errors import UserError
from conresnet.package.description import TILINGS

if TYPE_CHECKING:
    from conresnet.cli.cases import ListedCase
    from conresnet.inference.progress import Progress
    from conresnet.inference.segmentation import LoadedModel, SegmentOptions
    from conresnet.package import ModelPackage
    from conresnet.package.description import Input

_PATH = click.Path(path_type=Path)
_STEPS = 1000


@click.command(context_settings={"max_content_width": 100})
@click.argument("images", nargs=-1, type=_PATH, metavar="[IMAGE]...")
@click.option("--model", required=True, metavar="NAME|PATH", help="The model: its name, or where its package is.")
@click.option("--output", required=True, type=_PATH, metavar="DIR", help="The folder for the results.")
@click.option(
    "--channel",
    "named",
    multiple=True,
    metavar="NAME=FILE",
    help="An image by the model's name for it, instead of IMAGE... .",
)
@click.option(
    "--roi",
    metavar="BOX",
    help="Segment only in this box: R0,R1,A0,A1,S0,S1 in mm as Slicer shows it, or a .mrk.json file of Slicer.",
)
@click.option(
    "--maps", metavar="NAMES", help="Also write these, divided by commas: residual, attention, probability, features."
)
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option(
    "--precision",
    default="auto",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="auto is half precision where the processor gains from it.  [default: auto]",
)
@click.option(
    "--tiling",
    type=click.Choice(TILINGS),
    help="How windows are laid: fitted to the foreground, or as the paper's authors do.  [default: the model's]",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Threads of the CPU, no more than it has cores.  [default: all, but one of three or more]",
)
@click.option("--overwrite", is_flag=True, help="Replace results that are there.")
@click.option(
    "--cases",
    type=_PATH,
    metavar="LIST.csv",
    help="Segment many: a column name, one a channel, and roi if wanted; results go to DIR/name.",
)
def segment(
    images: tuple[Path, ...],
    model: str,
    output: Path,
    named: tuple[str, ...],
    roi: str | None,
    maps: str | None,
    device: str,
    precision: str,
    tiling: str | None,
    threads: int | None,
    overwrite: bool,
    cases: Path | None,
) -> None:
    """Segment a case: one IMAGE a channel, or one 4-D file with all.

    Images whose names tell which is which, such as pat_T1.nii.gz and pat_FLAIR.nii.gz, may come in any order; others
    come in the model's.

    An image is a NIfTI, NRRD or MetaImage file, or a folder with a DICOM series. Written to DIR are
    segmentation.nii.gz (the model's label values on the first image's grid), <map>.nii.gz for each of --maps, and
    report.json (volumes in mL, windows, device, precision, seconds).
    """
    from conresnet.images.roi import BoxROI
    from conresnet.package import read_package
    from conresnet.package.store import find_model

    if sum(map(bool, (images, named, cases))) != 1:
        raise click.UsageError("Name the images as IMAGE..., each with --channel, or in a list with --cases.")
    if cases and roi:
        raise click.UsageError("With --cases, each case has its own roi in the list.")
    package = read_package(find_model(model))
    channels = [item.name for item in package.description.inputs]
    box = BoxROI.from_text(roi) if roi else None
    chosen = [name.strip() for name in (maps or "").split(",") if name.strip()]
    if cases:
        from conresnet.cli.cases import read_case_list

        listed = read_case_list(cases, channels)
    else:
        paths = _sorted(images, package.description.inputs) or _by_name(named, channels)
        from conresnet.cli.cases import check_replaceable

        # Before the model is loaded, which takes seconds.
        check_replaceable(output, overwrite)
    loaded, loading = _load(package, device, precision)
    from conresnet.inference.segmentation import SegmentOptions
    from conresnet.package.maps import check_maps

    # So many that the system has no room for them would end the process without a word.
    threads = min(threads, os.cpu_count() or 1) if threads else None
    options = SegmentOptions(
        maps=check_maps(chosen, loaded.system.maps, package.description.name), roi=box, tiling=tiling, threads=threads
    )
    if not cases:
        _segment(loaded, paths, options, output, overwrite, loading)
        return
    _segment_all(loaded, listed, options, output, overwrite, loading)


def _sorted(images: Sequence[Path], inputs: Sequence[Input]) -> list[Path]:
    """The images in the model's order, which is told where it is not theirs."""
    from conresnet.images.channels import sort_by_channel

    if len(images) != len(inputs) or len(images) == 1:
        return list(images)
    paths = [images[place] for place in sort_by_channel(inputs, [path.name for path in images])]
    if paths != list(images):
        taken = (f"{path.name} as {item.name}" for path, item in zip(paths, inputs, strict=True))
        click.echo(f"By their names, took {', '.join(taken)}.")
    return paths


def _by_name(named: Sequence[str], channels: Sequence[str]) -> list[Path]:
    """The files of NAME=FILE in the model's order."""
    files = {}
    for text in named:
        name, equals, file = text.partition("=")
        known = next((channel for channel in channels if channel.casefold() == name.strip().casefold()), None)
        if not equals or not file:
            raise click.BadParameter(f'"{text}" is not of the form NAME=FILE.', param_hint="--channel")
        if known is None or known in files:
            why = "is named twice" if known else f"is none of the model's ({', '.join(channels)})"
            raise click.BadParameter(f'The channel "{name}" {why}.', param_hint="--channel")
        files[known] = Path(file)
    missing = [channel for channel in channels if channel not in files]
    if missing:
        raise click.BadParameter(f"The model also takes {', '.join(missing)}.", param_hint="--channel")
    return [files[channel] for channel in channels]


def _load(package: ModelPackage, device: str, precision: str) -> tuple[LoadedModel, float]:
    """The model, and the seconds that took."""
    begun = time.monotonic()
    from conresnet.inference.segmentation import load_model

    return load_model(package, device, precision), time.monotonic() - begun


def _segment_all(
    model: LoadedModel,
    cases: Sequence[ListedCase],
    options: SegmentOptions,
    output: Path,
    overwrite: bool,
    loading: float,
) -> None:
    """Each case by itself: one of a thousand that cannot be done must not keep the others from it."""
    from conresnet.images.roi import BoxROI

    mistakes, faults = 0, []
    for case in cases:
        try:
            roi = BoxROI.from_text(case.roi) if case.roi else None
            _segment(model, case.images, replace(options, roi=roi), output / case.name, overwrite, loading)
        except UserError as error:
            mistakes += 1
            _say(f"{case.name}: {error.message}")
        except Exception as error:
            # As text, since the exception's frames hold the case's images.
            faults.append(f"Case {case.name}:\n{''.join(traceback.format_exception(error))}")
            _say(f"{case.name}: failed by a fault of ConResNet's own ({type(error).__name__}: {error}).")
    if faults:
        failure = RuntimeError(f"{len(faults)} of {len(cases)} cases failed")
        failure.add_note("\n".join(faults[:20]))
        raise failure
    if mistakes:
        raise UserError(
            "cases-failed",
            f"{mistakes} of {len(cases)} cases could not be segmented, for the reasons above.",
            failed=mistakes,
            cases=len(cases),
        )


def _segment(
    model: LoadedModel, paths: Sequence[Path], options: SegmentOptions, output: Path, overwrite: bool, loading: float
) -> None:
    from conresnet.cli.cases import filling, write_images, write_report
    from conresnet.images.files import read_channels
    from conresnet.inference.segmentation import segment as segment_case

    # What the engine logs is said below, once, with the result; without a handler it would stand on the terminal too.
    logging.getLogger("conresnet").addHandler(logging.NullHandler())
    with _shown_progress() as progress, filling(output, overwrite) as folder:
        begun = time.monotonic()
        progress.report("reading", 0.0, None)
        volumes = read_channels(paths, [item.name for item in model.description.inputs])
        seconds = {"loading": loading, "reading": time.monotonic() - begun}
        result = segment_case(model, volumes, options, progress)
        seconds |= result.report["seconds"]
        writing = time.monotonic()
        progress.report("writing", 1.0, None)
        write_images(result, folder)
        seconds["writing"] += time.monotonic() - writing
        seconds["total"] = loading + time.monotonic() - begun
        write_report({**result.report, "seconds": seconds}, folder)
    for warning in result.report["warnings"]:
        _say(warning)
    volumes_ml = ", ".join(f"{name} {volume:.2f} mL" for name, volume in result.report["volumes_ml"].items())
    click.echo(f"Wrote {output}: {volumes_ml}.")


@contextlib.contextmanager
def _shown_progress() -> Iterator[Progress]:
    """A bar with the phase and the time left on stderr where that is a terminal, else nothing."""
    from conresnet.inference.progress import Progress

    if not sys.stderr.isatty():
        yield Progress()
        return

    class Bar(Progress):
        def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
            left = "" if seconds_left is None else f"{_duration(seconds_left)} left"
            bar.update(round(_STEPS * fraction) - bar.pos, f"{phase} {left}")

    with click.progressbar(
        length=_STEPS, file=sys.stderr, show_eta=False, show_percent=True, item_show_func=lambda text: text or ""
    ) as bar:
        yield Bar()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _say(sentence: str) -> None:
    click.echo(" ".join(sentence.split()), err=True)
