"""Fits a model's review list to held-out cases, and measures how good it is by cross-validation over the cases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from conresnet.images import Grid, Volume
from conresnet.images.inputs import WHOLE_IMAGE
from conresnet.inference.labels import segment_masks
from conresnet.inference.segmentation import LoadedModel, SegmentResult
from conresnet.messages import sentence
from conresnet.package.outputs import map_components, provided_maps
from conresnet.package.schema import dump
from conresnet.request import SegmentOptions
from conresnet.results.review import (
    BAD_DICE,
    FALLBACK,
    FORMAT,
    FORMAT_VERSION,
    Ranking,
    Regressions,
    Slices,
    find_spots,
    slice_features,
)

# The sets of features that are tried, smallest first; a larger set must be better by GAIN.
SETS = (
    ("log_area", "log_entropy"),
    ("log_area", "log_entropy", "log_change", "overlap"),
    ("log_area", "log_entropy", "log_change", "overlap", "log_disagreement"),
)
GAIN = 0.005
FOLDS, INNER_FOLDS = 10, 5
# Fewer cases cannot choose among features.
FEWEST_CASES = 5
_RIDGE = 1.0
_MOST_BYTES = 2**31
_STEPS = 50


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice of a segment of a held-out case.

    Args:
        case: its number.
        segment: 0 for all together, else 1 + the segment's index.
        features: see ``conresnet.results.review.slice_features``.
        wrong_mm2: area that is wrong; of all together, where any segment is.
        dice: of the slice; of all together, voxels of the right segment count as overlap.
    """

    case: int
    segment: int
    features: Mapping[str, float]
    wrong_mm2: float
    dice: float


@dataclass
class ReviewSamples:
    """What the slices of held-out cases look like, and what is wrong in each.

    Attributes:
        samples: slices that hold a segment in the result.
        spot_voxels, wrong_spot_voxels: of all uncertain spots.
    """

    cases: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    spot_voxels: int = 0
    wrong_spot_voxels: int = 0

    @staticmethod
    def options(model: LoadedModel, grid: Grid) -> SegmentOptions:
        """What the engine has to be asked for; the residual's disagreement only if it fits into memory on this grid."""
        maps = ("residual_difference",) if "residual_difference" in provided_maps(model.description) else ()
        # In half precision, along with the predicted residual.
        size = 4 * math.prod(grid.shape) * sum(map_components(model.description)[name] for name in maps)
        # A locator would cut the case to what it finds.
        return SegmentOptions(roi=WHOLE_IMAGE, review=True, maps=maps if size <= _MOST_BYTES else ())

    def add(
        self, case: str, model: LoadedModel, result: SegmentResult, values: Sequence[Sequence[int]], label_map: Volume
    ) -> None:
        """Measure a case.

        Args:
            result: made with ``options``.
            values: of each segment in the reference.
            label_map: the reference, on the grid of the result.
        """
        slices, number = Slices.of(result, model.description), len(self.cases)
        references = slices.along(label_map.array)
        # For each label value, whether it is that of a segment.
        belongs = np.array([np.isin(np.arange(256), list(one)) for one in values])
        belongs = np.concatenate([belongs.any(axis=0, keepdims=True), belongs])
        self.cases.append(case)
        for item in slice_features(slices, result.entropy, result.maps.get("residual_difference")):
            ours = slices.mask(item.place, item.segment)
            theirs = belongs[item.segment][references[item.place]]
            wrong = ours != theirs
            if item.segment == 0:
                all_of_ours = np.stack([slices.mask(item.place, segment) for segment in range(len(belongs))])
                wrong = (all_of_ours != belongs[:, references[item.place]]).any(axis=0)
            both = np.count_nonzero(ours) + np.count_nonzero(theirs)
            dice = 2 * np.count_nonzero(ours & theirs & ~wrong) / both
            area = np.count_nonzero(wrong) * slices.pixel_mm2
            self.samples.append(Sample(number, item.segment, item.values, area, dice))
        uncertainty = {**result.maps, **result.hidden}["uncertainty"][0]
        spots, box, _ = find_spots(uncertainty, slices.bits, slices.grid.spacing)
        self.spot_voxels += np.count_nonzero(spots)
        regions = None if result.regions is None else result.regions[(slice(None), *box)]
        found = segment_masks(result.labels.array[box], regions, slices.output)
        truth = belongs[1:, label_map.array[box]]
        self.wrong_spot_voxels += np.count_nonzero((found != truth).any(axis=0) & (spots > 0))

    def fit(self, what: str, segments: Sequence[str], are_held_out: bool = True) -> Ranking | None:
        """The ranking for the package; None where no slice of any case holds a segment.

        Args:
            what: which cases these are, in a sentence.
            are_held_out: whether it is known that the training never saw these cases; if not, the note says so.
        """
        if not self.samples:
            return None
        whole, parts = _Table.of(self.samples, True), _Table.of(self.samples, False)
        features, expected = _chosen(whole), _cross_validated(parts)
        figures = {"cases": len(self.cases), **_figures(whole, _cross_validated(whole)), "segments": {}}
        for index, name in enumerate(segments, start=1):
            chosen = parts.segments == index
            if chosen.any():
                figures["segments"][name] = _figures(parts.part(chosen), expected and expected.of(chosen))
        return Ranking(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            what=what,
            features=features,
            whole=_fit(whole, features),
            segments=_fit(parts, features),
            spot_rate=round(self.wrong_spot_voxels / self.spot_voxels, 4) if self.spot_voxels else FALLBACK.spot_rate,
            note=_note(figures, are_held_out),
            figures=figures,
        )


def describe_ranking(ranking: Ranking) -> str:
    """How good a ranking is, in a sentence or two."""
    figures = ranking.figures
    known = []
    if figures["auroc"] is not None:
        values = {"dice": BAD_DICE, "auroc": figures["auroc"], "area": figures["auroc_area"]}
        known.append(sentence("review-auroc", values))
    if figures["spearman"] is not None:
        known.append(f"Expected and actual wrong voxels have a Spearman correlation of {figures['spearman']:.2f}.")
    measured = " ".join(known) or "too few cases to measure it."
    return f"Review list ({', '.join(ranking.features)}): {measured} {ranking.note}".strip()


def ranking_file(ranking: Ranking) -> bytes:
    """The content of ``review.json``."""
    return (json.dumps(dump(ranking), indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _note(figures: Mapping[str, Any], are_held_out: bool) -> str:
    """What users of the list should know about it; "" for a good one."""
    sentences = []
    kind = "held-out " if are_held_out else ""
    if not are_held_out:
        sentences.append(
            "The ranking was fitted on cases that are not known to be held out of training; if the model learned from "
            "them, it makes fewer errors there than in new cases."
        )
    if figures["cases"] < FEWEST_CASES:
        count = f"1 {kind}case" if figures["cases"] == 1 else f"{figures['cases']} {kind}cases"
        sentences.append(f"The ranking was fitted on only {count}, so expected numbers are rough.")
    ours, area = (
        (figures["auroc"], figures["auroc_area"])
        if figures["auroc"] is not None
        else (figures["spearman"], figures["spearman_area"])
    )
    if ours is not None and area is not None and ours - area < GAIN:
        sentences.append(
            f"In {kind or 'these '}cases this ranking is no better than one by area alone ({ours:.3f} against "
            f"{area:.3f})."
        )
    return " ".join(sentences)


@dataclass(frozen=True, eq=False)
class _Expected:
    wrong: np.ndarray
    dice: np.ndarray
    dice_by_area: np.ndarray

    def of(self, chosen: np.ndarray) -> _Expected:
        return _Expected(self.wrong[chosen], self.dice[chosen], self.dice_by_area[chosen])


@dataclass(frozen=True, eq=False)
class _Table:
    """Samples as arrays."""

    cases: np.ndarray
    segments: np.ndarray
    features: Mapping[str, np.ndarray]
    wrong: np.ndarray
    dice: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], whole: bool) -> _Table:
        """Those of all segments together, or those of each by itself."""
        chosen = [item for item in samples if (item.segment == 0) == whole]
        # The disagreement of the residual may be unknown in a large case.
        names = [name for name in chosen[0].features if all(name in item.features for item in chosen)]
        return cls(
            np.array([item.case for item in chosen], int),
            np.array([item.segment for item in chosen], int),
            {name: np.array([item.features[name] for item in chosen]) for name in names},
            np.array([item.wrong_mm2 for item in chosen]),
            np.array([item.dice for item in chosen]),
        )

    def matrix(self, features: Sequence[str]) -> np.ndarray:
        return np.stack([self.features[name] for name in features], axis=1)

    def part(self, chosen: np.ndarray) -> _Table:
        features = {name: values[chosen] for name, values in self.features.items()}
        return _Table(self.cases[chosen], self.segments[chosen], features, self.wrong[chosen], self.dice[chosen])

    def folds(self, count: int) -> list[np.ndarray]:
        """For each fold of the cases which samples it holds out."""
        names = np.unique(self.cases)
        return [np.isin(self.cases, names[first::count]) for first in range(min(count, len(names)))]


def _fit(table: _Table, features: Sequence[str]) -> Regressions:
    matrix = table.matrix(features)
    wrong, dice = _regression(matrix, table.wrong, np.exp), _regression(matrix, table.dice, expit)
    means = tuple(round(float(x), 6) for x in matrix.mean(axis=0))
    return Regressions(means, wrong[0], wrong[1], dice[0], dice[1])


def _regression(
    matrix: np.ndarray, target: np.ndarray, mean_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, tuple[float, ...]]:
    """Intercept and weights of a generalized linear model by Newton's method, with a ridge on the weights.

    Args:
        mean_of: ``np.exp`` for a Poisson model, ``expit`` for a fractional logit.
    """
    center, spread = matrix.mean(axis=0), matrix.std(axis=0) + 1e-6
    columns = np.column_stack([np.ones(len(matrix)), (matrix - center) / spread])
    ridge = np.diag([0.0] + [_RIDGE] * matrix.shape[1])
    weights = np.zeros(columns.shape[1])
    for _ in range(_STEPS):
        mean = mean_of(np.clip(columns @ weights, -20, 20))
        variance = mean if mean_of is np.exp else mean * (1 - mean)
        curvature = columns.T @ (columns * variance[:, None]) + ridge
        step = np.linalg.lstsq(curvature, columns.T @ (target - mean) - ridge @ weights, rcond=None)[0]
        # Short steps: where all slices are right or all wrong, the intercept has no end.
        weights += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    slopes = weights[1:] / spread
    return round(float(weights[0] - slopes @ center), 6), tuple(round(float(slope), 6) for slope in slopes)


def _chosen(table: _Table) -> tuple[str, ...]:
    """The features to use: the smallest set that no larger one beats by GAIN, cross-validated over cases."""
    best, highest = SETS[0], -np.inf
    if len(np.unique(table.cases)) < FEWEST_CASES:
        return best
    for features in SETS:
        if not set(features) <= set(table.features):
            continue
        expected = _predicted(table, INNER_FOLDS, lambda part, features=features: features)
        scores = [_auroc(-expected.dice, table), _spearman(expected.wrong, table)]
        known = [score for score in scores if score is not None]
        score = np.mean(known) if known else -np.inf
        if score > highest + (GAIN if features != SETS[0] else 0):
            best, highest = features, score
    return best


def _cross_validated(table: _Table) -> _Expected | None:
    """The expected errors of each slice, from regressions whose features were chosen and fitted on other cases."""
    return _predicted(table, FOLDS, _chosen) if len(np.unique(table.cases)) > 1 else None


def _predicted(table: _Table, folds: int, choose: Callable[[_Table], Sequence[str]]) -> _Expected:
    wrong, dice, by_area = (np.zeros(len(table.dice)) for _ in range(3))
    for held_out in table.folds(folds):
        others, part = table.part(~held_out), table.part(held_out)
        features = choose(others)
        fitted, by_area_alone = _fit(others, features), _fit(others, SETS[0][:1])
        wrong[held_out] = fitted.wrong_mm2(part.matrix(features))
        dice[held_out] = fitted.dice(part.matrix(features))
        by_area[held_out] = by_area_alone.dice(part.matrix(SETS[0][:1]))
    return _Expected(wrong, dice, by_area)


def _figures(table: _Table, expected: _Expected | None) -> dict[str, Any]:
    """How well slices were ordered, next to the order by area, the smallest or the largest first."""
    area = table.features["log_area"]
    tenth = max(1, len(area) // 10)
    total = table.wrong.sum()

    def share(score: np.ndarray) -> float | None:
        return round(float(table.wrong[np.argsort(-score, kind="stable")[:tenth]].sum() / total), 4) if total else None

    return {
        "slices": len(area),
        "bad_share": round(float(np.mean(table.dice < BAD_DICE)), 4),
        "auroc": None if expected is None else _auroc(-expected.dice, table),
        "auroc_area": _auroc(-area, table),
        "auroc_area_fitted": None if expected is None else _auroc(-expected.dice_by_area, table),
        "spearman": None if expected is None else _spearman(expected.wrong, table),
        "spearman_area": _spearman(area, table),
        "wrong_in_top_tenth": None if expected is None else share(expected.wrong),
        "wrong_in_top_tenth_at_best": share(table.wrong),
    }


def _auroc(score: np.ndarray, table: _Table) -> float | None:
    """How well a high score finds slices with a Dice below BAD_DICE; None without both kinds of slices."""
    bad = table.dice < BAD_DICE
    if bad.all() or not bad.any():
        return None
    pairs = np.count_nonzero(bad) * np.count_nonzero(~bad)
    # Only the statistic is used. By default, scipy computes an exact p-value of few samples, which takes many seconds.
    ranks = stats.mannwhitneyu(score[bad], score[~bad], method="asymptotic")
    return round(float(ranks.statistic / pairs), 4)


def _spearman(score: np.ndarray, table: _Table) -> float | None:
    if np.ptp(score) == 0 or np.ptp(table.wrong) == 0:
        return None
    return round(float(stats.spearmanr(score, table.wrong).statistic), 4)
