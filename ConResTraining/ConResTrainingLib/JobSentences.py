"""How a run stands, in words."""

from slicer.i18n import tr as _

from conresnet_training.progress import Progress
from ConResSegmentationLib import Messages

from .TrainingJob import JobState, TrainingJob


def sentenceOf(job: TrainingJob) -> str:
    """How a run stands, in a line or two; empty where there is none."""
    progress, state = job.progress, job.state
    if job.problem:
        return job.problem
    if state is JobState.none:
        return ""
    if state is JobState.starting:
        return _("Starting")
    if state is JobState.preparing:
        done, of = progress.prepared
        return _("Preparing the cases: {done} of {of}").format(done=done, of=of)
    parts = [_("Step {step} of {steps}").format(step=progress.step, steps=progress.steps)]
    if state is JobState.training:
        parts += [Messages.timeLeft(progress.seconds_left), *_speed(progress)]
    if progress.validations:
        newest, best = progress.validations[-1]["dice"], (progress.best or progress.validations[-1])["dice"]
        if newest is not None and best is not None:
            parts.append(_("Dice {newest:.3f}, best {best:.3f}").format(newest=newest, best=best))
    if job.host and state.isRunning:
        parts.append(_("on {host}").format(host=job.host))
    text = "; ".join(filter(None, parts)) + "."
    if state in (JobState.stopping, JobState.stopped, JobState.finished):
        text = f"{stateName(state)[:1].upper()}{stateName(state)[1:]}. {text}"
    return text


def _speed(progress: Progress) -> list[str]:
    if not progress.points:
        return []
    point, texts = progress.points[-1], []
    if point.get("samples_per_second"):
        texts.append(_("{count:.1f} samples/s").format(count=point["samples_per_second"]))
    if point.get("gpu_memory"):
        texts.append(_("{memory:.1f} GB of GPU memory").format(memory=point["gpu_memory"] / 1e9))
    return texts


def stateName(state: JobState) -> str:
    """A state in a word or two."""
    return {
        JobState.none: _("empty"),
        JobState.starting: _("starting"),
        JobState.preparing: _("preparing"),
        JobState.training: _("training"),
        JobState.stopping: _("stopping after its step"),
        JobState.stopped: _("stopped"),
        JobState.finished: _("finished"),
        JobState.failed: _("failed"),
        JobState.died: _("ended unexpectedly"),
    }[state]
