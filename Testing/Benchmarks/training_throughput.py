"""Samples a second of our training loop, against a plain PyTorch loop and against nnU-Net's trainer.

    python Testing/Benchmarks/training_throughput.py PLAN.yaml [--workers 0 --workers 1] [--without-nnunet]

All ways train the plan's network with its loss and optimizer, window and batch, in processes of their own that take
turns, so that a busy machine slows all of them; the ratios are of runs of the same round. Ours reads, cuts and augments
samples, logs, and writes its progress file; checkpoints and validation lie outside the steps that are timed. The plain
way computes on batches that our loop had made and that lie in memory. nnU-Net's trainer reads its own preprocessed
copies of the same cases and augments by its own rules, in an environment of its own, .venv-nnunet/.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / part) for part in ("ConResSegmentation", "ConResTraining")] + [str(HERE)]

FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)
GOAL = 0.05


@click.command()
@click.argument("plan", type=FILE)
@click.option("--data", type=FOLDER, help="The data, if not where the plan says.")
@click.option("--steps", type=click.IntRange(min=1), default=40, show_default=True, help="That are timed, a run.")
@click.option("--warm-up", type=click.IntRange(min=0), default=5, show_default=True, help="Steps before them.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each way runs.")
@click.option("--workers", multiple=True, default=[0, 1, 2], show_default=True, help="Processes that make samples.")
@click.option("--threads", default=0, help="Threads of each way.  [default: PyTorch's]")
@click.option("--precision", type=click.Choice(["bf16-mixed", "32-true"]), default="bf16-mixed", show_default=True)
@click.option("--without-nnunet", is_flag=True, help="Leave nnU-Net out, and its environment.")
@click.option("--work", type=FOLDER, help="Where nnU-Net's copy of the data is kept.  [default: made anew]")
@click.option("--output", type=FILE, help="Write what was measured as JSON too.")
def compare(plan, data, steps, warm_up, rounds, workers, threads, precision, without_nnunet, work, output) -> None:
    """Measure how many samples of PLAN each way trains on in a second."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(plan, data, warm_up + steps, precision, Path(temporary))
        ways = {"plain": bench.plain}
        ways |= {f"ours, {n} workers": lambda n=n: bench.ours(n) for n in workers}
        if not without_nnunet:
            bench.prepare_nnunet(work or Path(temporary) / "nnunet")
            ways |= {f"nnU-Net, {n} workers": lambda n=n: bench.nnunet(n) for n in workers}
        bench.record_batches()
        measured: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, run in ways.items():
                click.echo(f"... round {number + 1} of {rounds}: {way}", err=True)
                moments = run()
                seconds = (moments[-1] - moments[warm_up]) / steps
                measured[way].append(bench.batch / seconds)
    print_table(measured)
    if output:
        result = {"samples_a_second": measured, "steps": steps, "precision": precision, "batch": bench.batch}
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Bench:
    """The ways, each a function that trains in a process of its own and returns the seconds at which steps began.

    Args:
        plan_file, data: what is trained, on which data.
        steps: of every run, and one more whose beginning ends the last.
        folder: for what the runs write.
    """

    def __init__(self, plan_file: Path, data: Path | None, steps: int, precision: str, folder: Path):
        from conresnet_training.data import read_data_set
        from conresnet_training.planning.plan import read_plan

        self.folder, self.runs = folder, 0
        self.plan = read_plan(plan_file, data)
        self.data_set = read_data_set(self.plan.data)
        settings = self.plan.training
        # One held-out case is the least that a run takes, and it is looked at after the last step alone.
        settings.folds, settings.precision = len(self.data_set.cases), precision
        settings.steps = settings.steps_between_checkpoints = steps + 1
        self.batch = settings.batch

    def record_batches(self) -> None:
        """Let our loop make the batches of the plain way."""
        self.ours(0)

    def plain(self) -> list[float]:
        """A plain loop over batches in memory."""
        return self._here("plain", 0)

    def ours(self, workers: int) -> list[float]:
        """Our loop as it is."""
        return self._here("ours", workers)

    def prepare_nnunet(self, folder: Path) -> None:
        """Bring the cases into nnU-Net's layout, and our window and batch into its plan."""
        from nnunet_tools import Workplace

        self.place = Workplace(folder)
        self.place.prepare(self.data_set, self.plan)
        window = list(self.plan.description.inference.window)
        self.place.change(batch_size=self.batch, patch_size=window)

    def nnunet(self, workers: int) -> list[float]:
        """nnU-Net's loop around our network."""
        settings, description = self.plan.training, self.plan.description
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

    def _here(self, way: str, workers: int) -> list[float]:
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
    """Medians with the lowest and highest round, and ratios to the plain way of the same round."""
    plain = measured["plain"]
    click.echo(f"\n{'':22}{'samples a second':>26}{'of the plain way':>26}{'overhead':>12}")
    for way, rates in measured.items():
        ratios = [rate / other for rate, other in zip(rates, plain, strict=True)]
        overhead = 1 / statistics.median(ratios) - 1
        remark = ("  within the goal" if overhead < GOAL else "  over the goal") if way.startswith("ours") else ""
        click.echo(f"{way:22}{_spread(rates):>26}{_spread(ratios):>26}{100 * overhead:10.1f} %{remark}")
    click.echo(f"\nMedian of {len(plain)} rounds (lowest to highest). The goal is an overhead of {100 * GOAL:.0f} %.")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        from throughput_ways import measure

        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        from conresnet.cli.main import main

        sys.exit(main(None, compare, "python Testing/Benchmarks/training_throughput.py"))
