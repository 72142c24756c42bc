"""The training loop: samples, network, Lightning's trainer, checkpoints and logs."""

import logging
import shutil

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from conresnet.inference.memory import reused_memory
from conresnet_training.augmentation import build_augmentation
from conresnet_training.data_sets import read_data_set
from conresnet_training.folds import split
from conresnet_training.held_out import HeldOutCases
from conresnet_training.lightning_model import SegmentationTraining
from conresnet_training.preparation import prepare_case
from conresnet_training.run import Run
from conresnet_training.samples import NumberedSamples, TrainingSamples


def fit(run: Run, most_steps: int | None = None, kind: type[SegmentationTraining] = SegmentationTraining) -> None:
    """Train from the run's newest checkpoint, or from the start, to the plan's last step.

    Args:
        most_steps: stop once this many steps were made in all; the schedule still counts to the plan's last.
        kind: what is trained, where a network of another making is to go through this loop.
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
    lightning_model = kind(plan)
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
