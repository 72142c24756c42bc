"""Peak memory and time of the engine on a large synthetic volume: 512 x 512 x 400 voxels, one channel, base width 16.

python Testing/Benchmarks/large_volume.py [--shape 400,512,512] [--precision auto] [--maps residual]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

GOAL = 6e9


@click.command()
@click.option("--shape", default="400,512,512", help="Slices, rows, columns.")
@click.option("--spacing", default="", help="Model spacing S,H,W in mm, to include resampling; the image has 1 mm.")
@click.option("--maps", default="", help="Maps to compute too, separated by commas.")
@click.option("--precision", default="auto")
@click.option("--threads", default=0)
def measure(shape: str, spacing: str, maps: str, precision: str, threads: int) -> None:
    """Segment a volume of random values and print time and memory; exit with 1 if the peak is 6 GB or more."""
    from measures import peak_memory

    from conresnet.images import Grid, Volume
    from conresnet.inference.segmentation import load_model, segment
    from conresnet.request import Progress, SegmentOptions

    class Shown(Progress):
        def report(self, phase, fraction, seconds_left):
            left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
            click.echo(f"\r{phase} {100 * fraction:.1f}%{left}    ", nl=False, err=True)

    grid = Grid(tuple(int(side) for side in shape.split(",")), np.eye(4))
    array = np.zeros(grid.shape, np.int16)
    generator = np.random.default_rng(0)
    for plane in array:
        plane[:] = generator.integers(-1000, 1000, plane.shape)
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(_package(Path(folder) / "model", spacing), "cpu", precision)
    before = peak_memory()
    begun = time.perf_counter()
    options = SegmentOptions(maps=tuple(filter(None, maps.split(","))), threads=threads or None)
    report = segment(model, [Volume(array, grid, "large")], options, Shown()).report
    took = time.perf_counter() - begun
    click.echo("", err=True)
    click.echo(
        f"{array.size / 1e6:.0f} M voxels, {report['windows']} windows of {report['window']} in "
        f"{report['precision']}: {took:.0f} s, peak {peak_memory() / 1e9:.2f} GB ({before / 1e9:.2f} GB before)"
    )
    sys.exit(peak_memory() >= GOAL)


def _package(folder: Path, spacing: str) -> Path:
    from against_peers import write_random_model

    steps = [{"step": "clip", "low": -100, "high": 240}, {"step": "z_score", "over": "all", "outside": "keep"}]
    ct = {"name": "CT", "modality": "CT", "keywords": ["ct"], "exclude_keywords": [], "intensity": steps}
    sides = [float(side) for side in spacing.split(",")] if spacing else None
    inference = {"tiling": "fitted", "blending": "gaussian", "overlap": 0.25}
    preparation = {"foreground": "all", "spacing": sides}
    return write_random_model(folder, 1, 16, inputs=[ct], preparation=preparation, inference=inference)


if __name__ == "__main__":
    measure()
