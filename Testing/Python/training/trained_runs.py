"""Runs as left by training, but with random weights, so that tests of later steps need no training."""

from __future__ import annotations

from pathlib import Path

import torch

from conresnet.networks import build_network
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import Plan
from conresnet_training.planning.planner import make_plan
from conresnet_training.runs import PROGRESS_FILE, ProgressWriter
from conresnet_training.runs.run import Run, begin_split, start_run, with_prefix, write_checkpoint


def small_plan(data_set: Path, folds: int = 3) -> Plan:
    """A plan with a network of base width 8."""
    plan = make_plan(read_data_set(data_set), data_set)[0]
    plan.training.folds, plan.training.precision, plan.training.workers = folds, "32-true", 0
    plan.model.system.networks[0].arguments["base_width"] = 8
    return plan


def finished_run(plan: Plan, folder: Path, fold: int | None = 0, seed: int = 0, steps: int = 7) -> Run:
    """A run whose last and best checkpoints have random weights from a seed; on all cases, there is no best one."""
    run = start_run(plan, folder, fold)
    begin_split(run, run.data_set())
    network = plan.model.system.networks[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = build_network(network.type, network.arguments).state_dict()
    # Larger weights than the initial ones, for less uniform results.
    weights = {name: value * 3 if value.ndim == 5 else value for name, value in weights.items()}
    (folder / "checkpoints").mkdir(exist_ok=True)
    paths = [run.checkpoint_named(name) for name in (("last",) if fold is None else ("last", "best"))]
    write_checkpoint({"state_dict": with_prefix(weights), "global_step": steps}, paths)
    return run


def finished_folds(plan: Plan, folder: Path) -> list[Run]:
    """A cross-validation with one run per fold, each with its own weights."""
    return [finished_run(plan, folder / f"fold_{fold}", fold, seed=fold) for fold in range(plan.training.folds)]


def end_run(run: Run, steps: int, end: str = "finished", step: int | None = None) -> None:
    """Record the start and the end of a run, by default after its last step."""
    progress = ProgressWriter(run.folder / PROGRESS_FILE)
    progress.write("started", step=0, steps=steps)
    progress.write(end, step=steps if step is None else step)
    progress.close()
