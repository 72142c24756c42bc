"""Samples per second of our training loop, a plain PyTorch loop and nnU-Net's trainer.

    python Testing/Benchmarks/training_throughput.py PLAN.yaml [--workers 0 --workers 1] [--without-nnunet]

All loops train the plan's network with its loss, optimizer, window and batch, in processes of their own that take
turns, so that a busy machine slows all of them alike; ratios compare runs of the same round. Our loop reads, crops and
augments samples, logs, and writes its progress file; checkpoints and validation are outside the timed steps. The plain
loop computes on batches in memory that our loop prepared before. nnU-Net's trainer reads its own preprocessed copies of
the same cases and augments by its own rules, in an environment of its own, .venv-nnunet/.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import cycle
from pathlib import Path

import click

HERE = Path(__file__).parent
FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)
GOAL = 0.05


@click.command()
@click.argument("plan", type=FILE)
@click.option("--data", type=FOLDER, help="Folder of the data, if not the one in the plan.")
@click.option("--steps", type=click.IntRange(min=1), default=40, show_default=True, help="Timed steps per run.")
@click.option("--warm-up", type=click.IntRange(min=0), default=5, show_default=True, help="Steps before timing starts.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each loop.")
@click.option(
    "--workers",
    multiple=True,
    default=[0, 1, 2],
    show_default=True,
    help="Processes that prepare samples; may be repeated.",
)
@click.option("--threads", default=0, help="CPU threads.  [default: PyTorch's]")
@click.option("--precision", type=click.Choice(["bf16-mixed", "32-true"]), default="bf16-mixed", show_default=True)
@click.option("--without-nnunet", is_flag=True, help="Skip nnU-Net, which needs an environment of its own.")
@click.option("--work", type=FOLDER, help="Folder for nnU-Net's copy of the data.  [default: a temporary one]")
@click.option("--output", type=FILE, help="Also write the measurements as JSON.")
def compare(plan, data, steps, warm_up, rounds, workers, threads, precision, without_nnunet, work, output) -> None:
    """Measure how many samples per second each loop trains on with PLAN."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(plan, data, warm_up + steps, precision, Path(temporary))
        ways = {"plain": partial(bench.here, "plain", 0)}
        ways |= {f"ours, {n} workers": partial(bench.here, "ours", n) for n in workers}
        if not without_nnunet:
            bench.prepare_nnunet(work or Path(temporary) / "nnunet")
            ways |= {f"nnU-Net, {n} workers": partial(bench.nnunet, n) for n in workers}
        # The plain loop needs its batches.
        bench.here("ours", 0)
        measured: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, run in ways.items():
                click.echo(f"... round {number + 1} of {rounds}: {way}", err=True)
                moments = run()
                seconds = (moments[-1] - moments[warm_up]) / steps
                measured[way].append(bench.batch / seconds)
    print_table(measured)
    if output:
        result = {"samples_per_second": measured, "steps": steps, "precision": precision, "batch": bench.batch}
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Bench:
    """The loops, each a method that trains in a process of its own and returns the times at which steps started.

    Args:
        plan_file, data: plan and folder of the data (None: the plan's own).
        steps: timed and untimed steps per run; one more step marks the end of the last.
        folder: for the files of the runs.
    """

    def __init__(self, plan_file: Path, data: Path | None, steps: int, precision: str, folder: Path):
        from conresnet_training.data.layouts import read_data_set
        from conresnet_training.planning.plan import read_plan

        self.folder, self.runs = folder, 0
        self.plan = read_plan(plan_file, data)
        self.data_set = read_data_set(self.plan.data)
        settings = self.plan.training
        # A run needs at least one held-out case; it is validated only after the last step.
        settings.folds, settings.precision = len(self.data_set.cases), precision
        settings.steps = settings.steps_between_checkpoints = steps + 1
        self.batch = settings.batch

    def prepare_nnunet(self, folder: Path) -> None:
        """Convert the cases to nnU-Net's layout, and set our window and batch in its plan."""
        from nnunet_tools import Workplace

        self.place = Workplace(folder)
        self.place.prepare(self.data_set, self.plan)
        window = list(self.plan.model.inference.window)
        self.place.change(batch_size=self.batch, patch_size=window)

    def nnunet(self, workers: int) -> list[float]:
        """Train our network with nnU-Net's loop."""
        settings, description = self.plan.training, self.plan.model
        network = description.system.networks[0]
        task = {
            "do": "measure",
            "plans": str(self.place.plans_file),
            "fold": 0,
            "seed": settings.seed,
            "autocast": settings.precision == "bf16-mixed",
            "steps": settings.steps,
            "network": {"type": network.type, "arguments": network.arguments},
            "targets": [self.plan.targets[segment.name] for segment in description.output.segments],
            "exclusive": description.output.kind == "labels",
            "residual_axis": network.arguments.get("residual_axis", "S"),
            "deep_supervision": settings.deep_supervision,
            "learning_rate": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        }
        done = self.place.run(
            HERE / "nnunet_side.py", json.dumps(task), workers=workers, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])["moments"]

    def here(self, way: str, workers: int) -> list[float]:
        """Train with our loop ("ours"), which keeps its first batches, or a plain loop over these ("plain")."""
        from conresnet_training.planning.plan import write_plan

        self.runs += 1
        self.plan.training.workers = workers
        plan_file = self.folder / f"plan_{self.runs}.yaml"
        write_plan(self.plan, plan_file)
        task = {
            "way": way,
            "plan": str(plan_file),
            "folder": str(self.folder / f"run_{self.runs}"),
            "batches": str(self.folder / "batches.pt"),
        }
        command = [sys.executable, __file__, "--measure", json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])["moments"]


def print_table(measured: dict[str, list[float]]) -> None:
    """Print medians with the lowest and highest round, and ratios to the plain loop of the same round."""
    from measures import spread

    plain = measured["plain"]
    click.echo(f"\n{'':22}{'samples per second':>26}{'relative to plain':>26}{'overhead':>12}")
    for way, rates in measured.items():
        ratios = [rate / other for rate, other in zip(rates, plain, strict=True)]
        overhead = 1 / statistics.median(ratios) - 1
        remark = ("  within the goal" if overhead < GOAL else "  over the goal") if way.startswith("ours") else ""
        click.echo(f"{way:22}{spread(rates, 3):>26}{spread(ratios, 3):>26}{100 * overhead:10.1f}%{remark}")
    click.echo(f"\nMedian of {len(plain)} rounds (lowest to highest). The goal is an overhead of {100 * GOAL:.0f}%.")


# What follows runs in the processes that measure.

BATCHES = 8
"""Number of batches kept for the plain loop, which uses them in turn."""


def measure(task: dict) -> dict:
    """Train with the loop named in the task, on the first GPU if there is one.

    Args:
        task: "way" ("plain" or "ours"), "plan" (file), "folder" (new, for the run), "batches" (file).

    Returns:
        "moments": times at which the steps started, in seconds.
    """
    from conresnet_training.planning.plan import read_plan

    plan = read_plan(Path(task["plan"]))
    train = _train_plainly if task["way"] == "plain" else _train_ours
    return {"moments": train(plan, task)}


def _train_ours(plan, task: dict) -> list[float]:
    """Our loop, which creates the training module itself: a hook of all modules records its steps and batches."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    from conresnet_training.runs.run import start_run
    from conresnet_training.training import SegmentationTraining
    from conresnet_training.training.trainer import fit

    moments, kept = [], []

    def watch(module, inputs) -> None:
        if isinstance(module, SegmentationTraining):
            moments.append(_moment())
            if len(kept) < BATCHES:
                image, target, *_ = inputs
                kept.append((image.cpu().clone(), target.cpu().clone()))

    with register_module_forward_pre_hook(watch):
        fit(start_run(plan, Path(task["folder"]), 0))
    if not Path(task["batches"]).exists():
        torch.save(kept, task["batches"])
    return moments


def _train_plainly(plan, task: dict) -> list[float]:
    """A loop with only what a step has to compute; memory is reused as in our loop."""
    import torch

    from conresnet.inference.devices import choose_backend, reused_memory
    from conresnet_training.training import SegmentationTraining
    from conresnet_training.training.loop import FUSED

    settings, device, moments = plan.training, choose_backend().device, []
    batches = [[part.to(device) for part in batch] for batch in torch.load(task["batches"], weights_only=True)]
    torch.manual_seed(settings.seed)
    training = SegmentationTraining(plan).train().to(device)
    fused = device.type in FUSED
    optimizer = torch.optim.Adam(
        training.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )
    with reused_memory():
        for _, (image, target) in zip(range(settings.steps), cycle(batches), strict=False):
            moments.append(_moment())
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
                loss = training(image, target)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(training.parameters(), settings.gradient_clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
    return moments


def _moment() -> float:
    """Now, when all that a GPU was given is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        # Standard output is reserved for the result.
        shown, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(measure(json.loads(sys.argv[2]))), file=shown)
    else:
        from conresnet.cli import main

        sys.exit(main(None, compare, "python Testing/Benchmarks/training_throughput.py"))
