"""A training run: a folder that holds its plan, its prepared cases, its checkpoints and its logs."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from conresnet.errors import UserError
from conresnet.inference.memory import reused_memory
from conresnet_training.augmentation import build_augmentation
from conresnet_training.data_set import Case, DataSet, read_data_set
from conresnet_training.lightning_model import SegmentationTraining
from conresnet_training.plan import Plan, read_plan, write_plan
from conresnet_training.preparation import TrainingCase, prepare_case
from conresnet_training.samples import NumberedSamples, TrainingSamples

PLAN_FILE = "plan.yaml"
FOLD_FILE = "fold.txt"


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was started with."""

    folder: Path
    plan: Plan
    fold: int

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoint_named("last")

    def checkpoint_named(self, name: str) -> Path:
        """The checkpoint "last" or "best" (by validation Dice)."""
        return self.folder / "checkpoints" / f"{name}.ckpt"


def split(data_set: DataSet, plan: Plan, fold: int) -> tuple[list[Case], list[Case]]:
    """(training cases, held-out cases) of a fold: fold k of n holds out every n-th case by name, from the k-th on."""
    cases = data_set.cases
    held_out = list(cases[fold :: plan.training.folds])
    names = {case.name for case in held_out}
    training = [case for case in cases if case.name not in names]
    if not training or not held_out:
        folds = plan.training.folds
        raise UserError("too-few-cases", f"{len(cases)} cases do not make {folds} folds; plan fewer folds.")
    return training, held_out


def start_run(plan: Plan, folder: Path, fold: int) -> Run:
    """Make the folder of a new run.

    Raises:
        UserError: ``run-exists`` or ``fold-unknown``.
    """
    if not 0 <= fold < plan.training.folds:
        raise UserError("fold-unknown", f"There is no fold {fold}; the plan has folds 0 to {plan.training.folds - 1}.")
    if folder.exists() and any(folder.iterdir()):
        sentence = f"{folder} is not empty; resume the run in it, or name a new folder."
        raise UserError("run-exists", sentence, path=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(plan, folder / PLAN_FILE)
    (folder / FOLD_FILE).write_text(f"{fold}\n", encoding="utf-8")
    return Run(folder, plan, fold)


def open_run(folder: Path, data: Path | None = None) -> Run:
    """Open the folder of a run that was started before. Raises UserError ``run-not-found`` where it is none."""
    if not (folder / PLAN_FILE).is_file() or not (folder / FOLD_FILE).is_file():
        raise UserError("run-not-found", f"{folder} is not the folder of a training run.", path=str(folder))
    return Run(folder, read_plan(folder / PLAN_FILE, data), int((folder / FOLD_FILE).read_text(encoding="utf-8")))


class HeldOutCases(Dataset):
    """Whole prepared cases, one a sample, as (image (C, S, H, W), target (segments, S, H, W))."""

    def __init__(self, cases: Sequence[TrainingCase], targets: Sequence[Sequence[int]]):
        self.cases, self.targets = cases, targets

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        label = torch.from_numpy(case.label.copy())
        target = torch.stack([torch.isin(label, torch.tensor(values, dtype=label.dtype)) for values in self.targets])
        return torch.from_numpy(case.image.copy()), target.float()


def fit(run: Run, most_steps: int | None = None) -> None:
    """Train from the run's newest checkpoint, or from the start, to the plan's last step.

    Args:
        most_steps: stop once this many steps were made in all; the schedule still counts to the plan's last.
    """
    plan, training = run.plan, run.plan.training
    model = plan.description
    prepared = run.folder / "prepared"
    prepared.mkdir(exist_ok=True)
    used, held_out = (
        [prepare_case(case, model, prepared) for case in cases]
        for cases in split(read_data_set(plan.data), plan, run.fold)
    )
    targets = [plan.targets[segment.name] for segment in model.output.segments]
    augment = build_augmentation(plan.augmentation)
    samples = TrainingSamples(used, model.inference.window, targets, augment, training.seed)
    trainer = _trainer(run, min(most_steps or training.steps, training.steps))
    # An epoch is what lies between two checkpoints, so that a resumed run begins with a whole one.
    an_epoch = min(training.steps_between_checkpoints, training.steps) * training.batch
    sampler = NumberedSamples(an_epoch, lambda: trainer.global_step * training.batch)
    loader = DataLoader(
        samples,
        training.batch,
        sampler=sampler,
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
    )
    # Lightning's remarks on devices and services of others are not about the run.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(training.seed, verbose=False)
    lightning_model = SegmentationTraining(plan)
    validation = DataLoader(HeldOutCases(held_out, targets))
    resume_from = run.checkpoint if run.checkpoint.exists() else None
    with reused_memory():
        # A checkpoint holds plain state alone, so that it loads without unpickling code.
        trainer.fit(lightning_model, loader, validation, ckpt_path=resume_from, weights_only=True)
    shutil.rmtree(prepared, ignore_errors=True)


def _trainer(run: Run, steps: int) -> lightning.Trainer:
    training = run.plan.training
    folder, plain_names = run.checkpoint.parent, {"enable_version_counter": False}
    best = ModelCheckpoint(folder, filename="best", monitor="dice", mode="max", **plain_names)
    # One of its own, because `save_last` of the other writes only when the best is beaten.
    last = ModelCheckpoint(folder, filename="last", **plain_names)
    return lightning.Trainer(
        max_steps=steps,
        precision=_precision(training.precision),
        gradient_clip_val=training.gradient_clip or None,
        default_root_dir=run.folder,
        # Every start of the run logs into a folder of its own, so that a resumption keeps what came before.
        logger=[CSVLogger(run.folder, name="logs"), TensorBoardLogger(run.folder, name="tensorboard")],
        callbacks=[best, last, LearningRateMonitor("step"), TQDMProgressBar(refresh_rate=10)],
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _precision(wanted: str) -> str:
    """bf16 where the processor multiplies in it, fp16 on other GPUs, else fp32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
