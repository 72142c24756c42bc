"""The inputs of a planned model: what each channel is, the words that recognize it, and what is done to its values.

What a system asks of the images: how a plan's inputs, spacing and window change for it.

Each function changes the ``model`` of a plan in place.
"""

import re
from typing import Any

import numpy as np

from conresnet.errors import UserError
from conresnet.importing.brats import CHANNELS as BRATS_CHANNELS
from conresnet_training.data import DataSet
from conresnet_training.data.survey import labelled_values

PERCENTILES = (0.5, 99.5)


def plan_inputs(data_set: DataSet) -> list[dict[str, Any]]:
    """``inputs`` of a ``model.json``, one a channel.

    Raises:
        UserError: any of reading a case, for the values of CT.
    """
    steps = [_intensity(data_set, channel) for channel in range(len(data_set.channels))]
    return [_input(*item) for item in zip(data_set.channels, steps, strict=True)]


def is_ct(channel: str) -> bool:
    """Whether a channel's name says that it is a CT, and not a PET that was taken with one."""
    words = words_of(channel)
    return "ct" in words and not {"pet", "pt", "spect"} & set(words)


def words_of(name: str) -> list[str]:
    """The words of a name, in small letters: of letters and digits alone."""
    return re.findall(r"[a-z0-9]+", name.lower())


def _intensity(data_set: DataSet, channel: int) -> list[dict[str, Any]]:
    """CT counts in the same units everywhere, so one scale serves all cases; others are measured each by itself."""
    if is_ct(data_set.channels[channel]):
        values = labelled_values(data_set, channel)
        low, high = (_shortened(value) for value in np.percentile(values, PERCENTILES))
        if high > low:
            clipped = np.clip(values, low, high)
            mean, deviation = float(clipped.mean()), float(clipped.std())
            scale = [_shortened(mean - deviation), _shortened(mean + deviation)]
            return [{"step": "clip", "low": low, "high": high}, {"step": "rescale", "from": scale, "to": [-1, 1]}]
    low, high = PERCENTILES
    clip = {"step": "clip_percentiles", "low": low, "high": high}
    return [clip, {"step": "z_score", "over": "foreground", "outside": "keep"}]


def _shortened(value: float) -> float:
    """Four digits of it, whatever its unit."""
    return float(f"{value:.4g}")


def _input(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {"name": name, "modality": name, "keywords": [], "exclude_keywords": []}
    if is_ct(name):
        item |= {"modality": "CT", "keywords": ["ct"]}
    elif {"mr", "mri"} & set(words_of(name)):
        item |= {"modality": "MR", "keywords": ["mr"]}
    elif known := _known_channel(name):
        words = {key: list(known[key]) for key in ("keywords", "exclude_keywords")}
        item |= {"modality": "MR", **words}
    return {**item, "intensity": steps}


def _known_channel(name: str) -> dict[str, Any] | None:
    """The sequence of brain MR that a name stands for: T1, T1w, T1_ce, T2-FLAIR, ..."""
    word = "".join(words_of(name)).removesuffix("w")
    if "flair" in word:
        word = "flair"
    return next((known for known in BRATS_CHANNELS if word in (known["name"].lower(), *known["keywords"])), None)


# The ResDSN paper's range for abdominal CT, in HU (4.1).
ABDOMEN = (-100, 240)
# Windows of a pyramid of two levels: the first level sees half as many voxels a side, in multiples of 8.
PYRAMID_STEP, PYRAMID_SMALLEST = 16, 32

_SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "keep"}


def as_planned(model: dict[str, Any]) -> None:
    """Take the images as the data alone decide."""


def slices_and_copies(model: dict[str, Any]) -> None:
    """Each slice normalized by itself, and beside each image a copy with its contrast evened out (VoxResNet, 3.1).

    The copy: the Gaussian-smoothed image subtracted, then contrast-limited adaptive histogram equalization. How wide
    the Gaussian is and how much contrast is allowed, the paper leaves open: chosen.
    """
    for item in model["inputs"]:
        clips = [step for step in item["intensity"] if step["step"] not in ("z_score", "rescale")]
        item["intensity"] = [*clips, dict(_SLICES)]
        smoothed = {"step": "subtract_gaussian", "sigma_mm": 5.0}
        equalized = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}
        item["copies"] = [[smoothed, equalized, dict(_SLICES)]]


def abdomen_of_ct(model: dict[str, Any]) -> None:
    """CT is clipped to the range of the abdomen, then its z-score taken (ResDSN, 4.1); MR is left as it is.

    So is CT whose planned range, that of the values inside of labels, does not lie in the paper's: bone, lung or a
    vessel with contrast medium would be clipped away.
    """
    low, high = ABDOMEN
    for item in model["inputs"]:
        planned = next((step for step in item["intensity"] if step["step"] == "clip"), None)
        if item["modality"] == "CT" and planned and low <= planned["low"] and planned["high"] <= high:
            clip = {"step": "clip", "low": low, "high": high}
            item["intensity"] = [clip, {"step": "z_score", "over": "all", "outside": "keep"}]


def half_resolution(model: dict[str, Any]) -> None:
    """Voxels of twice the size, in a window of as many of them: a pyramid's last level works at 1/2 (2.2, S = 2).

    In training that level sees the half of the window in its middle, which spans what the whole window of another
    system spans; so both are trained on as much of a case, and the first level sees twice as far.

    Raises:
        UserError: ``spacing-unknown`` where images keep their own.
    """
    preparation, inference = model["preparation"], model["inference"]
    if preparation["spacing"] is None:
        sentence = "The plan leaves every image its own spacing, of which there is no double; plan with a spacing."
        raise UserError("spacing-unknown", sentence)
    preparation["spacing"] = [round(2 * mm, 4) for mm in preparation["spacing"]]
    sides = (-(-side // PYRAMID_STEP) * PYRAMID_STEP for side in inference["window"])
    inference["window"] = [max(side, PYRAMID_SMALLEST) for side in sides]
