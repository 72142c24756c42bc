"""Training of a run, from its cases to its last checkpoint, and the reports of its progress and end."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import lightning_fabric
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import nn
from torch.utils import tensorboard  # noqa: F401 - a missing package must be noticed before there is a run folder
from tqdm import tqdm

from conresnet.errors import UserError
from conresnet.files import make_folder, write_error
from conresnet.inference.devices import is_out_of_memory, reused_memory
from conresnet.messages import printable
from conresnet_training.data import Case, DataSet
from conresnet_training.data.augmentation import SampleChanges
from conresnet_training.data.label_maps import VALUES
from conresnet_training.data.preparation import TrainingCase, prepare_case, prepare_label_map
from conresnet_training.data.samples import MixedSamples, Sampling, SynthesizedSamples, TrainingSamples
from conresnet_training.data.synthesis import Synthesizer, synthesizer_of
from conresnet_training.planning.memory import check_memory
from conresnet_training.planning.plan import Plan
from conresnet_training.reporting import listed, time_left
from conresnet_training.runs import FIGURES, PROGRESS_FILE, ProgressWriter, sole_process
from conresnet_training.runs.run import (
    PREPARED_FOLDER,
    Run,
    begin_split,
    check_fits_data,
    check_folds,
    check_new_run,
    check_plan_unchanged,
    check_target_names,
    names_of_split,
    read_latest_checkpoint,
    start_run,
)
from conresnet_training.training import SegmentationTraining, begin_with, steps_of_run
from conresnet_training.training.loop import Outcome, StageCases, TrainingLoop
from conresnet_training.training.processes import first_does, launch, make_fabric, process_facts, reporting_lost_process
from conresnet_training.training.stopping import STOPPED_ELSEWHERE, StopWatch
from conresnet_training.training.validation import FirstStageBoxes, HeldOutCases, whole_case

MOST_LAYERS_NAMED, MOST_SEGMENTS_NAMED = 8, 6


def fit(
    run: Run,
    most_steps: int | None = None,
    devices: int = 1,
    nodes: int = 1,
    is_new: bool = False,
    device: str = "auto",
) -> Outcome | None:
    """Train from the run's latest checkpoint, or from the start, to the plan's last step.

    A signal or the file ``stop`` ends the run after the current step, with a checkpoint.

    Args:
        most_steps: stop once this many steps were made in total; schedules still count to the plan's last step.
        devices: GPUs to use on each computer, or processes on a computer without GPUs. They share the plan's batch.
        nodes: computers, whose processes ``torchrun`` or SLURM has started.
        is_new: create the run's folder after checking what can be checked beforehand.
        device: as in ``choose_backend``; the first of ``devices``.

    Returns:
        How far the run got; None in all processes except the first.

    Raises:
        UserError: ``run-in-use``, ``batch-not-divisible``, ``devices-not-available``, ``more-processes-than-cores``,
            ``plan-changed``, ``precision-unavailable``, ``steps-changed``, ``no-foreground``, those of
            ``choose_backend``, of the data, of ``check_memory``, of ``check_fits_data``, of ``check_target_names``, of
            ``TrainingLoop.run_to`` and of ``as_user_error``; of a new run those of ``start_run``.
    """
    fabric = make_fabric(run, devices, nodes, device)
    is_first = devices * nodes == 1 or fabric.local_rank == fabric.node_rank == 0
    steps = steps_of_run(run.plan)
    if is_new and is_first:
        check_new_run(run.plan, run.folder, run.fold)
    on_cpu = is_first and fabric.device.type == "cpu"
    shortage = check_memory(run.plan, -(-run.plan.training.batch // nodes)) if on_cpu else ""
    data_set = run.data_set()
    check_fits_data(data_set, run.plan)
    if is_new:
        check_target_names(data_set, run.plan)
        if run.fold is not None:
            check_folds(data_set, run.plan)
        if is_first:
            make_folder(run.folder)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopWatch(run.folder))
        if is_first:
            stack.enter_context(sole_process(run.folder))
            if is_new:
                # Checks again: another process may have begun a run in the folder meanwhile.
                start_run(run.plan, run.folder, run.fold, is_locked=True)
        reports = stack.enter_context(contextlib.closing(Reports(run))) if is_first else SilentReports()
        if shortage:
            reports.note(shortage)
        try:
            last = min(most_steps or steps, steps)
            with reporting_lost_process(lambda: _report_lost_process(reports, run.folder)):
                outcome = _Training(run, fabric, data_set, reports, stop, steps, last, is_first).fit()
        except Exception as error:
            mistake = error if isinstance(error, UserError) else as_user_error(error, run.folder)
            if mistake is None:
                _report_failure(reports, "fault", f"{type(error).__name__}: {error}", {})
                raise
            if error is mistake and not is_first:
                # The first process reports the error, and would be killed if this one ended with an error status.
                raise SystemExit(0) from error
            _report_failure(reports, mistake.code, mistake.message, mistake.values)
            raise mistake from error
        if outcome.finished and is_first:
            shutil.rmtree(run.folder / PREPARED_FOLDER, ignore_errors=True)
        reports("finished" if outcome.finished else "stopped", step=outcome.step)
        if outcome.stopped:
            outcome = replace(outcome, status=stop.status or STOPPED_ELSEWHERE)
    return outcome if is_first else None


def as_user_error(error: Exception, folder: Path) -> UserError | None:
    """What a failure below the training loop of a run in ``folder`` means to the user; None for an internal error."""
    # Such a process may die for lack of memory too and say so, but that is not the memory the network needs.
    if "DataLoader worker" in (text := " ".join(str(error).split())):
        return UserError("workers-died", path=str(folder), reason=text.rstrip("."))
    if is_out_of_memory(error):
        return UserError("training-out-of-memory", path=str(folder))
    if isinstance(error, FileNotFoundError) and error.filename:
        if Path(os.fsdecode(error.filename)).resolve().is_relative_to(folder.resolve()):
            return UserError("run-files-gone", path=str(folder))
    # Gloo has no type of its own for the end of a connection.
    is_of_gloo = isinstance(error, RuntimeError) and "gloo/transport" in text
    is_lost = is_of_gloo or isinstance(error, torch.distributed.DistError)
    return UserError("process-lost", path=str(folder)) if is_lost else None


def _report_failure(reports: SilentReports, code: str, message: str, values: dict) -> None:
    # The failure may be that the disk is full.
    with contextlib.suppress(UserError):
        cases = {"cases": values["cases"]} if "cases" in values else {}
        reports("failed", code=code, message=message, **cases)


def _report_lost_process(reports: SilentReports, folder: Path) -> None:
    lost = UserError("process-lost", path=str(folder))
    _report_failure(reports, lost.code, lost.message, lost.values)
    reports.note(lost.message)


@dataclass(frozen=True)
class _Training:
    """The steps of ``fit`` in a run's folder that exists."""

    run: Run
    fabric: Fabric
    data_set: DataSet
    reports: SilentReports
    stop: StopWatch
    steps: int
    last: int
    is_first: bool

    def fit(self) -> Outcome:
        run, plan, training = self.run, self.run.plan, self.run.plan.training
        checkpoint = self._checkpoint()
        # The data set may have changed since the run was started.
        check_target_names(self.data_set, plan)
        done = checkpoint["global_step"] if checkpoint else 0
        used, held_out = begin_split(run, self.data_set, self.is_first)
        names = names_of_split(used, held_out)
        self.reports(
            "started",
            step=done,
            steps=self.steps,
            stages=self.steps // training.steps,
            fold=run.fold,
            **process_facts(self.fabric),
            cases=len(used),
            segments=[segment.name for segment in plan.model.output.segments],
        )
        if done >= self.last and checkpoint.get("validated") == done:
            return Outcome(done, self.steps, done >= self.steps)
        lightning_fabric.seed_everything(training.seed, verbose=False)
        trained = SegmentationTraining(plan)
        # Before the cases are prepared, which takes long: the model may not exist, or not fit.
        if training.start_from and checkpoint is None:
            self._begin_with_model(trained.network)
        synthesizer = synthesizer_of(plan, self.data_set.tissues)
        label_maps = [case for case in used if not case.images]
        used = [case for case in used if case.images]

        def prepared(case: Case) -> TrainingCase:
            return self._prepared(case, synthesizer, case in label_maps)

        def all_are_prepared() -> bool:
            return self._prepare([*used, *label_maps, *held_out], prepared)

        stopped = Outcome(done, self.steps, finished=False, stopped=True)
        # Processes that this one starts begin when the cases are prepared; those started by others wait for them.
        environment = getattr(self.fabric.strategy, "cluster_environment", None)
        others_are_here = environment is not None and environment.creates_processes_externally
        if not others_are_here and not all_are_prepared():
            return stopped
        launch(self.fabric)
        if not first_does(lambda: not others_are_here or all_are_prepared()):
            return stopped
        if self.fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        images, maps, unseen = (list(map(prepared, cases)) for cases in (used, label_maps, held_out))
        # A run that began before this check was made may go on.
        if checkpoint is None:
            self._check_segments(images, maps)
        stages = _stages(plan, trained, images, maps, unseen, synthesizer)
        with reused_memory():
            loop = TrainingLoop(run, self.fabric, trained, stages, checkpoint, self.reports, self.stop, names)
            return loop.run_to(self.last)

    def _checkpoint(self) -> dict | None:
        """The latest checkpoint that can be read, None before the first."""
        checkpoint, path = read_latest_checkpoint(self.run)
        if checkpoint is None:
            return None
        if path != self.run.checkpoint:
            step, what = checkpoint["global_step"], "damaged" if self.run.checkpoint.exists() else "missing"
            self.reports.note(f"{self.run.checkpoint} is {what}; the run continues from {path}, after step {step}.")
        check_plan_unchanged(self.run, checkpoint)
        # In stages, the steps determine which part a step trained. Checkpoints of earlier versions do not record them.
        planned, stages = self.run.plan.training.steps, self.steps // self.run.plan.training.steps
        begun = checkpoint.get("steps", planned)
        if stages > 1 and begun != planned:
            raise UserError("steps-changed", steps=begun, stages=stages)
        return checkpoint

    def _check_segments(self, images: Sequence[TrainingCase], label_maps: Sequence[TrainingCase]) -> None:
        """Name segments that no training case has: they are not learned, and validation may not show it.

        Raises:
            UserError: ``no-foreground``, if no case has any segment.
        """
        plan, tissues = self.run.plan, self.data_set.tissues
        counts = np.zeros(VALUES, np.int64)
        for case in images:
            counts += case.places.counts
        # Label maps are prepared with places in the list of tissues.
        places = np.zeros(VALUES, np.int64)
        for case in label_maps:
            places += case.places.counts

        def is_learned(values: Sequence[int]) -> bool:
            return bool(counts[values].any() or (tissues and places[tissues.places(values)].any()))

        missing = [name for name, values in plan.targets.items() if not is_learned(values)]
        if len(missing) == len(plan.targets):
            raise UserError("no-foreground", path=str(plan.data))
        if missing:
            names = listed(missing, MOST_SEGMENTS_NAMED)
            self.reports.note(
                f"No training case of {plan.data} contains {names}, so nothing can be learned about it, and its Dice "
                "says nothing. If this is not intended, correct the targets in the plan, or hold out other cases."
            )

    def _begin_with_model(self, network: nn.Module) -> None:
        model = self.run.plan.training.start_from
        if anew := begin_with(model, network):
            layers = listed(anew, MOST_LAYERS_NAMED)
            self.reports.note(
                f"These layers do not match the weights of {model} and start from random weights: {layers}."
            )

    def _prepare(self, cases: Sequence[Case], prepare: Callable[[Case], object]) -> bool:
        """Prepare all cases; False if somebody asked to stop."""
        for folder in (self.run.folder / PREPARED_FOLDER, self.run.checkpoint.parent):
            folder.mkdir(exist_ok=True)
            for left in folder.glob(".part-*"):
                # What a killed process was writing.
                left.unlink(missing_ok=True)
        reported = time.monotonic()
        for number, case in enumerate(cases):
            if self.stop.asked():
                self.reports("stopping", reason=self.stop.reason)
                return False
            prepare(case)
            if time.monotonic() - reported > 1 or number + 1 == len(cases):
                reported = time.monotonic()
                self.reports("preparing", done=number + 1, of=len(cases))
        return True

    def _prepared(self, case: Case, synthesizer: Synthesizer | None, is_label_map: bool) -> TrainingCase:
        description, folder = self.run.plan.model, self.run.folder / PREPARED_FOLDER

        def note_change(name: str) -> None:
            self.reports.note(f"Case {name} has changed since the run began; it is prepared again.")

        if is_label_map:
            return prepare_label_map(case, description, folder, self.data_set.tissues, note_change)
        return prepare_case(case, description, folder, self.data_set.known_values, synthesizer, note_change)


def _stages(
    plan: Plan,
    trained: SegmentationTraining,
    used: Sequence[TrainingCase],
    label_maps: Sequence[TrainingCase],
    held_out: Sequence[TrainingCase],
    synthesizer: Synthesizer | None,
) -> list[StageCases]:
    """The cases as each stage uses them.

    Args:
        used: training cases with images of their own.
        label_maps: training cases without images, from which ``synthesizer`` makes them; it is None without any.
        held_out: cases for validation, whose images may have been synthesized.
    """
    training, description = plan.training, plan.model
    window = description.inference.window
    targets = [plan.targets[segment.name] for segment in description.output.segments]
    sampling = Sampling(
        training.seed,
        training.foreground_share,
        training.balanced_segments,
        training.boundary,
        trained.answered(window),
    )
    changes = SampleChanges(plan.augmentation, description.preparation.spacing)

    def samples(sampling: Sampling) -> TrainingSamples | MixedSamples:
        images = TrainingSamples(used, window, targets, changes, sampling, plan.mirrored_segments)
        if not label_maps:
            return images
        places = [synthesizer.tissues.places(values) for values in targets]
        synthesized = SynthesizedSamples(
            label_maps, window, places, changes, sampling, plan.mirrored_segments, synthesizer
        )
        return MixedSamples(images, synthesized, plan.synthesis.image_share) if used else synthesized

    stages = []
    for number, stage in enumerate(trained.system_stages):
        share = 1.0 if stage.around_segments else sampling.foreground_share
        boxes = whole_case
        if stage.find_box:
            before = trained.network[number - 1]
            boxes = FirstStageBoxes(before, window, description.output, stage.find_box)
        drawn = samples(replace(sampling, foreground_share=share))
        stages.append(StageCases(drawn, HeldOutCases(held_out, targets, boxes)))
    return stages if len(stages) > 1 else stages * trained.stages


class SilentReports:
    """Used by all processes except the first: writes and shows nothing."""

    def __call__(self, event: str, **values: Any) -> None:
        """Report an event."""

    def note(self, sentence: str) -> None:
        """Show a sentence."""


class Reports(SilentReports):
    """Writes and shows each event of ``conresnet_training.runs``."""

    def __init__(self, run: Run):
        self._path = run.folder / PROGRESS_FILE
        try:
            self._progress = ProgressWriter(self._path)
        except OSError as error:
            raise write_error(error, self._path) from error
        # Every start of the run logs into a folder of its own, so that resuming keeps what came before.
        self._curves = TensorBoardLogger(run.folder, name="tensorboard")
        self._bar: tqdm | None = None
        self._step = self._steps = 0
        self._left = ""

    def __call__(self, event: str, **values: Any) -> None:
        """Report an event. Raises UserError ``disk-full`` or ``cannot-write``."""
        try:
            self._progress.write(event, **values)
            self._log(event, values)
        except OSError as error:
            raise write_error(error, self._path) from error
        # If the terminal was closed, the run must still end with its checkpoint.
        with contextlib.suppress(OSError):
            self._show(event, values)

    def note(self, sentence: str) -> None:
        """Show a sentence on the terminal, above the progress bar."""
        with contextlib.suppress(OSError), tqdm.external_write_mode():
            click.echo(printable(sentence), err=True)

    def close(self) -> None:
        """Close the files; what no longer fits on the disk, or into a closed terminal, is dropped."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
        for close in (lambda: self._curves.finalize("success"), self._progress.close):
            with contextlib.suppress(OSError):
                close()

    def _log(self, event: str, values: dict) -> None:
        curves = {name: value for name, value in values.items() if name in (*FIGURES, "samples_per_second")}
        curves |= {f"dice_{name}": value for name, value in values.get("dice_a_segment", {}).items()}
        if curves:
            self._curves.log_metrics(curves, values["step"])
        if event == "checkpoint":
            self._curves.save()

    def _show(self, event: str, values: dict) -> None:
        if event == "started":
            # Only a terminal gets the bar; a log keeps the lines.
            self._bar = tqdm(
                total=values["steps"], initial=values["step"], unit="step", disable=None, dynamic_ncols=True
            )
            self._step, self._steps = values["step"], values["steps"]
        elif event == "preparing":
            self._bar.set_description(f"Preparing case {values['done']} of {values['of']}")
        elif event == "step":
            self._bar.set_description("Training")
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            self._bar.update(values["step"] - self._step)
            self._step = values["step"]
            self._left = f", {time_left(values['seconds_left'])}" if values["step"] < self._steps else ""
        elif event == "validation":
            segments = ", ".join(f"{name} {dice:.3f}" for name, dice in values["dice_a_segment"].items())
            best = "; best so far" if values["best"] else ""
            place = f"Step {values['step']} of {self._steps}{self._left}"
            with tqdm.external_write_mode():
                click.echo(printable(f"{place}: mean Dice {values['dice']:.3f} ({segments}){best}."))
        elif event == "stopping":
            self.note(f"Stopping after the current step ({values['reason']}). Stop again to end immediately.")
