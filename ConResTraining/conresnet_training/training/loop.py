"""The training loop: steps, validations and checkpoints, in one process or several.

Everything that a step does is a function of the checkpoint it continues from and of the step's number: its samples, its
dropout, its learning rate. A run that was stopped or killed therefore ends with the weights of an uninterrupted one.

A network that is trained in stages, one part after the other, takes the plan's steps for each. Steps count through all
stages; the schedules and the search for the best validation start over with each.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, default_collate

from conresnet.errors import UserError
from conresnet_training.data.samples import TrainingSamples, step_samples
from conresnet_training.runs.run import PLAN_FILE, Run, what_is_learned, with_prefix, without_prefix, write_checkpoint
from conresnet_training.training import SegmentationTraining, WeightAverage
from conresnet_training.training.processes import sample_processes
from conresnet_training.training.stopping import StopWatch, leave_signals_to_the_parent
from conresnet_training.training.validation import HeldOutCases, dice_of_cases

# ResDSN's paper trains by SGD with this momentum (4.1).
OPTIMIZERS = {"adam": Adam, "sgd": partial(SGD, momentum=0.9)}
# Where PyTorch updates all parameters at once, and can leave out the update without being told by this process.
FUSED = ("cpu", "cuda")
POLYNOMIAL_POWER = 0.9
STEPS_BETWEEN_POINTS = 10
# Below this scale, 16-bit gradients were infinite in so many steps in a row that the network is at fault, not the
# scale.
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class Outcome:
    """How far a run got.

    Args:
        step, steps: made, and planned.
        finished: whether nothing remains to be done.
        stopped: whether somebody asked to stop.
        status: exit status of the process; not 0 if it was stopped.
    """

    step: int
    steps: int
    finished: bool
    stopped: bool = False
    status: int = 0


@dataclass(frozen=True)
class StageCases:
    """The samples that one stage is trained on, and the cases it is validated on."""

    samples: TrainingSamples
    held_out: HeldOutCases


class TrainingLoop:
    """Trains from a checkpoint, or from the start.

    Args:
        fabric: Lightning's, launched.
        checkpoint: where to continue.
        report: receives the run's events, see ``conresnet_training.runs``.
        stop: reports whether this process was asked to stop.
        split: names of the cases, which each checkpoint records; see ``conresnet_training.runs.run``.
    """

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        training: SegmentationTraining,
        cases: Sequence[StageCases],
        checkpoint: dict | None,
        report: Callable[..., None],
        stop: StopWatch,
        split: dict[str, list[str]] | None = None,
    ):
        self.run, self.fabric, self.cases, self.split = run, fabric, cases, split or {}
        self.steps = training.stages * run.plan.training.steps
        self.settings, self.report, self.stop, self.training = run.plan.training, report, stop, training
        is_fused = fabric.device.type in FUSED
        self.bare_optimizer = OPTIMIZERS[self.settings.optimizer](
            training.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=is_fused
        )
        self.model, self.optimizer = fabric.setup(training, self.bare_optimizer)
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)
        # On the device: the steps made since the last check and before any that was not finite; 1 after such a step.
        self._sound_steps, self._is_at_fault = torch.zeros(2, device=fabric.device)
        self._unchecked_steps = 0
        if is_fused and self.scaler is None:
            # The optimizer makes no update while this is 1, as for a scaler.
            self.bare_optimizer.found_inf = self._is_at_fault
        # Communication between processes at every step must not wait for their GPUs.
        self._hosts = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
        self.workers = sample_processes(self.settings.workers, fabric)
        self.average = None
        if self.settings.weight_average:
            self.average = WeightAverage(training.network, self.settings.weight_average)
        self.step, self.validated, self.best_dice, self.is_best = 0, 0, -1.0, False
        if checkpoint is not None:
            self._restore(checkpoint)
        self.saved = (self.step, self.validated)
        self._begin_stage(self._stage_of(self.step))

    def run_to(self, last: int) -> Outcome:
        """Make the steps up to ``last``, or fewer if asked to stop, and save a checkpoint.

        Raises:
            UserError: ``not-finite``, with the cases to blame; ``disk-full`` or ``cannot-write``.
        """
        self.model.train()
        batches = self._batches(last)
        self._started, self._first_step, self._seconds, self._timed = time.monotonic(), self.step, 0.0, 0
        is_stopping = self._any_process(self.stop.asked())
        while not is_stopping and (self._is_validation_due() or self.step < last):
            if self._is_validation_due():
                is_stopping = not self._validate()
                if not is_stopping:
                    self._save()
            else:
                begin = time.monotonic()
                self._make_step(next(batches))
                self._seconds, self._timed = self._seconds + time.monotonic() - begin, self._timed + 1
                is_stopping = self._any_process(self.stop.asked())
        if is_stopping:
            self.report("stopping", reason=self.stop.reason or "requested in another process")
        self._save()
        finished = self.step >= self.steps and self.validated == self.step
        return Outcome(self.step, self.steps, finished, stopped=is_stopping and not finished)

    def _batches(self, last: int) -> Iterator[list[Tensor]]:
        """The batches of the remaining steps, stage by stage."""
        ends = [min((stage + 1) * self.settings.steps, last) for stage in range(len(self.cases))]
        begins = [self.step, *(max(end, self.step) for end in ends[:-1])]
        parts = zip(self.cases, map(range, begins, ends), strict=True)
        return chain.from_iterable(self._batches_of(cases.samples, steps) for cases, steps in parts if steps)

    def _batches_of(self, samples: TrainingSamples, steps: range) -> DataLoader:
        return DataLoader(
            samples,
            batch_sampler=step_samples(steps, self.settings.batch, self.fabric.global_rank, self.fabric.world_size),
            num_workers=self.workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_parent,
        )

    def _stage_of(self, made: int) -> int:
        """The stage of the last of ``made`` steps; the last stage if the plan now has fewer steps."""
        return min(max(made - 1, 0) // self.settings.steps, self.training.stages - 1)

    def _begin_stage(self, stage: int) -> None:
        if self.training.stages == 1:
            return
        if self.average is not None and stage and self.step == stage * self.settings.steps:
            # This part must be trained on the outputs that the previous ones have at inference.
            self.training.network.load_state_dict(self.average.module.state_dict())
            self.average.made = 0
        for network in self._networks():
            network.begin_stage(stage)

    def _networks(self) -> list[nn.Module]:
        """The network that is trained and, if there is one, that with the averaged weights."""
        return [self.training.network, *([] if self.average is None else [self.average.module])]

    def _progress(self) -> float:
        """Share of the stage's steps made so far."""
        return self.step % self.settings.steps / self.settings.steps

    def _make_step(self, batch: list[Tensor]) -> None:
        if self.step and self.step % self.settings.steps == 0:
            self._begin_stage(self.step // self.settings.steps)
        # Eq. 10: lr0 (1 - t/T)^0.9.
        learning_rate = self.settings.learning_rate * (1 - self._progress()) ** POLYNOMIAL_POWER
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # Each step and process has its own dropout, however often the run was resumed.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step + self.fabric.global_rank * 1_000_000_007)
        batch = [part.to(self.fabric.device, non_blocking=True) for part in batch]
        losses = self.model(*batch, progress=self._progress())
        self.fabric.backward(losses["loss"])
        self._note_fault(losses["loss"].detach(), self._clip_gradients())
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.training.network)
        self.step += 1
        is_point = self.step % STEPS_BETWEEN_POINTS == 0 or self.step % self.settings.steps == 0
        if is_point or self._is_validation_due():
            self._check_steps()
        if is_point:
            self._report_step(losses, learning_rate)

    def _report_step(self, losses: dict[str, Tensor], learning_rate: float) -> None:
        values = torch.stack([loss.detach() for loss in losses.values()])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")
        pace = (time.monotonic() - self._started) / (self.step - self._first_step)
        is_gpu = self.fabric.device.type == "cuda"
        self.report(
            "step",
            step=self.step,
            **dict(zip(losses, values.tolist(), strict=True)),
            learning_rate=learning_rate,
            seconds_left=round(pace * (self.steps - self.step), 1),
            samples_per_second=round(self.settings.batch * self._rate(), 3),
            gpu_memory=torch.cuda.max_memory_reserved(self.fabric.device) if is_gpu else None,
        )

    def _rate(self) -> float:
        """Steps per second since the last event, including the wait for samples but not validation."""
        rate = self._timed / self._seconds if self._seconds else 0.0
        self._seconds, self._timed = 0.0, 0
        return rate

    def _is_validation_due(self) -> bool:
        is_place = any(self.step % n == 0 for n in (self.settings.steps_between_checkpoints, self.settings.steps))
        # A plan that was shortened may have fewer steps than were made.
        return (is_place or self.step >= self.steps) and self.step != self.validated

    def _validate(self) -> bool:
        """Whether the validation was completed; a stop interrupts it, and the resumed run starts with it."""
        stage = self._stage_of(self.step)
        fabric, cases = self.fabric, self.cases[stage].held_out
        if not cases.cases:
            self.validated = self.step
            return True
        network = self._networks()[-1]
        own = range(fabric.global_rank, len(cases.cases), fabric.world_size)
        window, output = self.run.plan.model.inference.window, self.run.plan.model.output
        with fabric.autocast():
            dice = dice_of_cases(network, cases, own, window, output, fabric.device, self.stop.asked)
        if self._any_process(dice is None):
            return False
        if fabric.world_size > 1:
            dice = fabric.all_reduce(dice.to(fabric.device), reduce_op="sum").cpu()
        mean = dice.double().mean().item()
        if stage != self._stage_of(self.validated):
            self.best_dice = -1.0
        self.is_best = mean > self.best_dice
        a_segment = {name: round(value, 6) for name, value in zip(output.names, dice.mean(0).tolist(), strict=True)}
        self.report("validation", step=self.step, dice=round(mean, 6), dice_a_segment=a_segment, best=self.is_best)
        self.validated, self.best_dice = self.step, max(mean, self.best_dice)
        return True

    def _save(self) -> None:
        """Write the checkpoint "last", and before it "best" if this step is the best; nothing if already written."""
        if (self.step, self.validated) == self.saved:
            return
        self._check_steps()
        # "best" first: if killed in between, the run repeats these steps from the older "last".
        names = ["best", "last"] if self.validated == self.step and self.is_best else ["last"]
        if not all(torch.isfinite(tensor).all() for tensor in self.training.network.state_dict().values()):
            raise self._not_finite(self._case_names(self.step - 1))
        self._write([self.run.checkpoint_named(name) for name in names])
        self.saved = (self.step, self.validated)
        for name in names:
            self.report("checkpoint", step=self.step, name=name)

    def _content(self) -> dict:
        trained = with_prefix(self.training.network.state_dict())
        weights = {"state_dict": trained}
        if self.average is not None:
            weights = {"state_dict": with_prefix(self.average.module.state_dict()), "training_state_dict": trained}
        return {
            **weights,
            "optimizer": self.bare_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "global_step": self.step,
            "validated": self.validated,
            "best_dice": self.best_dice,
            "steps": self.settings.steps,
            "learned": what_is_learned(self.run.plan),
            "split": self.split,
        }

    def _restore(self, content: dict) -> None:
        try:
            # The weights that the optimizer's moments belong to, whether or not they were averaged so far.
            trained = content.get("training_state_dict", content["state_dict"])
            self.training.network.load_state_dict(without_prefix(trained))
            # The settings are the plan's and the device's, which may have changed; the state is the checkpoint's.
            settings = self.bare_optimizer.state_dict()["param_groups"]
            self.bare_optimizer.load_state_dict({**content["optimizer"], "param_groups": settings})
            self.fabric.strategy.precision.load_state_dict(content["precision"])
            self.step, self.validated = content["global_step"], content["validated"]
            self.best_dice = content["best_dice"]
            if self.average is not None:
                # Without a stored average, "state_dict" has the trained weights, with which an average starts.
                self.average.module.load_state_dict(without_prefix(content["state_dict"]))
                self.average.made = self.step % self.settings.steps
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError("checkpoint-of-another-plan", path=str(self.run.checkpoint)) from error

    def _write(self, paths: Sequence[Path]) -> None:
        """Write the checkpoint in the first process. Its UserError is raised in all, so that they end together."""
        mistake = None
        if self.fabric.is_global_zero:
            try:
                write_checkpoint(self._content(), paths)
            except UserError as error:
                mistake = error.code, error.message, error.values
        if self.fabric.world_size > 1:
            mistake = self.fabric.broadcast(mistake)
        if mistake is not None:
            raise UserError(mistake[0], mistake[1], **mistake[2])

    def _any_process(self, is_so: bool) -> bool:
        """Whether it is true in any process; all of them must call this at the same point."""
        return self._least(not is_so) == 0

    def _least(self, value: int) -> int:
        """The smallest value in any process; all of them must call this at the same point."""
        if self.fabric.world_size == 1:
            return value
        least = torch.tensor(value, dtype=torch.int64)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self._hosts)
        return int(least)

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients, and return their original norm; ``Fabric.clip_gradients`` refuses fused optimizers."""
        if self.scaler is not None:
            self.scaler.unscale_(self.bare_optimizer)
        return clip_grad_norm_(self.training.parameters(), self.settings.gradient_clip or float("inf"))

    def _note_fault(self, loss: Tensor, norm: Tensor) -> None:
        """Note on the device whether the step is finite, without waiting for it."""
        is_finite = torch.isfinite(loss)
        if self.scaler is None:
            # With a scaler, an infinite gradient only means that the scale is too large, and the step is skipped.
            is_finite = is_finite & torch.isfinite(norm)
        self._is_at_fault.clamp_(min=(~is_finite).float())
        self._sound_steps += 1 - self._is_at_fault
        self._unchecked_steps += 1

    def _check_steps(self) -> None:
        """Raise UserError ``not-finite`` if one of the steps since the last check was not finite.

        Reading a value waits until the device has made all steps, so this is not done at every step. Where updates are
        fused there was none from the step at fault on, so the weights are still those that it began with.
        """
        if not self._unchecked_steps:
            return
        sound = int(self._sound_steps)
        if self.scaler is not None and self.scaler.get_scale() < SMALLEST_SCALE:
            sound = min(sound, self._unchecked_steps - 1)
        sound = self._least(sound)
        if sound < self._unchecked_steps:
            self.step += sound - self._unchecked_steps
            raise self._not_finite(self._cases_to_blame())
        self._sound_steps.zero_()
        self._unchecked_steps = 0

    def _cases_to_blame(self) -> list[str]:
        """The cases of the next step whose sample alone gives no finite loss, or all if no single one does."""
        fabric, samples = self.fabric, self.cases[self._stage_of(self.step + 1)].samples
        next_step = range(self.step, self.step + 1)
        (numbers,) = step_samples(next_step, self.settings.batch, fabric.global_rank, fabric.world_size)
        is_sound = []
        with torch.no_grad(), fabric.autocast():
            for number in numbers:
                sample = [part.to(fabric.device) for part in default_collate([samples[number]])]
                loss = self.training(*sample, progress=self._progress())["loss"]
                is_sound.append(float(torch.isfinite(sample[0]).all() and torch.isfinite(loss)))
        gathered = fabric.all_gather(torch.tensor(is_sound, device=fabric.device)).flatten().tolist()
        names = self._case_names(self.step)
        return [name for name, sound in zip(names, gathered, strict=True) if not sound] or names

    def _case_names(self, step: int) -> list[str]:
        """Names of the cases in a step's samples; steps count from 0."""
        batch = self.settings.batch
        samples = self.cases[0].samples
        return [samples.case_name(number) for number in range(step * batch, (step + 1) * batch)]

    def _not_finite(self, names: list[str]) -> UserError:
        cases = sorted(set(names))
        plan = str(self.run.folder / PLAN_FILE)
        return UserError("not-finite", step=self.step + 1, names=", ".join(cases), plan=plan, cases=cases)
