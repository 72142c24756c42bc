"""Maps that are computed from the probabilities and from the finished segmentation. NumPy only.

Uncertainty is the predictive entropy, and disagreement the mutual information between the prediction and the member of
an ensemble that makes it: the entropy of the members' mean minus the mean of their entropies (Lakshminarayanan et al.,
    "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS
2017; Smith and Gal, "Understanding Measures of Uncertainty for Adversarial Example Detection", UAI 2018, eqs 1 to 5).

Both are divided by the largest possible entropy. For overlapping regions, each of which is decided separately, the
largest value counts: a mean would make a voxel look certain even if one of its many regions is undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def entropies(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """The entropy of each decision about a voxel, 0 to 1.

    Args:
        probability: (K, ...), one per segment; where segments exclude each other, the background has what they leave.
        exclusive: whether they exclude each other.

    Returns:
        (1, ...) over the background and all segments, divided by log(K + 1); for regions (K, ...), that of each region
        and its complement, divided by log 2.
    """
    rest = 1 - (probability.sum(axis=0) if exclusive else probability)
    if not exclusive:
        return (_information(probability) + _information(rest)) / np.float32(np.log(2))
    total = _information(rest)
    # One segment after another, so that no second array of all of them is needed.
    for one in probability:
        total += _information(one)
    return (total / np.float32(np.log(len(probability) + 1)))[None]


def uncertainty(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """Predictive entropy of the segments' probabilities (K, ...), as described above: (...) float, 0 to 1."""
    return entropies(probability, exclusive).max(axis=0)


def disagreement(mean: np.ndarray, mean_entropies: np.ndarray, exclusive: bool) -> np.ndarray:
    """Mutual information between the prediction and the member of an ensemble, 0 (all agree) to 1.

    Args:
        mean: (K, ...), the mean of the members' probabilities.
        mean_entropies: the mean of what ``entropies`` gives for each member.
        exclusive: whether the segments exclude each other.

    Returns:
        (...) float.
    """
    # The entropy is concave, so that only rounding makes a difference negative.
    return np.maximum(entropies(mean, exclusive) - mean_entropies, 0).max(axis=0)


def _information(probability: np.ndarray) -> np.ndarray:
    """-p log p, 0 at 0; rounding may have led out of 0 to 1."""
    bounded = np.clip(probability, np.float32(1e-12), 1)
    return -bounded * np.log(bounded)


def result_residual(
    slices: int,
    masks: Callable[[int], np.ndarray],
    step: int,
    inside: Callable[[int], np.ndarray] | None,
    write: Callable[[int, np.ndarray], None],
) -> None:
    """The context residual (eq. 1) of a segmentation: where a segment differs from the slice before.

    Slices without a predecessor are 0, as in training. So is what has its predecessor outside an ROI: a segment that
    the ROI cuts off does not end there.

    Args:
        slices: how many there are along the residual axis, in the model's direction.
        masks: (c, ...) bool of a slice: each segment, or what stands for all of them.
        step: how many slices away the previous slice is, since the model's slices may be thicker than the image's.
        inside: (...) bool of a slice, what is in the ROI; None where there is none.
        write: receives a slice's number and its residual, (c, ...) bool.
    """
    earlier: list[tuple[np.ndarray, np.ndarray | None]] = []
    for number in range(slices):
        now = masks(number), None if inside is None else inside(number)
        earlier.append(now)
        if number < step:
            continue
        before = earlier.pop(0)
        residual = now[0] != before[0]
        if inside is not None:
            residual &= now[1] & before[1]
        write(number, residual)


def slice_step(model_spacing: Sequence[float], spacing: Sequence[float], axis: int) -> int:
    """How many slices of an image are one slice of the model along an axis, at least 1; both spacings in S, H, W."""
    return max(1, round(model_spacing[axis] / spacing[axis]))
