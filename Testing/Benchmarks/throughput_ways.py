"""One measurement of ``training_throughput.py``, in its own process."""

from __future__ import annotations

import sys
import time
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from conresnet.inference.devices import reused_memory
from conresnet_training.planning.plan import Plan, read_plan
from conresnet_training.runs.run import start_run
from conresnet_training.training.network import SegmentationTraining
from conresnet_training.training.trainer import fit

BATCHES = 8
"""Number of batches kept for the plain loop, which uses them in turn."""


# The loop creates the training module itself, so the hook records its observations here.
MOMENTS: list[float] = []
KEPT: list[tuple[Tensor, Tensor]] = []


def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Forward pre-hook of all modules: record when our training starts a step, and keep the first batches."""
    if isinstance(module, SegmentationTraining):
        MOMENTS.append(time.perf_counter())
        if len(KEPT) < BATCHES:
            image, target, *_ = inputs
            KEPT.append((image.clone(), target.clone()))


def measure(task: dict) -> dict:
    """Train with the loop named in the task.

    Args:
        task: "way" ("plain" or "ours"), "plan" (file), "folder" (new, for the run), "batches" (file).

    Returns:
        "moments": times at which the steps started, in seconds.
    """
    plan = read_plan(Path(task["plan"]))
    match task["way"]:
        case "plain":
            _plain(plan, torch.load(task["batches"], weights_only=True))
        case "ours":
            # Standard output is reserved for the result.
            sys.stdout = sys.stderr
            with register_module_forward_pre_hook(watch):
                fit(start_run(plan, Path(task["folder"]), 0))
            sys.stdout = sys.__stdout__
            if not Path(task["batches"]).exists():
                torch.save(KEPT, task["batches"])
    return {"moments": MOMENTS}


def _plain(plan: Plan, batches: list[tuple[Tensor, Tensor]]) -> None:
    """A loop with only what a step has to compute; memory is reused as in our loop."""
    settings = plan.training
    torch.manual_seed(settings.seed)
    training = SegmentationTraining(plan).train()
    optimizer = torch.optim.Adam(training.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    with reused_memory():
        for _, (image, target) in zip(range(settings.steps), cycle(batches), strict=False):
            MOMENTS.append(time.perf_counter())
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
                loss = training(image, target)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(training.parameters(), settings.gradient_clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
