"""How much each window's answer counts where windows overlap. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WIDTH = 1 / 8
"""Standard deviation of the Gaussian, in window sides: a window's edges, where it lacks context, hardly count."""


def axis_weights(starts: Sequence[int], size: int, blending: str) -> list[np.ndarray]:
    """Weights along one axis that add up to 1 in every voxel that the windows cover.

    Windows lie at every combination of starts and a voxel's weight is the product over the axes, so that weights
    which add up to 1 along each axis do so in space. That leaves nothing to divide by when the windows are summed.

    Args:
        starts: first index of each window.
        size: of all of them.
        blending: "gaussian" or "uniform".

    Returns:
        (size,) float32 a window.
    """
    profile = np.ones(size)
    if blending == "gaussian":
        profile = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size * _WIDTH)) ** 2)
    total = np.zeros(max(starts) - min(starts) + size)
    for start in starts:
        total[start - min(starts) :][:size] += profile
    return [(profile / total[start - min(starts) :][:size]).astype(np.float32) for start in starts]
