"""The moving average of a network's weights, which is steadier than the weights of any one step.

The training loop: steps, validations and checkpoints, on one process or several.

Everything that a step does is a function of the checkpoint it goes on from and of the step's number: which samples it
takes, what dropout drops, the learning rate. A run that was stopped or killed so ends with the weights of an unbroken
one.

What is trained in stages, one part after the other, takes the plan's steps for each. Steps count through all of them;
the schedules, and the search for the best validation, begin anew with each.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from conresnet.errors import UserError
from conresnet_training.data.samples import StepSamples, TrainingSamples, sample_processes
from conresnet_training.runs.run import PLAN_FILE, Run, with_prefix, without_prefix, write_checkpoint
from conresnet_training.training.network import SegmentationTraining
from conresnet_training.training.processes import StopWatch, leave_signals_to_the_parent
from conresnet_training.training.validation import HeldOutCases, dice_of_cases


def averaging(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]:
    """How weights go into their moving average, for ``AveragedModel``: of the average, ``decay`` stays at a step.

    Less of it stays at first, or the random weights that a network begins with would be in it for long: (1 + n) /
    (10 + n) after n steps of the stage.
    """

    def average(averages: Sequence[Tensor], values: Sequence[Tensor], made: Tensor) -> None:
        count = float(made)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, values, made)

    return average


# ResDSN's paper trains by SGD with this momentum (4.1).
OPTIMIZERS = {"adam": Adam, "sgd": partial(SGD, momentum=0.9)}
POLYNOMIAL_POWER = 0.9
STEPS_BETWEEN_POINTS = 10
# Below it, 16-bit gradients were infinite at so many steps on end that the network, not the scale, is at fault.
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class Outcome:
    """How far a run came: the steps made, of those planned, and whether nothing is left to do."""

    step: int
    steps: int
    finished: bool


@dataclass(frozen=True)
class StageCases:
    """What one stage is trained on, and the cases on which it is validated."""

    samples: TrainingSamples
    held_out: HeldOutCases


class TrainingLoop:
    """Trains from a checkpoint, or from the start.

    Args:
        run: what is trained, and its folder.
        fabric: Lightning's, launched.
        training: what is trained.
        cases: for each stage.
        checkpoint: what to go on from.
        tell: takes the run's events, see ``conresnet_training.runs.progress``.
        stop: knows whether somebody wants this process to end.
    """

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        training: SegmentationTraining,
        cases: Sequence[StageCases],
        checkpoint: dict | None,
        tell: Callable[..., None],
        stop: StopWatch,
    ):
        self.run, self.fabric, self.cases = run, fabric, cases
        self.steps = training.stages * run.plan.training.steps
        self.settings, self.tell, self.stop, self.training = run.plan.training, tell, stop, training
        self.bare_optimizer = OPTIMIZERS[self.settings.optimizer](
            training.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.model, self.optimizer = fabric.setup(training, self.bare_optimizer)
        self.workers = sample_processes(self.settings.workers, fabric)
        self.average = None
        if self.settings.weight_average:
            average = averaging(self.settings.weight_average)
            self.average = AveragedModel(training.network, multi_avg_fn=average, use_buffers=True)
        self.step, self.validated, self.best_dice, self.is_best = 0, 0, -1.0, False
        if checkpoint is not None:
            self._restore(checkpoint)
        self.saved = (self.step, self.validated)
        self._begin_stage(self._stage_of(self.step))

    def run_to(self, last: int) -> Outcome:
        """Make the steps up to ``last``, or fewer where a stop is asked for, and leave a checkpoint.

        Raises:
            UserError: ``not-finite``, with the cases to blame; ``disk-full`` or ``cannot-write``.
        """
        self.model.train()
        batches = self._batches(last)
        self._started, self._first_step, self._seconds, self._timed = time.monotonic(), self.step, 0.0, 0
        is_stopping = self._do_all_stop()
        while not is_stopping and (self._is_validation_due() or self.step < last):
            if self._is_validation_due():
                is_stopping = not self._validate()
                if not is_stopping:
                    self._save()
            else:
                begin = time.monotonic()
                self._make_step(next(batches))
                self._seconds, self._timed = self._seconds + time.monotonic() - begin, self._timed + 1
                is_stopping = self._do_all_stop()
        if is_stopping:
            self.tell("stopping", reason=self.stop.reason or "asked of another process")
        self._save()
        return Outcome(self.step, self.steps, self.step >= self.steps and self.validated == self.step)

    def _batches(self, last: int) -> Iterator[list[Tensor]]:
        """Of the steps from here to the last, stage by stage."""
        ends = [min((stage + 1) * self.settings.steps, last) for stage in range(len(self.cases))]
        begins = [self.step, *(max(end, self.step) for end in ends[:-1])]
        parts = zip(self.cases, map(range, begins, ends), strict=True)
        return chain.from_iterable(self._batches_of(cases.samples, steps) for cases, steps in parts if steps)

    def _batches_of(self, samples: TrainingSamples, steps: range) -> DataLoader:
        return DataLoader(
            samples,
            batch_sampler=StepSamples(steps, self.settings.batch, self.fabric.global_rank, self.fabric.world_size),
            num_workers=self.workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_parent,
        )

    def _stage_of(self, made: int) -> int:
        """The stage to which the last of so many steps belongs; the last stage where the plan's steps are fewer."""
        return min(max(made - 1, 0) // self.settings.steps, self.training.stages - 1)

    def _begin_stage(self, stage: int) -> None:
        if self.training.stages == 1:
            return
        if self.average is not None and stage and self.step == stage * self.settings.steps:
            # What the parts before give to this one is what they will give in use.
            self.training.network.load_state_dict(self.average.module.state_dict())
            self.average.n_averaged.fill_(0)
        for network in self._networks():
            network.begin_stage(stage)

    def _networks(self) -> list[nn.Module]:
        """That which is trained and, where there is one, the average of its weights."""
        return [self.training.network, *([] if self.average is None else [self.average.module])]

    def _progress(self) -> float:
        """Share of the stage's steps that were made before the next one."""
        return self.step % self.settings.steps / self.settings.steps

    def _make_step(self, batch: list[Tensor]) -> None:
        if self.step and self.step % self.settings.steps == 0:
            self._begin_stage(self.step // self.settings.steps)
        learning_rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # Dropout of each step, and of each process, is its own, however often the run was resumed.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step + self.fabric.global_rank * 1_000_000_007)
        batch = [part.to(self.fabric.device, non_blocking=True) for part in batch]
        losses = self.model(*batch, progress=self._progress())
        self.fabric.backward(losses["loss"])
        largest = self.settings.gradient_clip or float("inf")
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=largest, error_if_nonfinite=False)
        if self._any_process(not self._is_sound(losses["loss"].detach(), norm)):
            raise self._not_finite(self._cases_to_blame(batch))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.training.network)
        self.step += 1
        if self.step % STEPS_BETWEEN_POINTS == 0 or self.step % self.settings.steps == 0:
            self._tell_step(losses, learning_rate)

    def _learning_rate(self) -> float:
        """Eq. 10 of the next step: lr0 (1 - t/T)^0.9."""
        return self.settings.learning_rate * (1 - self._progress()) ** POLYNOMIAL_POWER

    def _tell_step(self, losses: dict[str, Tensor], learning_rate: float) -> None:
        values = torch.stack([loss.detach() for loss in losses.values()])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")
        pace = (time.monotonic() - self._started) / (self.step - self._first_step)
        is_gpu = self.fabric.device.type == "cuda"
        self.tell(
            "step",
            step=self.step,
            **dict(zip(losses, values.tolist(), strict=True)),
            learning_rate=learning_rate,
            seconds_left=round(pace * (self.steps - self.step), 1),
            samples_per_second=round(self.settings.batch * self._rate(), 3),
            gpu_memory=torch.cuda.max_memory_reserved(self.fabric.device) if is_gpu else None,
        )

    def _rate(self) -> float:
        """Steps a second since the last point, waiting for samples included, validation not."""
        rate = self._timed / self._seconds if self._seconds else 0.0
        self._seconds, self._timed = 0.0, 0
        return rate

    def _is_validation_due(self) -> bool:
        is_place = any(self.step % n == 0 for n in (self.settings.steps_between_checkpoints, self.settings.steps))
        # More steps than the plan's were made where it asks for fewer than it did.
        return (is_place or self.step >= self.steps) and self.step != self.validated

    def _validate(self) -> bool:
        """Whether the validation was carried out; a stop breaks it off, and the resumed run begins with it."""
        stage = self._stage_of(self.step)
        fabric, cases = self.fabric, self.cases[stage].held_out
        network = self._networks()[-1]
        own = range(fabric.global_rank, len(cases), fabric.world_size)
        window = self.run.plan.description.inference.window
        with fabric.autocast():
            dice = dice_of_cases(network, cases, own, window, self.training.exclusive, fabric.device, self.stop.asked)
        if self._any_process(dice is None):
            return False
        if fabric.world_size > 1:
            dice = fabric.all_reduce(dice.to(fabric.device), reduce_op="sum").cpu()
        segments = [segment.name for segment in self.run.plan.description.output.segments]
        mean = dice.double().mean().item()
        if stage != self._stage_of(self.validated):
            self.best_dice = -1.0
        self.is_best = mean > self.best_dice
        a_segment = {name: round(value, 6) for name, value in zip(segments, dice.mean(0).tolist(), strict=True)}
        self.tell("validation", step=self.step, dice=round(mean, 6), dice_a_segment=a_segment, best=self.is_best)
        self.validated, self.best_dice = self.step, max(mean, self.best_dice)
        return True

    def _save(self) -> None:
        """Write the checkpoint "last", and before it "best" where this step is; nothing where it is written already."""
        if (self.step, self.validated) == self.saved:
            return
        # "best" first: killed in between, the run makes these steps again from the older "last".
        names = ["best", "last"] if self.validated == self.step and self.is_best else ["last"]
        if not all(torch.isfinite(tensor).all() for tensor in self.training.network.state_dict().values()):
            raise self._not_finite(self._case_names(self.step - 1))

        def write() -> None:
            write_checkpoint(self._content(), [self.run.checkpoint_named(name) for name in names])

        self._in_first_process(write)
        self.saved = (self.step, self.validated)
        for name in names:
            self.tell("checkpoint", step=self.step, name=name)

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
        }

    def _restore(self, content: dict) -> None:
        try:
            # The weights to which the optimizer's moments belong, whether or not the plan had them averaged until now.
            trained = content.get("training_state_dict", content["state_dict"])
            self.training.network.load_state_dict(without_prefix(trained))
            self.bare_optimizer.load_state_dict(content["optimizer"])
            self.fabric.strategy.precision.load_state_dict(content["precision"])
            self.step, self.validated = content["global_step"], content["validated"]
            self.best_dice = content["best_dice"]
            if self.average is not None:
                # Where none was kept, "state_dict" is what is trained, with which an average begins.
                self.average.module.load_state_dict(without_prefix(content["state_dict"]))
                self.average.n_averaged.fill_(self.step % self.settings.steps)
        except (KeyError, RuntimeError, ValueError) as error:
            path = self.run.checkpoint
            sentence = (
                f"The checkpoint {path} is not one of this plan's network; put the plan back, or start a new run."
            )
            raise UserError("checkpoint-of-another-plan", sentence, path=str(path)) from error

    def _in_first_process(self, action: Callable[[], None]) -> None:
        """Do what must not be done twice. Its UserError is raised in every process, so that all end together."""
        mistake = None
        if self.fabric.is_global_zero:
            try:
                action()
            except UserError as error:
                mistake = error.code, error.message, error.values
        if self.fabric.world_size > 1:
            mistake = self.fabric.broadcast(mistake)
        if mistake is not None:
            raise UserError(mistake[0], mistake[1], **mistake[2])

    def _do_all_stop(self) -> bool:
        return self._any_process(self.stop.asked())

    def _any_process(self, is_so: bool) -> bool:
        """Whether it is so in any of the processes; all of them must ask at the same place."""
        if self.fabric.world_size == 1:
            return is_so
        return bool(self.fabric.all_reduce(torch.tensor(float(is_so), device=self.fabric.device), reduce_op="sum"))

    def _is_sound(self, loss: Tensor, norm: Tensor) -> bool:
        loss, norm = torch.stack([loss, norm.to(loss)]).tolist()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        # With a scaler an infinite gradient only means too large a scale, and the step is left out.
        return math.isfinite(loss) and (math.isfinite(norm) if scaler is None else scaler.get_scale() >= SMALLEST_SCALE)

    def _cases_to_blame(self, batch: list[Tensor]) -> list[str]:
        """Of this step, the cases whose sample alone has no finite loss, or all where it takes all of them."""
        is_sound = []
        with torch.no_grad(), self.fabric.autocast():
            for index in range(len(batch[0])):
                sample = [part[index : index + 1] for part in batch]
                loss = self.training(*sample, progress=self._progress())["loss"]
                is_sound.append(float(torch.isfinite(sample[0]).all() and torch.isfinite(loss)))
        gathered = self.fabric.all_gather(torch.tensor(is_sound, device=self.fabric.device)).flatten().tolist()
        names = self._case_names(self.step)
        return [name for name, sound in zip(names, gathered, strict=True) if not sound] or names

    def _case_names(self, step: int) -> list[str]:
        """Of a step's samples, counted from 0."""
        batch = self.settings.batch
        samples = self.cases[0].samples
        return [samples.case_name(number) for number in range(step * batch, (step + 1) * batch)]

    def _not_finite(self, names: list[str]) -> UserError:
        cases = sorted(set(names))
        sentence = (
            f"Step {self.step + 1} gave numbers that are not finite, with samples of {', '.join(cases)}; look at these "
            f"cases, or lower the learning rate in {self.run.folder / PLAN_FILE}, and resume; the checkpoints are of "
            "earlier steps."
        )
        return UserError("not-finite", sentence, cases=cases, step=self.step + 1)
