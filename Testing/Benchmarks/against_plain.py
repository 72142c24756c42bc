"""Compare the engine with plain inference on one 4-channel case, with the paper's full-width network.

    python Testing/Benchmarks/against_plain.py --case FOLDER_OR_FILE [FILE FILE FILE] [--label FILE] [--model PACKAGE]

Plain inference is the authors' tiling in eager fp32 (plain.py). Each run has its own process. Runs are interleaved, so
that a busy machine slows all of them alike, and CPU seconds are shown next to wall-clock seconds. Weights, threads and
inference mode are the same. Without --model, the weights are random with a fixed seed. With --label (BraTS values 1, 2,
4), the Dice of the regions is printed too, which is meaningful only for a trained model.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "ConResSegmentation"), str(Path(__file__).parent)]

WAYS = {
    "plain": "plain, authors' tiling, fp32",
    "authors-fp32": "ours, authors' tiling, fp32",
    "fitted-fp32": "ours, fitted windows, fp32",
    "fitted-auto": "ours, fitted windows, auto",
}
ARGUMENTS = {"input_channels": 4, "outputs": 3, "base_width": 32}
PHASES = ("preparing", "segmenting", "writing")


@click.command()
@click.option("--case", "case", required=True, multiple=True, type=click.Path(exists=True, path_type=Path))
@click.argument("more", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--label", type=click.Path(exists=True, path_type=Path), help="BraTS labels of the case.")
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Model package with 4 channels and 3 regions."
)
@click.option("--threads", default=0, help="CPU threads.  [default: PyTorch's]")
@click.option("--rounds", default=1, help="Runs of each variant; the fastest one counts.")
@click.option("--windows", default=0, help="Time only this many windows of plain inference and scale up.")
@click.option(
    "--only", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Run only this variant; may be repeated."
)
def compare(case, more, label, model, threads, rounds, windows, ways) -> None:
    """Compare the engine with plain inference on a case: --case FOLDER, or --case FILE FILE FILE FILE."""
    images = _images([*case, *more])
    with tempfile.TemporaryDirectory() as folder:
        package = model or _random_model(Path(folder) / "model")
        task = {"images": [str(path) for path in images], "model": str(package), "threads": threads, "windows": windows}
        measured: dict[str, list[dict]] = {way: [] for way in ways or WAYS}
        for _ in range(rounds):
            for way in measured:
                click.echo(f"... {WAYS[way]}", err=True)
                measured[way].append(_run({**task, "way": way, "result": str(Path(folder) / f"{way}.npy")}))
        best = {way: min(runs, key=lambda run: run["total"]) for way, runs in measured.items()}
        _print_table(best)
        click.echo("... logits of one window, fp32", err=True)
        _print_logits(_run({**task, "way": "logits"}))
        _print_agreement({way: np.load(Path(folder) / f"{way}.npy", mmap_mode="r") for way in best}, label, package)


def _images(paths: list[Path]) -> list[Path]:
    """The four files in the authors' order: FLAIR, T1, T1ce, T2."""
    if len(paths) == 1 and paths[0].is_dir():
        files = sorted(paths[0].glob("*.nii*"))
        words = (("flair",), ("t1",), ("t1ce", "t1gd", "t1c"), ("t2",))
        found = [next((f for f in files if f.name.lower().split(".")[0].endswith(word)), None) for word in words]
        if None in found:
            raise click.BadParameter(f"{paths[0]} must contain files that end in FLAIR, T1, T1ce (or T1Gd) and T2.")
        return found
    if len(paths) != 4:
        raise click.BadParameter("Give a folder or four files.")
    return paths


def _random_model(folder: Path) -> Path:
    import safetensors.torch
    import torch

    from conresnet.importing import INFERENCE, WEIGHTS_FILE, describe
    from conresnet.networks import build_network
    from conresnet.package import write_package

    torch.manual_seed(0)
    weights = build_network("conresnet", ARGUMENTS).state_dict()
    description = describe(ARGUMENTS, {"name": "random", "inference": INFERENCE["fitted"]}, "random weights")
    return write_package(description, {WEIGHTS_FILE: safetensors.torch.save(weights)}, folder).path


def _run(task: dict) -> dict:
    """Run one measurement in a process of its own, so that its peak memory is not that of another run."""
    command = [sys.executable, __file__, "--measure", json.dumps(task)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def _print_table(best: dict[str, dict]) -> None:
    first = next(iter(best.values()))
    click.echo(
        f"\n{'':34}{'windows':>8}" + "".join(f"{p:>12}" for p in (*PHASES, "total s", "cpu s", "peak GB", "speed"))
    )
    for way, run in best.items():
        seconds = "".join(f"{run[phase]:12.2f}" for phase in (*PHASES, "total", "cpu"))
        ratio = first["total"] / run["total"]
        click.echo(f"{WAYS[way]:34}{run['windows']:8}{seconds}{run['peak'] / 1e9:12.2f}{ratio:11.2f}x")
    click.echo("".join(f"\n{WAYS[way]}: {run['how']}" for way, run in best.items()))


def _print_logits(run: dict) -> None:
    click.echo(f"\nOne window in fp32: logits differ by {run['difference']:.1e} of the largest, {run['largest']:.3g}.")


def _print_agreement(found: dict[str, np.ndarray], label: Path | None, package: Path) -> None:
    """Print the Dice of each variant's regions with those of the first variant, and with the labels."""
    references = {"the first variant": next(iter(found.values()))}
    if label:
        from measuring import in_model_order, nested_regions

        from conresnet.images.files import read_volume
        from conresnet.package import read_package

        (values,) = in_model_order(read_package(package), [read_volume(label)])
        references["the labels"] = nested_regions(values)
    for name, reference in references.items():
        for way, regions in found.items():
            dice = ", ".join(f"{_dice(a, b):.4f}" for a, b in zip(regions, reference, strict=True))
            click.echo(f"Dice with {name}, ET WT TC: {dice}  ({WAYS[way]})")


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    size = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / size if size else math.nan


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        from measuring import measure

        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        compare()
