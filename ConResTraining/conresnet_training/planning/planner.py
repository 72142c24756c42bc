"""A plan made from the data: the cases decide spacing, orientation, intensities, window and length.

Also whether the names of segments tell a side of the body, which flips would exchange.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.importing import SEGMENTS as BRATS_SEGMENTS
from conresnet.inference.windows import MULTIPLE
from conresnet.networks.blocks import GROUPS
from conresnet.package.description import AXES, FORMAT, FORMAT_VERSION
from conresnet_training.data import DataSet
from conresnet_training.data.augmentation import Augmentation
from conresnet_training.data.label_maps import read_label
from conresnet_training.data.synthesis import Synthesis
from conresnet_training.planning.memory import BATCH, Budget, fit_memory
from conresnet_training.planning.plan import Plan, Training
from conresnet_training.planning.reasons import Planned, Reason, reasons
from conresnet_training.planning.survey import Survey, plan_inputs, survey, words_of
from conresnet_training.planning.systems import DEFAULT, CatalogEntry, Frame, cataloged, share_outputs
from conresnet_training.reporting import segment_color

# L and R abbreviate sides in many lists of labels. Then German, French, Spanish, Italian, Portuguese and Latin words.
SIDES = {"left", "right", "l", "r", "lh", "rh", "lt", "rt"}
SIDES |= {"links", "linke", "linker", "linkes", "rechts", "rechte", "rechter", "rechtes"}
SIDES |= {"gauche", "droit", "droite", "izquierdo", "izquierda", "derecho", "derecha"}
SIDES |= {"sinistro", "sinistra", "destro", "destra", "esquerdo", "esquerda", "direito", "direita"}
SIDES |= {"sinister", "sinistrum", "dexter", "dextra", "dextrum"}
# Exchanged anywhere in a word to find the other one of a pair; then letters, only where they begin or end a word.
_WITHIN = (("left", "right"), ("左", "右"))
_LETTERS = {"l": "r", "r": "l"}


def speak_of_sides(names: Sequence[str]) -> bool:
    """Whether a name contains a word for a side, or two names differ only by left and right within a word.

    "LeftLung" and "Kidney_L" contain one. "lhippo" names a side where there is also an "rhippo"; "Liver" never does.
    """
    divided = [_words(name) for name in names]
    if any(SIDES & set(words) for words in divided):
        return True
    known = set(divided)
    return any(other in known for words in divided for other in _exchanged(words))


def side_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names that become one another when left and right are exchanged, the left one of each pair first."""
    by_words = {_words(name): name for name in names}
    pairs = []
    for words, name in by_words.items():
        other = next((by_words[other] for other in _exchanged(words) if other in by_words), None)
        if other is not None and other not in {one for pair in pairs for one in pair}:
            is_left = any(word.startswith("l") for word in words if word not in _words(other))
            pairs.append((name, other) if is_left else (other, name))
    return pairs


def _words(name: str) -> tuple[str, ...]:
    """In lower case; CamelCase is split before a capital that follows a lower-case letter or begins a word."""
    parted = re.sub(r"(?<=[a-zß-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zß-ÿ])", " ", name)
    return tuple(re.findall(r"[^\W_]+", parted.lower()))


def _exchanged(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words with the side of one of them exchanged, in every possible way."""
    for place, word in enumerate(words):
        others = [word.replace(one, other, 1) for one, other in _WITHIN if one in word]
        if word[0] in _LETTERS:
            others.append(_LETTERS[word[0]] + word[1:])
        if word[-1] in _LETTERS:
            others.append(word[:-1] + _LETTERS[word[-1]])
        yield from ((*words[:place], other, *words[place + 1 :]) for other in others)


# Steps of two samples show each case 60 times, or 75 times where five folds hold a fifth of them out. The shipped
# hippocampus model saw each of its training cases 169 times, 56 in each of its three stages. The minimum is for few
# cases, which augmentation multiplies; the maximum bounds the time. A GPU makes many more steps in that time, and
# networks keep gaining from them: nnU-Net makes 250,000 for any data.
STEPS_PER_CASE, FEWEST_STEPS, MOST_STEPS = 30, 2000, 30_000
FEWEST_STEPS_OF_GPU, MOST_STEPS_OF_GPU = 50_000, 250_000
# The average covers the last ninth of the steps, a thousand at most, so that it works for short runs too.
WEIGHT_AVERAGE = 0.999
# Cases whose labels are looked at for a system's arguments.
MOST_CASES = 10
# Millimeters; a scan of any part of an adult's body has a longer side.
SHORTEST_SCAN = 100
# How often a run validates, unless that is more often than the default.
VALIDATIONS = 24
REGION_NAMES = {"ET": "Enhancing tumor", "TC": "Tumor core", "WT": "Whole tumor", "RC": "Resection cavity"}


@dataclass(frozen=True)
class Choices:
    """What the user chooses, and the data do not decide.

    Args:
        system: a key of `conresnet_training.planning.systems.SYSTEMS`.
        kind: "labels" or "regions"; None: regions where the data set has them.
        residual_axis: "S", "H" or "W", across which the network takes residuals. Defaults to "S".
        base_width: channels of the networks' first stage, a multiple of 8; None: what fits the memory.
        batch: samples per step; None: 2, or 1 where memory is short.
    """

    system: str = DEFAULT
    kind: str | None = None
    residual_axis: str | None = None
    base_width: int | None = None
    batch: int | None = None


def make_plan(data_set: DataSet, folder: Path, budget: Budget | None = None, choices: Choices | None = None) -> Plan:
    """Plan a run from the data.

    Args:
        folder: where the data set is.
        budget: memory to train in. Defaults to what is free on this computer.
        choices: defaults to ConResNet.

    Raises:
        UserError: ``one-case``, ``one-patient``, ``case-file-missing``, ``memory-too-small``, ``plan-system-unknown``,
            ``no-regions``, ``no-residuals``, ``base-width-invalid``, ``plan-network-wrong``, or any of reading the
            data.
    """
    return plan_with_reasons(data_set, folder, budget, choices)[0]


def plan_with_reasons(
    data_set: DataSet, folder: Path, budget: Budget | None = None, choices: Choices | None = None
) -> tuple[Plan, list[Reason]]:
    """``make_plan``, and the reasons for what was planned."""
    choices = choices or Choices()
    entry = cataloged(choices.system)
    _check(data_set, folder, choices, entry)
    kind = choices.kind or ("regions" if data_set.regions else "labels")
    budget = budget or Budget.here()
    if choices.base_width:
        budget = replace(budget, widths=(choices.base_width,))
    found = survey(data_set)
    segments, order, targets = _regions(data_set) if kind == "regions" else _labels(data_set)
    model = _model(data_set, found, planned_window(found, entry.declaration.window))
    model["output"] = {"kind": kind, "threshold": 0.5, "segments": segments, "paint_order": order}
    remarks = entry.prepare(model)
    frame = Frame.of(model, budget.widths[0], choices.residual_axis or "S", choices.batch or BATCH)
    wanted = tuple(model["inference"]["window"])
    fit = fit_memory(budget, entry.build, frame, wanted)
    model["inference"]["window"] = [side - side % entry.declaration.multiple for side in fit.window]
    network = entry.build(replace(frame, base_width=fit.width, batch=fit.batch))
    arguments = entry.plan_arguments(lambda: labeled_masks(data_set, targets))
    model["system"] = entry.describe(network, arguments.values)
    steps, why_steps = planned_steps(len(data_set.cases), budget.is_gpu, entry.stages(network))
    training = Training(
        steps=steps,
        batch=fit.batch,
        folds=len(data_set.held_out) or min(Training().folds, len(data_set.patients)),
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
    return plan, reasons(Planned(plan, entry, data_set, found, wanted, fit, budget, why_steps, remarks, arguments))


def labeled_masks(data_set: DataSet, targets: Mapping[str, Sequence[int]]) -> Iterator[list[np.ndarray]]:
    """For each segment its masks (S, H, W) in some of the cases.

    Raises:
        UserError: any of reading a label map.
    """
    labels = [read_label(data_set.cases[index].label).array for index in data_set.spread(MOST_CASES)]
    return ([np.isin(label, values) for label in labels] for values in targets.values())


def planned_window(found: Survey, largest: tuple[int, int, int]) -> tuple[int, int, int]:
    """Voxels (S, H, W) that hold the median case, in multiples of 8, and no more than ``largest``."""
    sides = (max(-(-int(size) // MULTIPLE), 1) * MULTIPLE for size in found.size)
    return tuple(min(side, most) for side, most in zip(sides, largest, strict=True))


def planned_flips(orientation: str, names: Sequence[str]) -> list[str]:
    """The left-right axis, unless segments are named for a side."""
    if speak_of_sides(names):
        return []
    return [axis for axis, letter in zip(AXES, orientation, strict=True) if letter in "LR"]


def planned_steps(cases: int, is_gpu: bool, stages: int) -> tuple[int, str]:
    """How many steps each of the stages takes, and the reason."""
    fewest, most = (FEWEST_STEPS_OF_GPU, MOST_STEPS_OF_GPU) if is_gpu else (FEWEST_STEPS, MOST_STEPS)
    steps = min(max(STEPS_PER_CASE * cases, fewest), most)
    bound = {fewest: " (the minimum)", most: " (the maximum)"}.get(steps, "")
    if is_gpu and bound:
        bound = f"{bound[:-1]} on a GPU, whose steps are quick; nnU-Net makes 250,000)"
    return steps, f"{STEPS_PER_CASE} per case{bound}{f', in each of {stages} stages' if stages > 1 else ''}"


def is_of_crops(found: Survey) -> bool:
    """Whether the images are crops around a structure: no side of the median case is as long as a scan's."""
    return found.longest_side < SHORTEST_SCAN


def _check(data_set: DataSet, folder: Path, choices: Choices, entry: CatalogEntry) -> None:
    """Refuse what is known to be wrong before the images are read."""
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
        "inputs": plan_inputs(data_set),
        "preparation": {
            "orientation": found.orientation,
            "spacing": [round(mm, 4) for mm in found.spacing],
            "foreground": "not_background",
            "roi": "cut" if is_of_crops(found) else "limit",
        },
        "inference": {
            "window": list(window),
            "overlap": 0.5,
            "tiling": "fitted",
            "blending": "gaussian",
            "mirror_axes": [],
        },
    }


def _plain_name(name: str) -> str:
    """A name that a model package may have: letters, digits and dashes."""
    return "-".join(words_of(name))[:80] or "model"
