"""A plan made from the data: what the cases are decides spacing, orientation, intensities, window and length."""

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conresnet.brats_description import CHANNELS as BRATS_CHANNELS
from conresnet.brats_description import SEGMENTS as BRATS_SEGMENTS
from conresnet.errors import UserError
from conresnet_training.data_sets import DataSet
from conresnet_training.memory_needs import STEP, Budget, Fit, fit_memory
from conresnet_training.plan import Plan, Training
from conresnet_training.survey import Survey, labelled_percentiles, survey

COLORS = ([111, 184, 210], [216, 101, 79], [128, 174, 128], [241, 214, 145], [177, 122, 101], [192, 104, 88])
# The paper's window; a larger one gains little and costs much.
LARGEST_WINDOW = (80, 160, 160)
PERCENTILES = (0.5, 99.5)
# The shipped hippocampus model saw each case that it was trained on 56 times; this is somewhat more. The least is for
# few cases, which augmentation makes more of; the most bounds the time.
STEPS_A_CASE, FEWEST_STEPS, MOST_STEPS = 30, 2000, 30_000
# A run validates so often, unless that were more often than by default.
VALIDATIONS = 24
MOST_LISTED = 6
REGION_NAMES = {"ET": "Enhancing tumor", "TC": "Tumor core", "WT": "Whole tumor"}


@dataclass(frozen=True)
class Reason:
    """What was planned, and why, for people."""

    what: str
    value: str
    why: str


def make_plan(data_set: DataSet, folder: Path, budget: Budget | None = None, residual_axis: str = "S") -> Plan:
    """Plan a run from what the data are.

    Args:
        folder: where the data set lies.
        budget: memory to train in. Defaults to what is free on this computer.
        residual_axis: "S", "H" or "W", across which the network takes residuals.

    Raises:
        UserError: ``too-few-cases``, ``case-incomplete``, ``memory-too-small``, or any of reading the data.
    """
    return plan_with_reasons(data_set, folder, budget, residual_axis)[0]


def plan_with_reasons(
    data_set: DataSet, folder: Path, budget: Budget | None = None, residual_axis: str = "S"
) -> tuple[Plan, list[Reason]]:
    """``make_plan``, and why the plan is as it is."""
    if len(data_set.cases) < 2:
        raise UserError(
            "too-few-cases",
            f"{folder} has one case, which cannot be both trained on and held out; add further cases.",
            path=str(folder),
        )
    budget = budget or Budget.here()
    found = survey(data_set)
    segments, order, targets = _segments(data_set)
    fit = fit_memory(budget, len(data_set.channels), len(segments), planned_window(found))
    intensity = [_intensity(data_set, channel) for channel in range(len(data_set.channels))]
    steps = min(max(STEPS_A_CASE * len(data_set.cases), FEWEST_STEPS), MOST_STEPS)
    training = Training(
        steps=steps,
        batch=fit.batch,
        folds=min(Training().folds, len(data_set.cases)),
        steps_between_checkpoints=max(Training().steps_between_checkpoints, steps // VALIDATIONS),
    )
    model = _model(data_set, found, fit, residual_axis)
    model["inputs"] = [_input(name, steps) for name, steps in zip(data_set.channels, intensity, strict=True)]
    model["output"] |= {"segments": segments, "paint_order": order}
    plan = Plan(data=folder.resolve(), targets=targets, training=training, model=model)
    return plan, _reasons(data_set, plan, found, fit, budget)


def planned_window(found: Survey) -> tuple[int, int, int]:
    """Voxels (S, H, W) that hold the median case, in multiples of 8, and no more than the paper's."""
    sides = (max(-(-int(size) // STEP), 1) * STEP for size in found.size)
    return tuple(min(side, most) for side, most in zip(sides, LARGEST_WINDOW, strict=True))


def _segments(data_set: DataSet) -> tuple[list[dict[str, Any]], list[str], dict[str, list[int]]]:
    """(segments, the order they are painted in, the label values of each)."""
    if not data_set.regions:
        values = sorted(data_set.labels)
        segments = [
            {"name": data_set.labels[value], "label": value, "color": segment_color(place)}
            for place, value in enumerate(values)
        ]
        return (
            segments,
            [segment["name"] for segment in segments],
            {data_set.labels[value]: [value] for value in values},
        )
    known = {segment["name"]: segment for segment in BRATS_SEGMENTS}
    segments = []
    for place, name in enumerate(data_set.regions):
        segment = known.get(REGION_NAMES.get(name), {"name": name, "color": segment_color(place)})
        segments.append({**segment, "label": data_set.region_labels[name]})
    names = {name: segment["name"] for name, segment in zip(data_set.regions, segments, strict=True)}
    targets = {names[name]: list(values) for name, values in data_set.regions.items()}
    return segments, [names[name] for name in data_set.region_labels], targets


def _intensity(data_set: DataSet, channel: int) -> list[dict[str, Any]]:
    """CT counts in the same units everywhere, so one range serves all cases; others are measured each by itself."""
    low, high = PERCENTILES
    clip: dict[str, Any] = {"step": "clip_percentiles", "low": low, "high": high}
    if is_ct(data_set.channels[channel]):
        low, high = (round(value, 1) for value in labelled_percentiles(data_set, channel, PERCENTILES))
        if high > low:
            clip = {"step": "clip", "low": low, "high": high}
    return [clip, {"step": "z_score", "over": "foreground", "outside": "keep"}]


def is_ct(channel: str) -> bool:
    """Whether a channel's name says that it is a CT, and not a PET that was taken with one."""
    words = _words(channel)
    return "ct" in words and not {"pet", "pt", "spect"} & set(words)


def _input(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {"name": name, "modality": name, "keywords": [], "exclude_keywords": []}
    if is_ct(name):
        item |= {"modality": "CT", "keywords": ["ct"]}
    elif {"mr", "mri"} & set(_words(name)):
        item |= {"modality": "MR", "keywords": ["mr"]}
    elif known := _known_channel(name):
        words = {key: list(known[key]) for key in ("keywords", "exclude_keywords")}
        item |= {"modality": "MR", **words}
    return {**item, "intensity": steps}


def _known_channel(name: str) -> dict[str, Any] | None:
    """The sequence of brain MR that a name stands for: T1, T1w, T1_ce, T2-FLAIR, ..."""
    word = "".join(_words(name)).removesuffix("w")
    if "flair" in word:
        word = "flair"
    return next((known for known in BRATS_CHANNELS if word in (known["name"].lower(), *known["keywords"])), None)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _model(data_set: DataSet, found: Survey, fit: Fit, residual_axis: str) -> dict[str, Any]:
    """``model.json`` but for the inputs and the segments."""
    kind = "regions" if data_set.regions else "labels"
    count = len(data_set.regions or data_set.labels)
    return {
        "format": "conresnet-model",
        "format_version": 1,
        "name": _plain_name(data_set.name),
        "title": data_set.name,
        "version": "1.0.0",
        "description": "",
        "license": data_set.licence or "not stated",
        "attribution": "",
        "citations": [],
        "training_data": data_set.name,
        "intended_use": "Research only, not for diagnosis.",
        "limitations": "",
        "inputs": [],
        "preparation": {
            "orientation": found.orientation,
            "spacing": [round(mm, 4) for mm in found.spacing],
            "foreground": "not_background",
        },
        "system": {
            "type": "single",
            "networks": [
                {
                    "type": "conresnet",
                    "arguments": {
                        "input_channels": len(data_set.channels),
                        "outputs": count + (kind == "labels"),
                        "residual_outputs": count,
                        "base_width": fit.width,
                        "residual_axis": residual_axis,
                        "residual_mapping": True,
                        "attention_mapping": True,
                        "dropout": 0.1,
                    },
                    "weights": "network.safetensors",
                }
            ],
        },
        "inference": {
            "window": list(fit.window),
            "overlap": 0.5,
            "tiling": "fitted",
            "blending": "gaussian",
            "mirror_axes": [],
        },
        "output": {"kind": kind, "threshold": 0.5},
    }


def _plain_name(name: str) -> str:
    """A name that a model package may have: letters, digits and dashes."""
    return "-".join(_words(name))[:80] or "model"


def segment_color(place: int) -> list[int]:
    """Slicer-like colors for the first segments, then hues far from those before."""
    if place < len(COLORS):
        return list(COLORS[place])
    return [round(255 * part) for part in colorsys.hsv_to_rgb(place * 0.618034 % 1, 0.55, 0.85)]


def _reasons(data_set: DataSet, plan: Plan, found: Survey, fit: Fit, budget: Budget) -> list[Reason]:
    training, output = plan.training, plan.model["output"]
    thick = "; slices are thick, and their plane keeps its resolution" if found.ratio >= 2 else ""
    across = "no axis has thick slices" if found.orientation == "SAR" and not thick else "the first axis crosses slices"
    window = f"the median case ({_product(found.size)}) in multiples of {STEP}"
    if fit.window != (whole := planned_window(found)):
        window = f"what fits the memory of {_product(whole)}"
    elif fit.window == LARGEST_WINDOW:
        window = f"the paper's, since the median case ({_product(found.size)}) is larger"
    kind = "labels overlap as regions" if data_set.regions else "each voxel has one label"
    axis = plan.model["system"]["networks"][0]["arguments"]["residual_axis"]
    least = " (the least)" if training.steps == FEWEST_STEPS else " (the most)" if training.steps == MOST_STEPS else ""
    return [
        Reason("spacing", f"{_product(found.spacing)} mm", f"the median of {len(data_set.cases)} cases{thick}"),
        Reason("orientation", found.orientation, across),
        *(
            Reason(f"intensity {item['name']}", _steps_in_words(item["intensity"]), _why_intensity(item["intensity"]))
            for item in plan.model["inputs"]
        ),
        Reason("window", f"{_product(fit.window)} voxels", window),
        Reason("batch", str(fit.batch), "samples a step"),
        Reason("base width", str(fit.width), f"a step takes about {fit.bytes / 2**30:.1f} GB; {budget.source}"),
        Reason(output["kind"], _listed([segment["name"] for segment in output["segments"]]), kind),
        Reason("residual axis", axis, f"residuals between {plan.description.residual_axis} slices"),
        Reason("steps", str(training.steps), f"{STEPS_A_CASE} for each case{least}"),
        Reason("folds", str(training.folds), "of which a run holds one out"),
    ]


def _steps_in_words(steps: Sequence[dict[str, Any]]) -> str:
    clip = steps[0]
    if clip["step"] == "clip":
        return f"clip to {clip['low']:g} ... {clip['high']:g}, z-score"
    return f"clip to percentiles {clip['low']:g} ... {clip['high']:g}, z-score"


def _why_intensity(steps: Sequence[dict[str, Any]]) -> str:
    if steps[0]["step"] == "clip":
        return "CT: the values inside of labels, over the data set"
    return "of each case by itself"


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_LISTED])
    return shown if len(names) <= MOST_LISTED else f"{shown} and {len(names) - MOST_LISTED} more"
