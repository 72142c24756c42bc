"""Plain sliding-window inference as the paper's authors run it, the baseline for the engine."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn


def prepare(channels: list[np.ndarray]) -> np.ndarray:
    """Normalize the channels as the authors do, and return (C, S, H, W) float32.

    The sparse tail of the histogram is clipped. Voxels that differ from the corner's value get their z-score; the
    others become 0.
    """
    prepared = []
    for array in channels:
        counts, _ = np.histogram(array, bins=int(array.max()))
        array = np.minimum(array.astype(np.float32), np.flatnonzero(counts >= 50)[-1])
        mask = array != array[0, 0, 0]
        values = array[mask]
        prepared.append(np.where(mask, (array - values.mean()) / values.std(), 0).astype(np.float32))
    return np.stack(prepared)


def starts(side: int, window: int) -> list[int]:
    """Starts of the authors' windows along one axis: steps of two thirds, the last window moved back inside."""
    stride = int(np.ceil(window * 2 / 3))
    count = int(np.ceil((side - window) / stride)) + 1
    return [min(number * stride, side - window) for number in range(max(1, count))]


@torch.inference_mode()
def logits(network: nn.Module, image: np.ndarray, start: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """Logits (K, S, H, W) of one window in eager fp32. The network standardizes its weights and computes all heads."""
    place = tuple(slice(a, a + n) for a, n in zip(start, window, strict=True))
    return network(torch.from_numpy(image[(slice(None), *place)])[None])["segmentation"][0]


@torch.inference_mode()
def segment(network: nn.Module, image: np.ndarray, window: tuple[int, ...], limit: int | None = None) -> np.ndarray:
    """Regions (K, S, H, W) as bool: mean of the windows' sigmoids above one half.

    Args:
        limit: stop after this many windows, to estimate the time of all.
    """
    total = counts = None
    places = list(product(*(starts(side, size) for side, size in zip(image.shape[1:], window, strict=True))))
    for start in places[:limit]:
        probability = torch.sigmoid(logits(network, image, start, window)).numpy()
        if total is None:
            total = np.zeros((len(probability), *image.shape[1:]), np.float32)
            counts = np.zeros(image.shape[1:], np.float32)
        place = tuple(slice(a, a + n) for a, n in zip(start, window, strict=True))
        total[(slice(None), *place)] += probability
        counts[place] += 1
    return total / np.maximum(counts, 1) > 0.5
