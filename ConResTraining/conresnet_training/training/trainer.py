"""Failures below the training loop that the user can put right, in a sentence each.

Weights that a run begins with instead of random ones: those of a model, to train it further or for another task.

A run from its cases to its last checkpoint: who trains, on what, and how its end is told.
"""

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import lightning.fabric
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.inference.devices import choose_backend, is_out_of_memory, reused_memory
from conresnet.inference.windows import MULTIPLE
from conresnet.networks.loading import load_network
from conresnet_training.data import Case, read_data_set
from conresnet_training.data.augmentation import SampleChanges
from conresnet_training.data.preparation import TrainingCase, prepare_case, prepare_label_map
from conresnet_training.data.samples import MixedSamples, Sampling, SynthesizedSamples, TrainingSamples
from conresnet_training.data.synthesis import Synthesizer
from conresnet_training.planning.plan import Plan, synthesizer_of
from conresnet_training.reporting.text import product
from conresnet_training.runs.folds import begin_split
from conresnet_training.runs.reports import reporting
from conresnet_training.runs.run import Run, read_checkpoint
from conresnet_training.runs.running import sole_process
from conresnet_training.training.loop import Outcome, StageCases, TrainingLoop
from conresnet_training.training.network import FoundBoxes, SegmentationTraining, coarsest_step, stages_of, steps_of_run
from conresnet_training.training.processes import StopWatch, first_does
from conresnet_training.training.validation import HeldOutCases, whole_case


def as_user_error(error: Exception, folder: object) -> UserError | None:
    """What a failure of a run means to its user; None for a fault of ours.

    Args:
        folder: the run's.
    """
    text = " ".join(str(error).split())
    # It may die for want of memory too, and says so; but what it lacks is not what the network takes.
    if "DataLoader worker" in text:
        sentence = (
            f"A process that makes samples for {folder} ended ({text.rstrip('.')}); it may have lacked memory, or "
            "shared memory in a container: plan fewer training.workers, or give it more, and resume."
        )
        return UserError("workers-died", sentence)
    if is_out_of_memory(error):
        sentence = (
            f"There is not enough memory to train {folder}; end other programs on the device and resume, or start "
            "a run with a smaller training.batch, inference.window or base_width."
        )
        return UserError("out-of-memory", sentence)
    return None


def begin_with(model: str, network: nn.Module) -> None:
    """Give ``network`` the weights of a model's network.

    Where ``network`` holds several of the model's kind, such as the rounds of auto-context or a coarse and a fine one,
    each begins with them. A layer that is made for the channels or the segments may have another shape, and keeps what
    it has.

    Args:
        model: the name or the path of a model package of one network.
        network: changed in place.

    Raises:
        UserError: ``start-does-not-fit`` where most of the tensors are other ones, or any of loading the model.
    """
    given = load_network(model)
    parts = {name: part for name, part in network.named_modules() if type(part) is type(given)}
    own, fitting = network.state_dict(), {}
    for name, tensor in given.state_dict().items():
        for place in parts:
            whole = f"{place}.{name}" if place else name
            if whole in own and own[whole].shape == tensor.shape:
                fitting[whole] = tensor
    if 2 * len(fitting) < len(own):
        sentence = (
            f"The model {model} has another kind or size of network than the plan: only {len(fitting)} of the plan's "
            f"{len(own)} tensors fit; plan a network like the model's, or leave out start_from."
        )
        raise UserError("start-does-not-fit", sentence, model=model)
    network.load_state_dict({**own, **fitting})


PREPARED_FOLDER = "prepared"
# Lightning's names of the engine's.
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def is_first_process() -> bool:
    """Whether this process is the only one, or the one of several that writes and speaks."""
    return rank_zero_only.rank == 0


def fit(run: Run, most_steps: int | None = None, devices: int = 1, nodes: int = 1) -> Outcome:
    """Train from the run's newest checkpoint, or from the start, to the plan's last step.

    A stop that is asked for, by a signal or by the file ``stop``, ends it after its step with a checkpoint.

    Args:
        most_steps: stop once this many steps were made in all; the schedule still counts to the plan's last.
        devices: GPUs to use on each computer, or processes where there is none. The plan's batch is divided among all.
        nodes: computers, whose processes ``torchrun`` or SLURM has started.

    Raises:
        UserError: ``run-in-use``, ``batch-not-divisible``, ``devices-not-there``, those of the data, of
            ``TrainingLoop.run_to`` and of ``as_user_error``; ``precision-unavailable``, ``steps-changed``.
    """
    fabric = _fabric(run, devices, nodes)
    steps = steps_of_run(run.plan)
    last = min(most_steps or steps, steps)
    is_first = is_first_process()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopWatch(run.folder))
        if is_first:
            stack.enter_context(sole_process(run.folder))
        tell = stack.enter_context(reporting(run, is_first))
        try:
            outcome = _fit(run, fabric, last, tell, stop, steps)
        except Exception as error:
            mistake = error if isinstance(error, UserError) else as_user_error(error, run.folder)
            if mistake is None:
                _tell_failure(tell, "fault", f"{type(error).__name__}: {error}", {})
                raise
            if error is mistake and not is_first:
                # The first process says what is wrong. Ending with a status of its own, this one would have it killed.
                raise SystemExit(0) from error
            _tell_failure(tell, mistake.code, mistake.message, mistake.values)
            raise mistake from error
        if outcome.finished and is_first:
            shutil.rmtree(run.folder / PREPARED_FOLDER, ignore_errors=True)
        tell("finished" if outcome.finished else "stopped", step=outcome.step)
    return outcome


def _fit(run: Run, fabric: Fabric, last: int, tell: Callable[..., None], stop: StopWatch, steps: int) -> Outcome:
    plan, training = run.plan, run.plan.training
    checkpoint = read_checkpoint(run.checkpoint)
    stages = steps // training.steps
    _check_steps(checkpoint or {}, training.steps, stages)
    done = checkpoint["global_step"] if checkpoint else 0
    data_set = read_data_set(plan.data)
    used, held_out = begin_split(run, data_set, is_first_process())
    segments = [segment.name for segment in plan.description.output.segments]
    tell(
        "started",
        step=done,
        steps=steps,
        stages=stages,
        fold=run.fold,
        **_process_facts(fabric),
        cases=len(used),
        segments=segments,
    )
    if done >= last and checkpoint.get("validated") == done:
        return Outcome(done, steps, done >= steps)
    # Before the cases are prepared, which takes long: the model to begin with may not be there, or not fit.
    lightning.fabric.seed_everything(training.seed, verbose=False)
    trained = SegmentationTraining(plan)
    if training.start_from and checkpoint is None:
        begin_with(training.start_from, trained.network)
    labels, prepared_folder = data_set.known_values, run.folder / PREPARED_FOLDER
    synthesizer = synthesizer_of(plan, data_set.tissues)

    def prepared(case: Case) -> TrainingCase:
        if not case.images and case in used:
            return prepare_label_map(case, plan.description, prepared_folder, data_set.tissues)
        return prepare_case(case, plan.description, prepared_folder, labels, synthesizer)

    def all_are_prepared() -> bool:
        is_whole = _prepare(run, [*used, *held_out], prepared, tell, stop)
        if not is_whole:
            tell("stopping", reason=stop.reason)
        return is_whole

    # Processes that this one starts begin when the cases are there; those that others have started wait for them.
    others_are_here = _others_are_here(fabric)
    if not others_are_here and not all_are_prepared():
        return Outcome(done, steps, False)
    _launch(fabric)
    if not first_does(lambda: not others_are_here or all_are_prepared()):
        return Outcome(done, steps, False)
    if fabric.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    cases = _stages(
        plan,
        trained,
        [prepared(case) for case in used if case.images],
        [prepared(case) for case in used if not case.images],
        [prepared(case) for case in held_out],
        synthesizer,
    )
    with reused_memory():
        loop = TrainingLoop(run, fabric, trained, cases, checkpoint, tell, stop)
        return loop.run_to(last)


def _check_steps(checkpoint: dict, steps: int, stages: int) -> None:
    """Refuse other steps where they say which part a step trained. Older checkpoints do not tell theirs."""
    begun = checkpoint.get("steps", steps)
    if stages > 1 and begun != steps:
        sentence = (
            f"The run was begun with training.steps of {begun}, which cannot be changed where {stages} parts are "
            f"trained one after the other; set it to {begun} again, or start a new run."
        )
        raise UserError("steps-changed", sentence, steps=begun)


def _stages(
    plan: Plan,
    trained: SegmentationTraining,
    used: Sequence[TrainingCase],
    label_maps: Sequence[TrainingCase],
    held_out: Sequence[TrainingCase],
    synthesizer: Synthesizer | None,
) -> list[StageCases]:
    """The cases as each stage takes them.

    Args:
        used: cases with images.
        label_maps: prepared label maps from which images are synthesized.
        held_out: cases with images, synthesized or not.
        synthesizer: makes images of label maps; None where every case has images.
    """
    training, description = plan.training, plan.description
    targets = [plan.targets[segment.name] for segment in description.output.segments]
    window, spacing = description.inference.window, description.preparation.spacing
    answered = trained.answered(window)
    sampling = Sampling(
        training.seed, training.foreground_share, training.balanced_segments, training.boundary, answered
    )
    changes = SampleChanges(plan.augmentation, spacing)

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
            boxes = FoundBoxes(before, window, len(targets), trained.exclusive, stage.find_box)
        drawn = samples(replace(sampling, foreground_share=share))
        stages.append(StageCases(drawn, HeldOutCases(held_out, targets, boxes)))
    return stages if len(stages) > 1 else stages * trained.stages


def _prepare(
    run: Run,
    cases: Sequence[Case],
    prepare: Callable[[Case], TrainingCase],
    tell: Callable[..., None],
    stop: StopWatch,
) -> bool:
    """Whether all cases were prepared, and nobody asked to stop."""
    for folder in (run.folder / PREPARED_FOLDER, run.checkpoint.parent):
        folder.mkdir(exist_ok=True)
        for left in folder.glob(".part-*"):
            # What a killed process was writing.
            left.unlink(missing_ok=True)
    told = time.monotonic()
    for number, case in enumerate(cases):
        if stop.asked():
            return False
        prepare(case)
        if time.monotonic() - told > 1 or number + 1 == len(cases):
            told = time.monotonic()
            tell("preparing", done=number + 1, of=len(cases))
    return True


def _fabric(run: Run, devices: int, nodes: int) -> Fabric:
    # Lightning's remarks on devices and services of others are not about the run.
    for name in ("lightning.fabric", "lightning.pytorch", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    training, processes = run.plan.training, devices * nodes
    launched = int(os.environ.get("WORLD_SIZE", processes))
    if launched != processes:
        sentence = f"{launched} processes were launched, but --devices and --nodes make {processes}; let them agree."
        raise UserError("devices-not-there", sentence, launched=launched, processes=processes)
    if training.batch % processes:
        sentence = f"A batch of {training.batch} cannot be divided among {processes} processes; plan another batch."
        raise UserError("batch-not-divisible", sentence, batch=training.batch, processes=processes)
    try:
        return Fabric(
            accelerator=choose_backend().device.type,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(run) if processes > 1 else "auto",
            precision=_precision(training.precision, run.plan.description.inference.window, coarsest_step(run.plan)),
        )
    except (ValueError, RuntimeError) as error:
        raise _no_devices(error) from error


def _strategy(run: Run) -> DDPStrategy:
    # What a stage does not train has no gradient, for which the processes would wait. PyTorch has no NCCL on Windows.
    return DDPStrategy(
        find_unused_parameters=stages_of(run.plan) > 1, process_group_backend="gloo" if os.name == "nt" else None
    )


def _others_are_here(fabric: Fabric) -> bool:
    """Whether the processes that share the training were started by others, as by ``torchrun`` or SLURM."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


def _launch(fabric: Fabric) -> None:
    try:
        fabric.launch()
    except ValueError as error:
        raise _no_devices(error) from error


def _no_devices(error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    return UserError("devices-not-there", f"The devices asked for are not there as asked: {reason}.")


def _precision(wanted: str, window: Sequence[int], step: int = MULTIPLE) -> str:
    """Lightning's name of what is wanted; "auto" is the engine's choice, but for windows that bf16 gets wrong.

    Args:
        step: see ``coarsest_step``.

    Raises:
        UserError: ``precision-unavailable`` where bf16 is asked for by name and would get the window wrong.
    """
    best = choose_backend()
    # Where a side has two voxels at the coarsest scale, the processor's bf16 leaves parts of a gradient unwritten: what
    # the memory held before, NaN at times, becomes the gradient.
    is_wrong = best.device.type == "cpu" and min(window) <= 2 * step
    # On a processor Lightning takes bf16 for 16-mixed too.
    if is_wrong and wanted in ("bf16-mixed", "16-mixed"):
        sentence = (
            f"In {wanted} a processor computes wrong gradients where a side of the window ({product(window)}) has "
            f"{2 * step} voxels or fewer; set training.precision to auto or 32-true, or plan a larger window."
        )
        raise UserError("precision-unavailable", sentence, precision=wanted)
    if wanted != "auto":
        return wanted
    return "32-true" if is_wrong else PRECISIONS[best.precision]


def _process_facts(fabric: Fabric) -> dict:
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "device": name,
        "devices": fabric.world_size,
        "precision": str(fabric.strategy.precision.precision),
        "version": __version__,
    }


def _tell_failure(tell: Callable[..., None], code: str, message: str, values: dict) -> None:
    # A full disk may be what failed.
    with contextlib.suppress(UserError):
        cases = {"cases": values["cases"]} if "cases" in values else {}
        tell("failed", code=code, message=message, **cases)
