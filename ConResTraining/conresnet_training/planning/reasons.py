"""The reasons for the choices in a plan, as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conresnet.inference.windows import MULTIPLE
from conresnet.networks import all_arguments
from conresnet.systems import PlannedArguments
from conresnet_training.data import DataSet
from conresnet_training.planning.memory import Budget, Fit
from conresnet_training.planning.plan import Plan
from conresnet_training.planning.survey import Survey
from conresnet_training.planning.systems import FEWEST_FOR_BATCH_NORM, CatalogEntry
from conresnet_training.reporting import listed, product

MOST_LISTED = 6


@dataclass(frozen=True)
class Reason:
    """What was planned, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from.

    Args:
        wanted: the window for the median case, or the largest one, if memory allowed it.
        steps: the reason for their number.
        remarks: from the system, by the line that they are added to.
        arguments: of the system, with their reasons.
    """

    plan: Plan
    entry: CatalogEntry
    data_set: DataSet
    found: Survey
    wanted: tuple[int, int, int]
    fit: Fit
    budget: Budget
    steps: str
    remarks: Mapping[str, str]
    arguments: PlannedArguments


def reasons(made: Planned) -> list[Reason]:
    """What was planned and why, in the order of the plan's lines."""
    plan, found, training = made.plan, made.found, made.plan.training
    model, output = plan.model, plan.model.output
    kind = "each voxel has one label" if output.kind == "labels" else "labels overlap as regions"
    across = "the first axis crosses slices"
    if found.orientation == "SAR" and not found.is_thick:
        across = "no axis has thick slices"
    return [
        Reason("system", made.entry.title, made.entry.sentence),
        Reason("spacing", f"{product(model.preparation.spacing)} mm", _why_spacing(made)),
        Reason("orientation", found.orientation, across),
        _roi(made),
        *_inputs(made),
        Reason("window", f"{product(model.inference.window)} voxels", _why_window(made)),
        Reason("batch", str(training.batch), "samples per step"),
        Reason(
            "workers",
            "chosen at training",
            "processes that make samples: with a GPU as many as the computer's cores allow, on a CPU none",
        ),
        Reason(
            "base width",
            str(made.fit.width),
            f"a step takes about {made.fit.bytes / 2**30:.1f} GB; {made.budget.source}",
        ),
        *_of_networks(made),
        _flips(made),
        Reason(output.kind, listed(output.names, MOST_LISTED), kind),
        Reason(
            "samples", f"{training.foreground_share:.0%} around segments", "all segments equally often, however small"
        ),
        Reason("steps", str(training.steps), made.steps),
        Reason(
            "averaging",
            f"{training.weight_average:g}",
            "the mean weights of the last steps, steadier than those of any one step, are validated and exported",
        ),
        Reason("folds", str(training.folds), _why_folds(made.data_set)),
    ]


def _why_spacing(made: Planned) -> str:
    median = f"the median of {len(made.data_set.cases)} cases"
    if made.found.is_thick:
        median += "; slices are thick, and their plane keeps its resolution"
    return _with_remark(made, "spacing", median)


def _with_remark(made: Planned, line: str, why: str) -> str:
    return f"{why}, {made.remarks[line]}" if line in made.remarks else why


def _roi(made: Planned) -> Reason:
    sides = f"the median case's longest side is {made.found.longest_side:.0f} mm"
    if made.plan.model.preparation.roi == "cut":
        return Reason("ROI", "cut", f"{sides}, as in crops: the model sees only what is inside an ROI")
    return Reason("ROI", "limit", f"{sides}, as in scans: the model also sees what is around an ROI")


def _inputs(made: Planned) -> Iterator[Reason]:
    for item in made.plan.model.inputs:
        line = f"intensity {item.name}"
        yield Reason(line, _in_words(item.intensity), _with_remark(made, line, _why_intensity(item.intensity)))
        for steps in item.copies:
            yield Reason(f"copy of {item.name}", _in_words(steps), "an additional channel, as in the paper")


def _in_words(steps: Sequence[dict[str, Any]]) -> str:
    words = {
        "clip": "clip to {low:g} ... {high:g}",
        "clip_percentiles": "clip to percentiles {low:g} ... {high:g}",
        "z_score": "z-score",
        "rescale": "{from[0]:g} ... {from[1]:g} to {to[0]:g} ... {to[1]:g}",
        "z_score_slices": "z-score of each slice",
        "subtract_gaussian": "minus its blur by {sigma_mm:g} mm",
        "equalize": "contrast equalized",
    }
    return ", ".join(words[step["step"]].format(**step) for step in steps) or "unchanged"


def _why_intensity(steps: Sequence[dict[str, Any]]) -> str:
    if not steps:
        return "nnU-Net calls the channel noNorm, so its values are not normalized"
    if steps[0]["step"] != "clip":
        return "measured in each case"
    return "CT: percentiles, mean and standard deviation of the values inside labels, over the data set"


def _flips(made: Planned) -> Reason:
    axes = made.plan.augmentation.flip_axes
    if axes:
        return Reason("flips", ", ".join(axes), "left to right, which leaves anatomy plausible")
    why = "segments are named for a side; to flip, list the pairs in augmentation.swapped_segments"
    return Reason("flips", "none", why)


def _why_window(made: Planned) -> str:
    size = product(made.found.size)
    if made.fit.window != made.wanted:
        why = f"the part of {product(made.wanted)} that fits the memory"
    elif made.wanted == made.entry.declaration.window:
        why = f"the largest for {made.entry.title}; the median case ({size}) is larger"
    else:
        why = f"the median case ({size}) in multiples of {MULTIPLE}"
    return _with_remark(made, "window", why)


def _of_networks(made: Planned) -> Iterator[Reason]:
    """Lines on arguments that only some systems have."""
    network = made.plan.model.system.networks[0]
    arguments = all_arguments(network.type, network.arguments)
    if "norm" in made.entry.arguments:
        yield Reason("norm", made.entry.arguments["norm"], "always the norm of this network, for every batch size")
    elif arguments.get("norm") == "group" and made.fit.batch < FEWEST_FOR_BATCH_NORM:
        why = (
            f"batches of {made.fit.batch} are too small for batch norm, which the paper uses; for that, plan with "
            f"--set training.batch={FEWEST_FOR_BATCH_NORM} or more"
        )
        yield Reason("norm", "group", why)
    if made.entry.takes_residuals:
        across = f"residuals between {made.plan.model.residual_axis} slices"
        yield Reason("residual axis", arguments["residual_axis"], across)
    yield from (Reason(*reason) for reason in made.arguments.reasons)


def _why_folds(data_set: DataSet) -> str:
    why = "each run holds one out"
    if data_set.held_out:
        return f"{why}; {data_set.folds_from} assigns the cases as long as the plan has as many folds"
    if len(data_set.patients) < len(data_set.cases):
        why += f"; the time points of each of the {len(data_set.patients)} patients stay together"
    return f"{why}; {data_set.unused_splits}" if data_set.unused_splits else why
