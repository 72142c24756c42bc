"""Make a plan from the data, with reasons: the cases decide spacing, orientation, intensities, window and length."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.importing import SEGMENTS as BRATS_SEGMENTS
from conresnet.inference import MULTIPLE
from conresnet.networks import all_arguments
from conresnet.networks.blocks import GROUPS
from conresnet.package import AXES, FORMAT, FORMAT_VERSION
from conresnet.systems import PlannedArguments
from conresnet_training.data import DataSet
from conresnet_training.data.preparation import read_reference
from conresnet_training.planning.memory import BATCH, Budget, Fit, fit_memory
from conresnet_training.planning.plan import Augmentation, Plan, Synthesis, Training, with_settings
from conresnet_training.planning.survey import Survey, plan_inputs, side_pairs, speak_of_sides, survey, words_of
from conresnet_training.planning.systems import (
    DEFAULT,
    FEWEST_FOR_BATCH_NORM,
    CatalogEntry,
    Frame,
    cataloged,
    share_outputs,
)
from conresnet_training.reporting import listed, product, segment_color

# Steps of two samples show each case 60 times, or 75 times where five folds hold a fifth of them out. The shipped
# hippocampus model saw each of its training cases 169 times, 56 in each of its three stages. The minimum is for few
# cases, which augmentation multiplies; the maximum bounds the time. A GPU makes many more steps in that time, and
# networks keep gaining from them: nnU-Net makes 250,000 for any data.
STEPS_PER_CASE, FEWEST_STEPS, MOST_STEPS = 30, 2000, 30_000
FEWEST_STEPS_OF_GPU, MOST_STEPS_OF_GPU = 50_000, 250_000
# The average covers the last ninth of the steps, a thousand at most, so that it works for short runs too.
WEIGHT_AVERAGE = 0.999
# Maximum number of cases whose labels determine a system's arguments.
MOST_CASES = 10
# Millimeters; a scan of any part of an adult's body has a longer side. Smaller images are crops around a structure.
SHORTEST_SCAN = 100
# The maximum in model.json. Only images with a wrong header are larger; `check` and training name them.
LARGEST_CROP = 1000
# How often a run validates, unless that is more often than the default.
VALIDATIONS = 24
# Maximum number of segments listed in a reason.
MOST_LISTED = 6
REGION_NAMES = {"ET": "Enhancing tumor", "TC": "Tumor core", "WT": "Whole tumor", "RC": "Resection cavity"}


@dataclass(frozen=True)
class Choices:
    """Choices of the user that the data do not determine.

    Args:
        system: a key of `conresnet_training.planning.systems.SYSTEMS`.
        kind: "labels" or "regions"; None: regions where the data set has them.
        residual_axis: "S", "H" or "W", across which the network takes residuals. Defaults to "S".
        base_width: channels of the networks' first stage, a multiple of 8; None: what fits in memory.
        batch: samples per step; None: 2, or 1 where memory is short, or more that fill a GPU.
        orientation: three letters in array order (S, H, W); None: determined by the slices.
        spacing: mm along these axes; None, also for a single axis: the median.
    """

    system: str = DEFAULT
    kind: str | None = None
    residual_axis: str | None = None
    base_width: int | None = None
    batch: int | None = None
    orientation: str | None = None
    spacing: Sequence[float | None] | None = None


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
    choices: Choices


def make_plan(
    data_set: DataSet,
    folder: Path,
    budget: Budget | None = None,
    choices: Choices | None = None,
    settings: Sequence[str] = (),
) -> tuple[Plan, list[Reason]]:
    """Plan a run from the data; returns the plan, and the reasons for what was planned.

    Args:
        budget: memory for training. Defaults to the free memory of this computer.
        choices: defaults to ConResNet.
        settings: replace values of the plan, see `conresnet_training.planning.plan.with_settings`.

    Raises:
        UserError: ``one-case``, ``one-patient``, ``case-file-missing``, ``memory-too-small``, ``plan-system-unknown``,
            ``no-regions``, ``no-residuals``, ``base-width-invalid``, ``plan-network-wrong``, or any of reading the
            data or of ``with_settings``.
    """
    choices = choices or Choices()
    entry = cataloged(choices.system)
    _check(data_set, folder, choices, entry)
    kind = choices.kind or ("regions" if data_set.regions else "labels")
    budget = budget or Budget.here()
    if choices.base_width:
        budget = replace(budget, widths=(choices.base_width,))
    found = survey(data_set, choices.orientation)
    segments, order, targets = _regions(data_set) if kind == "regions" else _labels(data_set)
    model = _model(data_set, found, planned_window(found, entry.declaration.window))
    model["output"] = {"kind": kind, "threshold": 0.5, "segments": segments, "paint_order": order}
    if choices.spacing:
        found = found.at(_unprepared(choices.spacing, model, entry))
        model["preparation"]["spacing"] = list(found.spacing)
        model["inference"]["window"] = list(planned_window(found, entry.declaration.window))
    remarks = entry.prepare(model)
    frame = Frame.of(model, budget.widths[0], choices.residual_axis or "S", choices.batch or BATCH)
    wanted = tuple(model["inference"]["window"])
    largest = 0 if choices.batch else budget.largest_batch(wanted, len(data_set.cases) * math.prod(found.size))
    fit = fit_memory(budget, entry.build, frame, wanted, largest)
    if fit.batch > frame.batch:
        remarks = {**remarks, "batch": "so that a GPU is busy, within its memory and a twentieth of the data"}
    model["inference"]["window"] = [side - side % entry.declaration.multiple for side in fit.window]
    network = entry.build(replace(frame, base_width=fit.width, batch=fit.batch))
    arguments = entry.kind.plan_arguments(lambda: labeled_masks(data_set, targets))
    model["system"] = entry.describe(network, arguments.values)
    steps, why_steps = planned_steps(len(data_set.cases), budget.is_gpu, entry.stages(network))
    training = Training(
        steps=steps,
        batch=fit.batch,
        folds=data_set.folds,
        steps_between_checkpoints=max(Training().steps_between_checkpoints, steps // VALIDATIONS),
        balanced_segments=True,
        weight_average=WEIGHT_AVERAGE,
    )
    changes = Augmentation(flip_axes=planned_flips(found.orientation, list(targets)))
    synthesis = None
    if data_set.tissues:
        # Label maps are of many structures, most of them in pairs.
        synthesis, pairs = Synthesis(), side_pairs(list(targets))
        if pairs:
            flips = planned_flips(found.orientation, [])
            changes = changes.model_copy(update={"flip_axes": flips, "swapped_segments": pairs})
        for network in model["system"]["networks"]:
            share_outputs(network, list(targets), pairs)
    parts = {"training": training, "augmentation": changes, "synthesis": synthesis, "model": model}
    plan = Plan(data=folder.resolve(), targets=targets, **parts)
    made = Planned(plan, entry, data_set, found, wanted, fit, budget, why_steps, remarks, arguments, choices)
    changed = with_settings(plan, settings)
    planned = {reason.what: reason.value for reason in _reasons(made)}
    return changed, [_if_set(reason, planned) for reason in _reasons(replace(made, plan=changed))]


def _unprepared(spacing: Sequence[float | None], model: dict[str, Any], entry: CatalogEntry) -> list[float | None]:
    """The spacing to plan with so that the model gets the chosen one; some systems use larger voxels than planned."""
    entry.prepare(made := copy.deepcopy(model))
    sides = zip(spacing, model["preparation"]["spacing"], made["preparation"]["spacing"], strict=True)
    return [wanted and wanted * before / after for wanted, before, after in sides]


def _if_set(reason: Reason, planned: Mapping[str, str]) -> Reason:
    """The reason, or that the user has set the value, if it is not the planned one."""
    before = planned.get(reason.what, reason.value)
    return reason if before == reason.value else replace(reason, why=f"set by you (planned: {before})")


def labeled_masks(data_set: DataSet, targets: Mapping[str, Sequence[int]]) -> Iterator[list[np.ndarray]]:
    """For each segment its masks (S, H, W) in some of the cases. Raises UserError as reading a label map."""
    cases = (data_set.cases[index] for index in data_set.spread(MOST_CASES))
    labels = [read_reference(case, data_set.tissues).array for case in cases]
    return ([np.isin(label, values) for label in labels] for values in targets.values())


def planned_window(found: Survey, largest: tuple[int, int, int]) -> tuple[int, int, int]:
    """Voxels (S, H, W) that hold the median case, in multiples of 8, and no more than ``largest``."""
    sides = (max(-(-int(size) // MULTIPLE), 1) * MULTIPLE for size in found.size)
    return tuple(min(side, most) for side, most in zip(sides, largest, strict=True))


def planned_flips(orientation: str, names: Sequence[str]) -> list[str]:
    """The left-right axis, unless segment names refer to a side."""
    if speak_of_sides(names):
        return []
    return [axis for axis, letter in zip(AXES, orientation, strict=True) if letter in "LR"]


def planned_steps(cases: int, is_gpu: bool, stages: int) -> tuple[int, str]:
    """How many steps each of the stages takes, and the reason."""
    fewest, most = (FEWEST_STEPS_OF_GPU, MOST_STEPS_OF_GPU) if is_gpu else (FEWEST_STEPS, MOST_STEPS)
    wanted = STEPS_PER_CASE * cases
    steps = min(max(wanted, fewest), most)
    why = f"{STEPS_PER_CASE} per case"
    if steps != wanted:
        bound = "minimum" if steps > wanted else "maximum"
        of_gpu = " on a GPU, whose steps are quick (nnU-Net runs 250,000)" if is_gpu else ""
        why = f"the {bound}{of_gpu}; {why} would be {wanted}"
    return steps, f"{why}{f', in each of {stages} stages' if stages > 1 else ''}"


def _check(data_set: DataSet, folder: Path, choices: Choices, entry: CatalogEntry) -> None:
    """Refuse what can be found to be wrong without reading the images."""
    data_set.check_size(folder)
    if choices.kind == "regions" and not data_set.regions:
        raise UserError("no-regions", path=str(folder))
    if choices.residual_axis and not entry.takes_residuals:
        raise UserError("no-residuals", title=entry.title)
    if choices.base_width and choices.base_width % GROUPS:
        raise UserError("base-width-invalid", width=choices.base_width, multiple=GROUPS)


Segments = tuple[list[dict[str, Any]], list[str], dict[str, list[int]]]


def _labels(data_set: DataSet) -> Segments:
    """(segments, the order they are painted in, the label values of each), where each voxel has one label."""
    segments = [
        {"name": name, "label": value, "color": segment_color(place)}
        for place, (value, name) in enumerate(sorted(data_set.labels.items()))
    ]
    names = [segment["name"] for segment in segments]
    values = data_set.values_of_labels
    targets = {segment["name"]: list(values.get(segment["name"], [segment["label"]])) for segment in segments}
    return segments, names, targets


def _regions(data_set: DataSet) -> Segments:
    """As ``_labels``, where labels overlap as regions."""
    known = {segment["name"]: segment for segment in BRATS_SEGMENTS}
    segments = []
    for place, name in enumerate(data_set.regions):
        title = REGION_NAMES.get(name)
        segment = known.get(title, {"name": title or name, "color": segment_color(place)})
        segments.append({**segment, "label": data_set.region_labels[name]})
    order = list(data_set.region_labels)
    names = {name: segment["name"] for name, segment in zip(data_set.regions, segments, strict=True)}
    for name, segment in zip(data_set.regions, segments, strict=True):
        later = order[order.index(name) + 1 :]
        own = set(data_set.regions[name])
        segment["includes"] = [names[other] for other in later if own > set(data_set.regions[other])]
    targets = {names[name]: list(values) for name, values in data_set.regions.items()}
    return segments, [names[name] for name in order], targets


def _model(data_set: DataSet, found: Survey, window: tuple[int, int, int]) -> dict[str, Any]:
    """``model.json`` without the system and the output."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": "-".join(words_of(data_set.name))[:80] or "model",
        "title": data_set.name,
        "version": "1.0.0",
        "description": "",
        "license": data_set.licence or "not stated",
        "attribution": "",
        "citations": [],
        "training_data": data_set.name,
        "intended_use": "Research only, not for diagnosis.",
        "limitations": "",
        "inputs": plan_inputs(data_set),
        "preparation": {
            "orientation": found.orientation,
            "spacing": [round(mm, 4) for mm in found.spacing],
            "foreground": "not_background",
            **_roi_use(found),
        },
        "inference": {
            "window": list(window),
            "overlap": 0.5,
            "tiling": "fitted",
            "blending": "gaussian",
            "mirror_axes": [],
        },
    }


def _roi_use(found: Survey) -> dict[str, Any]:
    """What the preparation says about ROIs: crops of about the training's size are cut, scans only limited."""
    if found.longest_side >= SHORTEST_SCAN:
        return {"roi": "limit"}
    return {"roi": "cut", "largest_crop": [round(min(mm, LARGEST_CROP), 4) for mm in found.largest]}


def _reasons(made: Planned) -> list[Reason]:
    """What was planned and why, in the order of the plan's lines."""
    plan, found, training = made.plan, made.found, made.plan.training
    model, output, spacing = plan.model, plan.model.output, plan.model.preparation.spacing
    kind = "each voxel has one label" if output.kind == "labels" else "labels overlap as regions"
    across = "the first axis crosses slices"
    if found.orientation == "SAR" and not found.is_thick:
        across = "no axis has thick slices"
    if made.choices.orientation:
        across = "set by you"
    return [
        Reason("system", made.entry.title, made.entry.sentence),
        Reason("spacing", f"{product(spacing)} mm" if spacing else "that of each image", _why_spacing(made)),
        Reason("orientation", found.orientation, across),
        _roi(made),
        *_inputs(made),
        Reason("window", f"{product(model.inference.window)} voxels", _why_window(made)),
        Reason("batch", str(training.batch), _with_remark(made, "batch", "samples per step")),
        Reason(
            "workers",
            "chosen at training" if training.workers is None else str(training.workers),
            "processes that make samples: none on a CPU; on a GPU, as many as the computer's cores allow",
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
    if made.choices.spacing:
        return f"set by you ({median}: {product(round(mm, 4) for mm in made.found.median)} mm)"
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
    return ", ".join(words.get(step["step"], step["step"]).format(**step) for step in steps) or "unchanged"


def _why_intensity(steps: Sequence[dict[str, Any]]) -> str:
    if not steps:
        return "nnU-Net calls the channel noNorm, so its values are not normalized"
    if steps[0]["step"] != "clip":
        return "measured in each case"
    return "CT: percentiles, mean and standard deviation of the values inside labels, over the data set"


def _flips(made: Planned) -> Reason:
    axes = made.plan.augmentation.flip_axes
    if axes:
        return Reason("flips", ", ".join(axes), "left to right, which keeps the anatomy plausible")
    why = "segment names refer to a side; to flip, list the pairs in augmentation.swapped_segments"
    return Reason("flips", "none", why)


def _why_window(made: Planned) -> str:
    size = product(made.found.size)
    if made.fit.window != made.wanted:
        why = f"the part of {product(made.wanted)} that fits in memory"
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
        yield Reason("residual axis", arguments.get("residual_axis", "S"), across)
    yield from (Reason(*reason) for reason in made.arguments.reasons)


def _why_folds(data_set: DataSet) -> str:
    why = "each run holds one out"
    if data_set.held_out:
        return f"{why}; {data_set.folds_from} assigns the cases as long as the plan has as many folds"
    if len(data_set.patients) < len(data_set.cases):
        why += f"; the time points of each of the {len(data_set.patients)} patients stay together"
    return f"{why}; {data_set.unused_splits}" if data_set.unused_splits else why
