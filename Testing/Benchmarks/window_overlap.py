"""What overlap, size and place of windows do to a model's Dice and time, case by case.

    python Testing/Benchmarks/window_overlap.py HN_OAR_OpenKBP --model head-neck-organs --overlap 0.25 \\
        [--window 40,40,48] [--coarse-look 1.5,12] [--all]

The cases are those that the model's own metrics.json names as held out; with --all, every case with an image. Each is
segmented with the package's own windows and then with every combination of the given sizes, overlaps and coarse looks.
Processor time is that of the whole segmentation on one thread.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import numpy as np


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, help="A model's name or package.")
@click.option("--overlap", "overlaps", multiple=True, type=float, help="[default: the model's]")
@click.option("--window", "windows", multiple=True, help="S,H,W.  [default: the model's]")
@click.option("--coarse-look", "looks", multiple=True, help="Scale,margin; or none.  [default: the model's]")
@click.option("--precision", default="auto", show_default=True)
@click.option("--all", "every", is_flag=True, help="Not only the cases that the model held out.")
def measure(data, model, overlaps, windows, looks, precision, every) -> None:
    """Segment the cases of DATA with other windows than the model's, and print a table."""
    import torch
    from measures import dice

    from conresnet.images.files import read_channels
    from conresnet.inference.segmentation import load_model, segment
    from conresnet.package import CoarseLook
    from conresnet.package.reader import held_out_cases
    from conresnet_training.data.layouts import read_data_set

    torch.set_num_threads(1)
    loaded = load_model(model, "cpu", precision)
    own, segments = loaded.description.inference, loaded.description.output.segments
    names = [item.name for item in loaded.description.inputs]
    known = held_out_cases(loaded.package)
    if not known and not every:
        raise click.UsageError(f"The package {model} does not say which cases it never saw.")
    cases = [case for case in read_data_set(data).cases if case.images and (every or case.name in known)]
    sizes = [tuple(map(int, size.split(","))) for size in windows] or [own.window]
    placed = [None if look == "none" else CoarseLook(*map(float, look.split(","))) for look in looks]
    choices = product(sizes, overlaps or [own.overlap], placed if looks else [own.coarse_look])
    tilings = [own, *(replace(own, window=size, overlap=share, coarse_look=look) for size, share, look in choices)]
    scores, seconds = np.zeros((len(tilings), len(cases))), np.zeros(len(tilings))
    for column, case in enumerate(cases):
        volumes, truth = read_channels(list(case.images), names), read_channels([case.label], ["label"])[0].array
        for row, tiling in enumerate(tilings):
            loaded.description = replace(loaded.description, inference=tiling)
            begun = time.process_time()
            found = segment(loaded, volumes).labels.array
            seconds[row] += time.process_time() - begun
            scores[row, column] = np.mean([dice(found == item.label, truth == item.label) for item in segments])
        click.echo(f"{case.name} {scores[:, column].round(4)}", err=True)
    click.echo("| window | overlap | coarse look | Dice | minus the model's own, by case | time of the model's own |")
    click.echo("|---|---|---|---|---|---|")
    for tiling, each, took in zip(tilings, scores, seconds / seconds[0], strict=True):
        size, change = " x ".join(map(str, tiling.window)), each - scores[0]
        error = change.std(ddof=1) / np.sqrt(len(change))
        look = tiling.coarse_look
        shown = f"{look.scale:g}, {look.margin:g} mm" if look else "none"
        click.echo(
            f"| {size} | {tiling.overlap:g} | {shown} | {each.mean():.4f} | {change.mean():+.4f}, standard error "
            f"{error:.4f}, {change.min():+.4f} to {change.max():+.4f} | {took:.2f} |"
        )


if __name__ == "__main__":
    measure()
