"""Why a plan is as it is, in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conresnet.inference.windows import MULTIPLE
from conresnet_training.data import DataSet
from conresnet_training.data.description import SPLITS_FILE
from conresnet_training.data.survey import Survey
from conresnet_training.planning.inputs import ABDOMEN, abdomen_of_ct, half_resolution
from conresnet_training.planning.memory import Budget, Fit
from conresnet_training.planning.plan import Plan
from conresnet_training.planning.systems import Catalogued, all_arguments
from conresnet_training.reporting.text import listed, product

MOST_LISTED = 6


@dataclass(frozen=True)
class Reason:
    """What was planned, and why, for people."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from.

    Args:
        wanted: the window that would hold the median case, or the largest, were there memory enough.
        steps: why the training has so many.
    """

    plan: Plan
    entry: Catalogued
    data_set: DataSet
    found: Survey
    wanted: tuple[int, int, int]
    fit: Fit
    budget: Budget
    steps: str


def reasons(made: Planned) -> list[Reason]:
    """What was planned and why, in the order of the plan's lines."""
    plan, found, training = made.plan, made.found, made.plan.training
    model, output = plan.model, plan.model["output"]
    kind = "each voxel has one label" if output["kind"] == "labels" else "labels overlap as regions"
    across = "the first axis crosses slices"
    if found.orientation == "SAR" and not found.is_thick:
        across = "no axis has thick slices"
    return [
        Reason("system", made.entry.title, made.entry.sentence),
        Reason("spacing", f"{product(model['preparation']['spacing'])} mm", _why_spacing(made)),
        Reason("orientation", found.orientation, across),
        _roi(made),
        *_inputs(made),
        Reason("window", f"{product(model['inference']['window'])} voxels", _why_window(made)),
        Reason("batch", str(training.batch), "samples a step"),
        Reason(
            "workers",
            "chosen where it trains",
            "processes that make samples: beside a GPU as many as its computer's cores allow, on a processor none",
        ),
        Reason(
            "base width",
            str(made.fit.width),
            f"a step takes about {made.fit.bytes / 2**30:.1f} GB; {made.budget.source}",
        ),
        *_of_networks(made),
        _flips(made),
        Reason(output["kind"], listed([segment["name"] for segment in output["segments"]], MOST_LISTED), kind),
        Reason(
            "samples", f"{training.foreground_share:.0%} around segments", "each segment as often, however small it is"
        ),
        Reason("steps", str(training.steps), made.steps),
        Reason(
            "averaging",
            f"{training.weight_average:g}",
            "the mean of the last steps' weights, steadier than any one step's, is validated and exported",
        ),
        Reason("folds", str(training.folds), _why_folds(made.data_set)),
    ]


def _why_spacing(made: Planned) -> str:
    median = f"the median of {len(made.data_set.cases)} cases"
    if made.entry.prepare is half_resolution:
        median = f"twice {median} ({product(made.found.spacing)} mm): the levels work at 1/4 and 1/2"
    return f"{median}; slices are thick, and their plane keeps its resolution" if made.found.is_thick else median


def _roi(made: Planned) -> Reason:
    sides = f"the median case's longest side is {made.found.longest_side:.0f} mm"
    if made.plan.model["preparation"]["roi"] == "cut":
        return Reason("ROI", "cut", f"{sides}, as in crops: the model is to see no more than such a crop")
    return Reason("ROI", "limit", f"{sides}, as in scans: the model is to see what is around an ROI")


def _inputs(made: Planned) -> Iterator[Reason]:
    for item in made.plan.model["inputs"]:
        yield Reason(f"intensity {item['name']}", _in_words(item["intensity"]), _why_intensity(made, item))
        for steps in item.get("copies", ()):
            yield Reason(f"copy of {item['name']}", _in_words(steps), "seen beside the image, as in the paper")


def _in_words(steps: Sequence[dict[str, Any]]) -> str:
    words = {
        "clip": "clip to {low:g} ... {high:g}",
        "clip_percentiles": "clip to percentiles {low:g} ... {high:g}",
        "z_score": "z-score",
        "rescale": "{from[0]:g} ... {from[1]:g} to {to[0]:g} ... {to[1]:g}",
        "z_score_slices": "z-score of each slice",
        "subtract_gaussian": "less its blur of {sigma_mm:g} mm",
        "equalize": "contrast evened out",
    }
    return ", ".join(words[step["step"]].format(**step) for step in steps)


def _why_intensity(made: Planned, item: dict[str, Any]) -> str:
    if item["intensity"][0]["step"] != "clip":
        return "of each case by itself"
    why = "CT: percentiles, mean and deviation of the values inside of labels, over the data set"
    if made.entry.prepare is not abdomen_of_ct:
        return why
    low, high = ABDOMEN
    if (item["intensity"][0]["low"], item["intensity"][0]["high"]) == ABDOMEN:
        return "CT: the paper's range, for organs of the abdomen, which holds the values inside of labels"
    return f"{why}, which the paper's range ({low} ... {high}) does not hold"


def _flips(made: Planned) -> Reason:
    axes = made.plan.augmentation.flip_axes
    if axes:
        return Reason("flips", ", ".join(axes), "left to right, which keeps anatomy possible")
    why = "segments are named for a side; to flip, list the pairs in augmentation.swapped_segments"
    return Reason("flips", "none", why)


def _why_window(made: Planned) -> str:
    size = product(made.found.size)
    if made.fit.window != made.wanted:
        why = f"what fits the memory of {product(made.wanted)}"
    elif made.wanted == made.entry.largest_window:
        why = f"the largest for {made.entry.title}, since the median case ({size}) is larger"
    else:
        why = f"the median case ({size}) in multiples of {MULTIPLE}"
    return f"{why}; trained on is the half in its middle" if made.entry.prepare is half_resolution else why


def _of_networks(made: Planned) -> Iterator[Reason]:
    """Of the arguments that only some systems have."""
    system = made.plan.model["system"]
    arguments = all_arguments(system["networks"][0])
    if arguments["norm"] == "group" and arguments.get("backbone") != "residual":
        few = f"batches of {made.fit.batch} are too small for batch norm, which the paper takes"
        yield Reason("norm", "group", few)
    if made.entry.takes_residuals:
        across = f"residuals between {made.plan.description.residual_axis} slices"
        yield Reason("residual axis", arguments["residual_axis"], across)
    if made.entry.coarse_to_fine:
        margin = f"{system['arguments']['margin']} voxels"
        yield Reason("margin", margin, "around what the coarse pass finds; the paper leaves it open")
        share = system["arguments"]["smallest_component"]
        dropped = f"under {share:.0%} of a segment" if share else "none"
        yield Reason("dropped components", dropped, "what the labels themselves can spare, of the paper's 20 % and 5 %")


def _why_folds(data_set: DataSet) -> str:
    why = "of which a run holds one out"
    if data_set.held_out:
        return f"{why}; {SPLITS_FILE} says which cases, while the plan has as many folds"
    if len(data_set.patients) < len(data_set.cases):
        why += f"; the time points of each of the {len(data_set.patients)} patients stay together"
    return f"{why}; {SPLITS_FILE} is not followed: {data_set.unused_splits}" if data_set.unused_splits else why
