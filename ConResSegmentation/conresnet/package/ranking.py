"""The ranking of a model's review list, stored in the package's ``review.json``; see ``conresnet.review``.

``python -m conresnet_training export`` fits the regressions on held-out cases. Needs NumPy, unlike the rest of the
package's description.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from conresnet.messages import MESSAGES
from conresnet.package.maps import provided_maps
from conresnet.package.reader import ModelPackage
from conresnet.package.schema import Place, field, load, load_json

RANKING_FILE = "review.json"
FORMAT, FORMAT_VERSION = "conresnet-review", 1
# The features that ``conresnet.review.slice_features`` measures.
FEATURES = ("log_area", "log_entropy", "log_change", "overlap", "log_disagreement")
_LARGEST_RANKING = 2**18
_MOST_MM2 = 1e6


@dataclass(frozen=True)
class Regressions:
    """Regressions that predict the errors of a slice from its features.

    The wrong area in mm2 is ``exp(wrong_intercept + wrong_weights . features)``. The Dice of the slice is
    ``1 / (1 + exp(-(dice_intercept + dice_weights . features)))``.
    """

    means: tuple[float, ...] = field("mean of each feature where it was fitted; says which features stand out")
    wrong_intercept: float = field("of the wrong area in mm2", low=-1e6, high=1e6)
    wrong_weights: tuple[float, ...] = field("one per feature", low=-1e6, high=1e6)
    dice_intercept: float = field("of the slice's Dice", low=-1e6, high=1e6)
    dice_weights: tuple[float, ...] = field("one per feature", low=-1e6, high=1e6)

    def wrong_mm2(self, features: np.ndarray) -> np.ndarray:
        """Expected wrong area of each slice; ``features`` is (n, features)."""
        return np.exp(np.minimum(self.wrong_intercept + features @ self.wrong_weights, np.log(_MOST_MM2)))

    def dice(self, features: np.ndarray) -> np.ndarray:
        """Expected Dice of each slice; ``features`` is (n, features)."""
        return 1 / (1 + np.exp(-np.clip(self.dice_intercept + features @ self.dice_weights, -50, 50)))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The contents of a package's ``review.json``."""

    format: str = field("always `conresnet-review`", choices=(FORMAT,))
    format_version: int = field("version of this format", low=1, high=FORMAT_VERSION)
    what: str = field("how it was fitted and measured")
    features: tuple[str, ...] = field("features of a slice, in order", choices=FEATURES, least=1, unique=True)
    whole: Regressions = field("for all segments of a slice together")
    segments: Regressions = field("for each segment of a slice")
    spot_rate: float = field("wrong voxels per voxel of an uncertain spot", low=0, high=1)
    note: str = field("a sentence for users about how good the ranking is", default="")
    figures: dict[str, Any] = field("how good it is, cross-validated over the cases", default=None)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Lists whose length does not match the features."""
        for name in ("whole", "segments"):
            for key in ("means", "wrong_weights", "dice_weights"):
                if len(getattr(getattr(self, name), key)) != len(self.features):
                    yield f"{name}.{key}", f"must have {len(self.features)} entries, one per feature"


_FALLBACK = Regressions(
    means=(4.4, 3.3),
    wrong_intercept=-0.2,
    wrong_weights=(0.0, 0.95),
    dice_intercept=0.1,
    dice_weights=(1.3, -1.3),
)
FALLBACK = Ranking(
    format=FORMAT,
    format_version=FORMAT_VERSION,
    what="Fixed weights, rounded from those of the hippocampus model.",
    features=("log_area", "log_entropy"),
    whole=_FALLBACK,
    segments=_FALLBACK,
    spot_rate=0.45,
    note=MESSAGES["review-not-fitted"],
    figures=None,
)


def read_ranking(package: ModelPackage) -> Ranking:
    """The ranking of a package, or `FALLBACK` if it has none.

    Raises:
        UserError: ``package-json`` or ``package-description`` if ``review.json`` is invalid, or as
            ``ModelPackage.read_file``.
    """
    entry = package.description.files.get(RANKING_FILE)
    if entry is None:
        return FALLBACK
    place = Place(str(package.path / RANKING_FILE))
    if entry.bytes > _LARGEST_RANKING:
        place.refuse(f"has {entry.bytes} bytes")
    ranking = load(Ranking, load_json(package.read_file(RANKING_FILE), place.source), place, FORMAT_VERSION)
    if "log_disagreement" in ranking.features and "residual_difference" not in provided_maps(package.description):
        place.inside("features").refuse("needs a residual, which this model does not predict")
    return ranking
