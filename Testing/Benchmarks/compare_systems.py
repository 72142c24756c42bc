"""Train, evaluate and compare all systems, the experiments of ConResNet's paper, and peer networks on the same cases.

    python Testing/Benchmarks/compare_systems.py PLAN.yaml --output FOLDER [--rows conresnet,dynunet] [--fold 0]

Every row is PLAN with another system: the same data, split, steps, batch, window and augmentation. FOLDER receives
``table.md``, ``table.csv`` and ``comparison.png``: Dice and Hausdorff distance on the held-out cases of the fold with
95% intervals over cases, case-by-case differences to ConResNet, parameters, multiply-adds, seconds per case and peak
memory. There are three groups of rows:

- systems: all systems of ``python -m conresnet_training plan --system``.
- peers: MONAI's DynUNet (as nnU-Net configures it), SegResNet and BasicUNet. For nnU-Net itself, see ``nnunet.py``.
- study: the tables of ConResNet's paper: ensemble (I), mapping and attention (III), residual axis (IV), regions and
  labels (V), boundary loss (VI), lambda of deep supervision (Fig. 8), parameters and multiply-adds (VII).

Run the command again to continue where it stopped, or to add rows and folds; the tables contain everything in FOLDER. A
run that was made elsewhere is included if it is moved to ``FOLDER/<row>/fold_<k>`` and its plan trains the same thing.
With every fold, the command is a cross-validation, here of ConResNet and its baseline:

    python Testing/Benchmarks/compare_systems.py ConResTraining/conresnet_training/recipes/hippocampus.yaml \\
        --data Task04_Hippocampus --output FOLDER --rows conresnet,conresnet-baseline --jobs 2 \\
        --set training.steps=2000 --set training.folds=3 --fold 0 --fold 1 --fold 2

With BraTS 2018 or Pancreas-CT, a GPU and several days, the paper's study can be repeated:

    python -m conresnet_training plan MICCAI_BraTS_2018_Data_Training --output brats.yaml
    python Testing/Benchmarks/compare_systems.py brats.yaml --output brats --rows study

A row is under-trained if its validation Dice rose by more than 0.005 in the last quarter of its steps. The table marks
such rows, and no ranking follows from them. A system that is trained in stages makes the plan's steps in each stage.
Seconds and memory are those of the engine on held-out cases, one row after the other in processes of their own. They
mean something only if nothing else is running; ``--remeasure`` measures them again without training.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

HERE = Path(__file__).parent
FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)
EVALUATION, COST_FILE, PLAN_FILE = "evaluation", "cost.json", "plan.yaml"


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder for runs and tables.")
@click.option(
    "--rows", default="systems,peers,study", show_default=True, help="Rows, by name or as systems, peers, study."
)
@click.option(
    "--fold",
    "folds",
    type=click.IntRange(min=0),
    multiple=True,
    default=[0],
    show_default=True,
    help="Fold to hold out; may be repeated.",
)
@click.option("--data", type=FOLDER, help="Folder of the data, if not the one in the plan.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a value of the plan, for all rows."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of runs to train in parallel."
)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop every run after this many steps in total.")
@click.option(
    "--timed-cases",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Maximum number of timed cases per row.",
)
@click.option("--remeasure", is_flag=True, help="Measure seconds and memory again, without training.")
def compare(plan, output, rows, folds, data, settings, jobs, max_steps, timed_cases, remeasure) -> None:
    """Train, evaluate, measure and compare systems with PLAN."""
    from comparison_results import draw_comparison, write_csv, write_markdown
    from peer_networks import PEERS
    from system_rows import all_rows, chosen_rows

    from conresnet.errors import UserError
    from conresnet.networks import NETWORKS
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.planning.plan import read_plan, with_settings, write_plan

    NETWORKS.classes.update(PEERS)
    followed = with_settings(read_plan(plan, data), settings)
    known = all_rows(followed, read_data_set(followed.data))
    chosen = chosen_rows(known, rows)
    output.mkdir(parents=True, exist_ok=True)
    write_plan(followed, output / PLAN_FILE)
    bench = Bench(followed, output, known, jobs)
    failed = [] if remeasure else [*bench.train(chosen, folds, max_steps), *bench.evaluate(chosen)]
    failed += bench.measure(chosen, timed_cases, remeasure)
    comparison = bench.comparison()
    if comparison.results:
        write_csv(comparison, output / "table.csv")
        write_markdown(comparison, output / "table.md")
        draw_comparison(comparison, output / "comparison.png")
        click.echo((output / "table.md").read_text(encoding="utf-8"))
    if failed:
        sentence = f"{', '.join(failed)} failed; fix the cause given above and run the command again."
        raise UserError("rows-failed", sentence)
    done = {result.row.name for result in comparison.results}
    left = [row.name for row in chosen if row.name not in done]
    rest = f"; {', '.join(left)} not finished: run the command again to continue" if left else ""
    click.echo(f"Compared {len(done)} rows in {output}{rest}.", err=True)


class Bench:
    """The runs, evaluations and measurements in a folder.

    Args:
        plan: plan of the comparison.
        output: the folder.
        rows: all possible rows, by name.
        jobs: number of processes that train or evaluate in parallel.
    """

    def __init__(self, plan, output: Path, rows: dict, jobs: int):
        self.plan, self.output, self.rows, self.jobs = plan, output, rows, jobs

    def train(self, rows: Sequence, folds: Sequence[int], max_steps: int | None) -> list[str]:
        """Train the runs that are not finished, and return the names of those that failed."""
        from system_rows import is_trained, runs_of

        runs = {run.folder: run for row in rows for run in runs_of(row, self.output, folds)}
        tasks = {
            f"{folder.parent.name} {folder.name}": self._task("train", [run], max_steps=max_steps)
            for folder, run in runs.items()
            if not is_trained(run)
        }
        return self._work(tasks, self.jobs)

    def evaluate(self, rows: Sequence) -> list[str]:
        """Evaluate rows with trained runs that are not evaluated yet, and return the names of those that failed."""
        tasks = {}
        for row in rows:
            runs, output = self._trained(row), self.output / row.name / EVALUATION
            if runs and self._evaluated_folds(row) != [run.fold for run in runs]:
                plan = str(self.output / PLAN_FILE)
                tasks[f"{row.name} {EVALUATION}"] = self._task("evaluate", runs, output=str(output), plan=plan)
        return self._work(tasks, self.jobs)

    def measure(self, rows: Sequence, cases: int, again: bool) -> list[str]:
        """Measure the cost of the rows, one after the other, and return the names of those that failed."""
        tasks = {}
        for row in rows:
            runs, output = self._trained(row), self.output / row.name / COST_FILE
            if runs and (again or not output.exists()):
                together = [run for run in runs if run.fold == runs[0].fold]
                tasks[f"{row.name} cost"] = self._task("measure", together, output=str(output), cases=cases)
        return self._work(tasks, 1)

    def comparison(self):
        """All rows that are evaluated and measured, whether they were requested now or earlier."""
        from comparison_results import Comparison, Result
        from system_rows import late_rise

        from conresnet_training.data.layouts import read_data_set
        from conresnet_training.evaluation import read_evaluation

        results = []
        for row in self.rows.values():
            folder = self.output / row.name
            if not (folder / COST_FILE).exists() or not self._evaluated_folds(row):
                continue
            runs, evaluation = self._trained(row), read_evaluation(folder / EVALUATION)
            rises = [late_rise(run) for run in runs]
            rise = None if None in rises else sum(rises) / len(rises)
            cost = json.loads((folder / COST_FILE).read_text(encoding="utf-8"))
            results.append(Result(row, evaluation, cost, evaluation.made_by[0]["steps"], rise))
        data_set = read_data_set(self.plan.data)
        return Comparison(results, _about(self.plan, results), fits_a_window(data_set, self.plan))

    def _trained(self, row) -> list:
        """The runs of all folds in which every run of the row is trained, fold by fold."""
        from system_rows import is_trained, started_runs_of

        trained = [run for run in started_runs_of(row, self.output) if is_trained(run)]
        folds = [run.fold for run in trained]
        whole = sorted(fold for fold in set(folds) if folds.count(fold) == len(row.plans))
        return [run for fold in whole for run in trained if run.fold == fold]

    def _evaluated_folds(self, row) -> list[int]:
        """The folds of the runs in the row's evaluation; empty if there is none or it is incomplete."""
        from conresnet_training.evaluation import JSON_FILE, read_evaluation

        file = self.output / row.name / EVALUATION / JSON_FILE
        return [entry["fold"] for entry in read_evaluation(file).made_by] if file.exists() else []

    def _task(self, do: str, runs: Sequence, **more) -> dict:
        return {"do": do, "runs": [str(run.folder) for run in runs], "data": str(self.plan.data), **more}

    def _work(self, tasks: dict[str, dict], jobs: int) -> list[str]:
        """Run each task in a process of its own, and return the names of those that failed.

        Their output goes to files in ``logs``. If this process is asked to stop, each of them is stopped, once.
        """
        logs, processes = self.output / "logs", []
        logs.mkdir(exist_ok=True)

        def do(name: str) -> bool:
            click.echo(f"... {name}", err=True)
            command = [sys.executable, HERE / "row_work.py", json.dumps(tasks[name])]
            with open(logs / f"{name}.log", "ab") as log:
                # In a session of its own, the process does not receive Ctrl-C; a second signal would end it at once.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
                processes.append(process)
                return process.wait() == 0

        with ThreadPoolExecutor(jobs) as pool:
            try:
                done = list(pool.map(do, tasks))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in processes:
                    process.terminate()
                raise
        failed = [name for name, is_done in zip(tasks, done, strict=True) if not is_done]
        for name in failed:
            click.echo(f"{name} failed; see {logs / f'{name}.log'}.", err=True)
        return failed


def fits_a_window(data_set, plan) -> bool:
    """Whether the median case fits into one window of the plan, as crops do."""
    from conresnet_training.planning.survey import survey

    found, description = survey(data_set), plan.model
    plane = {letter: axis for axis in ("SI", "AP", "RL") for letter in axis}
    sides = zip(found.orientation, found.size, found.spacing, strict=True)
    millimeters = {plane[letter]: size * spacing for letter, size, spacing in sides}
    spacing = description.preparation.spacing or (1, 1, 1)
    window = zip(description.preparation.orientation, description.inference.window, spacing, strict=True)
    return all(millimeters[plane[letter]] <= side * mm for letter, side, mm in window)


def _about(plan, results: Sequence) -> list[str]:
    """Sentences about what all rows have in common and where they were measured."""
    if not results:
        return []
    training, evaluation = plan.training, results[0].evaluation
    splits = {item.evaluation.split for item in results}
    of_all = evaluation.split if len(splits) == 1 else "for each row the cases of its own folds, held out of training"
    machines = {(item.cost["device"], item.cost["precision"], item.cost["threads"]) for item in results}
    measured = "; ".join(
        f"{device} in {precision}, {threads} threads" for device, precision, threads in sorted(machines)
    )
    sentences = [
        f"{evaluation.data}, {of_all}.",
        f"Each row was trained for {training.steps} steps (in each stage) of {training.batch} samples.",
        f"Windows have {_window(plan)}.",
    ]
    for item in results:
        if _window(item.row.plan) != _window(plan):
            sentences.append(f"Those of {item.row.title} have {_window(item.row.plan)}.")
    return [*sentences, f"Seconds and peak memory: {measured}."]


def _window(plan) -> str:
    description = plan.model
    spacing = description.preparation.spacing
    voxels = " x ".join(map(str, description.inference.window))
    return f"{voxels} voxels" + (f" of {' x '.join(f'{mm:g}' for mm in spacing)} mm" if spacing else "")


if __name__ == "__main__":
    from conresnet.cli import main

    sys.exit(main(None, compare, "python Testing/Benchmarks/compare_systems.py"))
