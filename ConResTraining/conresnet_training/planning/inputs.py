"""The inputs of a planned model: what each channel is, the words that recognize it, and what is done to its values."""

import re
from typing import Any

import numpy as np

from conresnet.importing.brats import CHANNELS as BRATS_CHANNELS
from conresnet_training.data import DataSet
from conresnet_training.data.survey import labelled_values

PERCENTILES = (0.5, 99.5)


def plan_inputs(data_set: DataSet) -> list[dict[str, Any]]:
    """``inputs`` of a ``model.json``, one per channel.

    Raises:
        UserError: any of reading a case, for the values of CT.
    """
    steps = [_intensity(data_set, channel) for channel in range(len(data_set.channels))]
    return [_input(*item) for item in zip(data_set.channels, steps, strict=True)]


def is_ct(channel: str) -> bool:
    """Whether a channel's name says that it is a CT, and not a PET that was acquired with one."""
    words = words_of(channel)
    return "ct" in words and not {"pet", "pt", "spect"} & set(words)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", name.lower())


def _intensity(data_set: DataSet, channel: int) -> list[dict[str, Any]]:
    """CT has the same unit everywhere, so one scale fits all cases; other images are measured one by one.

    ConResNet's paper clips CT to [-100, 240] HU and maps that to [0, 1]; here the range follows from the data. To use
    the paper's, set the steps ``{step: clip, low: -100, high: 240}, {step: rescale, from: [-100, 240], to: [0, 1]}``.

    A channel that nnU-Net calls noNorm keeps its values.
    """
    if words_of(data_set.channels[channel])[:1] == ["nonorm"]:
        return []
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
    """Four significant digits, whatever the unit."""
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
    """The brain MR sequence that a name stands for: T1, T1w, T1_ce, T2-FLAIR, ..."""
    word = "".join(words_of(name)).removesuffix("w")
    if "flair" in word:
        word = "flair"
    return next((known for known in BRATS_CHANNELS if word in (known["name"].lower(), *known["keywords"])), None)
