"""Survey of a data set for planning: sizes and spacings from headers, modality and scaling of each channel, and whether
the names of segments refer to a side of the body, which flips would exchange."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conresnet.images import Grid, reordering
from conresnet.images.files import read_channels, read_grid
from conresnet.images.geometry import ModelSpace
from conresnet.importing import CHANNELS as BRATS_CHANNELS
from conresnet_training.data import Case, DataSet
from conresnet_training.data.label_maps import on_image_grid, read_label

# The first axis is across slices: superior, anterior, right unless the data suggest another order.
USUAL_ORIENTATION = "SAR"
_ACROSS = {"S": USUAL_ORIENTATION, "A": "ASR", "R": "RSA"}
# Slices count as thick if the ratio of the largest to the smallest spacing is at least this.
THICK = 2.0
# Number of cases sampled, spread over the set, and number of values sampled from each.
MOST_CASES, MOST_VALUES = 100, 10_000


@dataclass(frozen=True)
class Survey:
    """Medians over the cases, in the order of ``orientation``.

    Args:
        orientation: three letters in array order (S, H, W).
        spacing: mm, the median or what was chosen instead.
        size: voxels at that spacing.
        median: the median spacing.
        ratio: largest divided by smallest spacing.
        largest: mm along each axis that the largest cases cover, the only ones that are not medians.
    """

    orientation: str
    spacing: tuple[float, float, float]
    size: tuple[float, float, float]
    ratio: float
    largest: tuple[float, float, float]
    median: tuple[float, float, float]

    def at(self, spacing: Sequence[float | None]) -> "Survey":
        """The same cases at another spacing; None keeps an axis unchanged."""
        chosen = tuple(wanted or mm for wanted, mm in zip(spacing, self.spacing, strict=True))
        sides = zip(self.size, self.spacing, chosen, strict=True)
        return replace(self, spacing=chosen, size=tuple(size * mm / wanted for size, mm, wanted in sides))

    @property
    def is_thick(self) -> bool:
        return self.ratio >= THICK

    @property
    def longest_side(self) -> float:
        """Longest side of the median case in mm."""
        return max(size * mm for size, mm in zip(self.size, self.spacing, strict=True))


def survey(data_set: DataSet, orientation: str | None = None) -> Survey:
    """Read the header of every case's first image.

    The median spacing keeps the in-plane resolution of thick slices. The axis across thick slices becomes the model's
    first if most cases have the same.

    Args:
        orientation: of the result; by default the usual one, or the one that suits thick slices.

    Raises:
        UserError: ``case-file-missing``, or any of reading an image.
    """
    for case in data_set.cases:
        case.check_files()
    grids = [read_grid((*case.images, case.label)[0]) for case in data_set.cases]
    orientation = orientation or _orientation(grids)
    placed = [reordering(grid, orientation).grid(grid) for grid in grids]
    spacings = np.array([grid.spacing[::-1] for grid in placed])
    spacing = np.median(spacings, axis=0)
    covered = [grid.shape for grid in placed] * spacings
    size, ratio = np.median(covered / spacing, axis=0), float(spacing.max() / spacing.min())
    median, largest = tuple(spacing.tolist()), tuple(covered.max(axis=0).tolist())
    return Survey(orientation, median, tuple(size.tolist()), ratio, largest, median)


def labeled_values(data_set: DataSet, channel: int) -> np.ndarray:
    """A channel's values inside the labels of many cases, float64, each case with equal weight.

    If no case has a label, values of the whole images.

    Raises:
        UserError: any of reading a case, and ``label-grid-differs``.
    """
    chosen = data_set.spread(MOST_CASES)
    found = [_values(data_set.cases[i], data_set, channel, seed=i) for i in chosen]
    # An image without labels is mostly air, which would dominate the range.
    return np.concatenate([inside for inside, _ in found if inside.size] or [whole for _, whole in found])


def _values(case: Case, data_set: DataSet, channel: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some values of a channel inside the labels, and some of the whole channel."""
    if len(case.images) == 1:
        image = read_channels(list(case.images), data_set.channels)[channel]
    else:
        (image,) = read_channels([case.images[channel]], [data_set.channels[channel]])
    label = read_label(case.label)
    # Other channels may have grids of their own.
    if channel == 0:
        label = on_image_grid(label, image)
    space = ModelSpace(label.grid, USUAL_ORIENTATION)
    values = space.to_model(image)
    inside = values[space.to_model(label) > 0]

    def some(of: np.ndarray) -> np.ndarray:
        return np.random.default_rng(seed).choice(of, min(MOST_VALUES, of.size)).astype(np.float64)

    return some(inside), some(values.ravel())


def _orientation(grids: list[Grid]) -> str:
    thick = []
    for grid in grids:
        spacing = reordering(grid, USUAL_ORIENTATION).grid(grid).spacing[::-1]
        if spacing.max() / spacing.min() >= THICK:
            thick.append(USUAL_ORIENTATION[int(spacing.argmax())])
    if not thick:
        return USUAL_ORIENTATION
    across = max(_ACROSS, key=thick.count)
    return _ACROSS[across] if thick.count(across) > len(grids) / 2 else USUAL_ORIENTATION


PERCENTILES = (0.5, 99.5)


def plan_inputs(data_set: DataSet) -> list[dict[str, Any]]:
    """``inputs`` of a ``model.json``, one per channel. Raises UserError as reading a case, for CT."""
    steps = [_intensity(data_set, channel) for channel in range(len(data_set.channels))]
    return [_input(*item) for item in zip(data_set.channels, steps, strict=True)]


def is_ct(channel: str) -> bool:
    """Whether a channel's name means CT, but not the PET of a PET/CT."""
    words = words_of(channel)
    return "ct" in words and not {"pet", "pt", "spect"} & set(words)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", name.lower())


def _intensity(data_set: DataSet, channel: int) -> list[dict[str, Any]]:
    """CT has the same unit everywhere, so one scale fits all cases; other images are measured one by one.

    ConResNet's paper clips CT to [-100, 240] HU and maps that to [0, 1]; here the range follows from the data. To use
    the paper's, set the steps ``{step: clip, low: -100, high: 240}, {step: rescale, from: [-100, 240], to: [0, 1]}``.

    A channel that nnU-Net calls noNorm keeps its values. The scale of CT follows from all cases, including those that a
    fold holds out later.
    """
    if words_of(data_set.channels[channel])[:1] == ["nonorm"]:
        return []
    # Synthesized images have no unit.
    if is_ct(data_set.channels[channel]) and not data_set.tissues:
        values = labeled_values(data_set, channel)
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
    """Four significant digits, in any unit."""
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
    divided = [_parted(name) for name in names]
    if any(SIDES & set(words) for words in divided):
        return True
    known = set(divided)
    return any(other in known for words in divided for other in _exchanged(words))


def side_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names that become one another when left and right are exchanged, the left one of each pair first."""
    by_words = {_parted(name): name for name in names}
    pairs = []
    for words, name in by_words.items():
        other = next((by_words[other] for other in _exchanged(words) if other in by_words), None)
        if other is not None and other not in {one for pair in pairs for one in pair}:
            is_left = any(word.startswith("l") for word in words if word not in _parted(other))
            pairs.append((name, other) if is_left else (other, name))
    return pairs


def _parted(name: str) -> tuple[str, ...]:
    """The words of a segment's name in lower case.

    CamelCase is split before a capital that follows a lower-case letter or begins a word.
    """
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
