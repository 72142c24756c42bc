"""Measure the speed of inference and training on a GPU in at most eight minutes, and print a table.

    python Testing/Benchmarks/gpu.py [--device cuda:0] [--without-nnunet]
    python Testing/Benchmarks/gpu.py --device cpu --quick        # checks that it runs; the numbers mean nothing

- windows per second of the paper's full-width network and of brain-structures, in each precision: one window at a
  time, in the engine's batches, and with torch.compile; share of the device's peak, which is measured with a large
  matrix product in the same number format; peak memory; largest difference in probability from fp32 on the CPU
- a whole case of four channels of 155 x 240 x 240 voxels through the engine, by phase
- training steps per second of our loop and of nnU-Net's trainer around our network, on the hippocampi of the test data
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPE = ROOT / "ConResTraining" / "conresnet_training" / "recipes" / "hippocampus.yaml"
HIPPOCAMPI = ROOT / "Testing" / "Data" / "MSD_Task04_Hippocampus"
SECONDS = 8 * 60


@click.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--quick", is_flag=True, help="Small windows and few steps.")
@click.option("--without-nnunet", is_flag=True, help="Skip nnU-Net, which needs its own environment.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Whether to try torch.compile.")
def measure(device: str, quick: bool, without_nnunet: bool, compiled: bool) -> None:
    """Measure inference and training on a device."""
    import torch

    from conresnet.inference.devices import choose_backend

    end = time.monotonic() + SECONDS
    chosen = choose_backend(device, "fp32").device
    name = f"{torch.get_num_threads()} CPU threads"
    if chosen.type == "cuda":
        name = torch.cuda.get_device_name(chosen)
    rows = ["| network, way | precision | at once | windows/s | TFLOP/s | share of peak | memory, GB | difference |"]
    rows.append("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for row in _inference(device, Path(folder), quick, compiled, end - 150):
            click.echo(row, err=True)
            rows.append(row)
        lines = [_whole_case(device, Path(folder), quick)]
        lines += _training(device, Path(folder), quick, without_nnunet)
    click.echo(f"\n{name}, PyTorch {torch.__version__}\n\n" + "\n".join(rows) + "\n\n" + "\n".join(lines))


def _inference(device: str, folder: Path, quick: bool, compiled: bool, end: float) -> Iterator[str]:
    """One row per network, precision and way to run it; rows that would begin after ``end`` are left out."""
    import torch
    from against_peers import write_random_model
    from measures import multiply_adds

    from conresnet.inference.devices import Backend, choose_backend
    from conresnet.package.reader import read_package
    from conresnet.package.store import find_model
    from conresnet.systems.predictors import Predictor, load_network

    write_random_model(folder / "full width")
    models = {"full width": folder / "full width", "brain-structures": find_model("brain-structures")}
    kinds = {"cpu": ("fp32", "bf16"), "mps": ("fp32", "bf16", "fp16")}
    for name, path in models.items():
        package = read_package(path)
        window = (16, 16, 16) if quick else tuple(package.description.inference.window)
        image = torch.randn(1, package.description.channel_count, *window, generator=torch.Generator().manual_seed(0))
        predictor = Predictor(package, mirror_axes=())
        predictor.place(Backend(torch.device("cpu"), "fp32"))
        small = image[..., : min(48, window[0]), : min(48, window[1]), : min(48, window[2])]
        (exact,) = predictor.predict(small, ())
        work = 2 * multiply_adds(load_network(package), window, ("segmentation",))
        for precision in kinds.get(torch.device(device).type, ("fp32", "bf16", "fp16")):
            backend = choose_backend(device, precision)
            predictor.place(backend)
            (found,) = predictor.predict(small, ())
            difference = ""
            if name != "full width":  # Random weights exaggerate every difference.
                difference = f"{float((found['probability'].cpu() - exact['probability']).abs().max()):.1e}"
            peak = _matrix_rate(backend, quick)
            for way, batch in _ways(2 if quick else backend.batch(window), compiled):
                if time.monotonic() > end:
                    return
                plain = predictor.placed[0]
                if way == "compiled":
                    predictor.placed[0] = torch.compile(plain)
                windows = image.expand(batch, *image.shape[1:]).contiguous()
                try:
                    rate, memory = _rate(partial(predictor.predict, windows, (), False, batch), backend, quick)
                except Exception as error:  # torch.compile needs a C++ compiler and supports not every platform.
                    yield f"| {name}, {way} | {precision} | {batch} | failed: {type(error).__name__} | | | | |"
                    continue
                finally:
                    predictor.placed[0] = plain
                speed = rate * batch * work / 1e12
                yield (
                    f"| {name}, {way} | {precision} | {batch} | {rate * batch:.1f} | {speed:.3g} "
                    f"| {100 * speed / peak:.0f}% | {memory} | {difference} |"
                )


def _ways(several: int, compiled: bool) -> list[tuple[str, int]]:
    ways = [("eager", 1)] + [("eager", several)] * (several > 1)
    return ways + [("compiled", several)] * compiled


def _rate(work: Callable[[], object], backend, quick: bool) -> tuple[float, str]:
    """Calls per second, measured for at least two seconds after three warm-up calls, and the device's peak memory."""
    import torch

    is_cuda = backend.device.type == "cuda"
    for _ in range(0 if quick else 3):
        work()
    backend.wait()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(backend.device)
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < (0.01 if quick else 2):
        work()
        calls += 1
        if calls % 8 == 0:
            backend.wait()
    backend.wait()
    rate = calls / (time.perf_counter() - begun)
    return rate, f"{torch.cuda.max_memory_allocated(backend.device) / 1e9:.2f}" if is_cuda else ""


def _matrix_rate(backend, quick: bool) -> float:
    """TFLOP/s of a large matrix product in the precision's number format."""
    import torch

    side = 256 if quick else 8192 if backend.device.type != "cpu" else 2048
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[backend.precision]
    matrix = torch.randn(side, side, device=backend.device).to(kind)
    with backend.computing():
        return 2 * side**3 * _rate(lambda: matrix @ matrix, backend, quick)[0] / 1e12


def _whole_case(device: str, folder: Path, quick: bool) -> str:
    """Run a case through the engine twice; returns a line with the times of the second run."""
    import numpy as np

    from conresnet.images import Grid, Volume
    from conresnet.inference.segmentation import load_model, segment
    from conresnet.request import SegmentOptions

    shape = (16, 24, 24) if quick else (155, 240, 240)
    inside = np.linalg.norm(np.stack(np.indices(shape), -1) / np.array(shape) - 0.5, axis=-1) < 0.36
    values = np.random.default_rng(0).integers(100, 1000, shape) * inside
    volumes = [Volume((values * (n + 1)).astype(np.int16), Grid(shape, np.eye(4)), f"channel {n}") for n in range(4)]
    model = load_model(folder / "full width", device)
    for _ in range(2):
        report = segment(model, volumes, SegmentOptions()).report
    seconds = ", ".join(f"{phase} {took:.2f} s" for phase, took in report["seconds"].items())
    size = " x ".join(map(str, shape))
    return f"A case of 4 x {size} voxels, {report['windows']} windows in {report['precision']}: {seconds}"


def _training(device: str, folder: Path, quick: bool, without_nnunet: bool) -> list[str]:
    """Lines with the training steps per second."""
    steps, warm_up = ("2", "1") if quick else ("60", "15")
    output = folder / "training.json"
    command = [sys.executable, HERE / "training_throughput.py", RECIPE, "--data", HIPPOCAMPI, "--steps", steps]
    command += ["--warm-up", warm_up, "--rounds", "1", "--workers", "0" if device == "cpu" else "4"]
    command += ["--output", output, *(["--without-nnunet"] if without_nnunet else [])]
    environment = dict(os.environ)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device:
        environment["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2]
    try:
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr, timeout=200)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return [f"Training could not be measured: {error}"]
    measured = json.loads(output.read_text(encoding="utf-8"))
    rates = measured["samples_per_second"].items()
    return [f"Training, {way}: {each[0] / measured['batch']:.2f} steps per second" for way, each in rates]


if __name__ == "__main__":
    measure()
