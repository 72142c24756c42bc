"""One measurement of ``training_throughput.py``, in the process that it is made in."""

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
"""So many are kept for the plain way, which takes them in turn."""


# The loop makes the training itself, so what is noted of it is left here.
MOMENTS: list[float] = []
KEPT: list[tuple[Tensor, Tensor]] = []


def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Before any module computes: note when our training begins a step, and keep the first batches."""
    if isinstance(module, SegmentationTraining):
        MOMENTS.append(time.perf_counter())
        if len(KEPT) < BATCHES:
            image, target, *_ = inputs
            KEPT.append((image.clone(), target.clone()))


def measure(task: dict) -> dict:
    """Train by the way that the task names.

    Args:
        task: "way", "plan" (file), "folder" (new, of the run), "batches" (file).

    Returns:
        "moments": seconds at which the steps began.
    """
    plan = read_plan(Path(task["plan"]))
    match task["way"]:
        case "plain":
            _plain(plan, torch.load(task["batches"], weights_only=True))
        case "ours":
            # Standard output is the result's.
            sys.stdout = sys.stderr
            with register_module_forward_pre_hook(watch):
                fit(start_run(plan, Path(task["folder"]), 0))
            sys.stdout = sys.__stdout__
            if not Path(task["batches"]).exists():
                torch.save(KEPT, task["batches"])
    return {"moments": MOMENTS}


def _plain(plan: Plan, batches: list[tuple[Tensor, Tensor]]) -> None:
    """What a step must compute, and nothing else; the memory is kept as our loop keeps it."""
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
