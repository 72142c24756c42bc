"""Contrast-limited adaptive histogram equalization (CLAHE) of the slices of a volume.

SimpleITK's filter of a similar name limits no contrast and visits every voxel's neighborhood, so this is ours: the
tiles, the limit and the bilinear blend of Zuiderveld (Graphics Gems IV, 1994), vectorized a slice.
"""

from __future__ import annotations

import numpy as np

BINS = 256
# What is cut off the peaks is spread over all bins, which may lift some above the limit again; so little is left after
# this many rounds that it does not matter.
_ROUNDS = 5


class SliceEqualizer:
    """Equalizes slices of one shape.

    A tile's curve gives each level the share of the tile's voxels up to it, after the histogram's peaks were cut at
    the limit and what was cut off was spread over all levels. So the curve's slope is limited, and with it how far the
    contrast of a nearly even tile is raised. A voxel takes the curves of the four tiles whose centers are around it,
    blended by how near it is to each.

    Args:
        shape: (H, W) of a slice.
        clip_limit: the largest share of a tile's voxels in one of its ``BINS`` bins.
        tiles: along H, and as many along W; some are empty where a slice has fewer voxels.
    """

    def __init__(self, shape: tuple[int, int], clip_limit: float, tiles: int):
        self._limit, self._tiles = clip_limit, tiles
        rows, columns = (np.arange(side) * tiles // side for side in shape)
        self._tile = rows[:, None] * tiles + columns
        places = [_neighbors(side, tiles) for side in shape]
        self._corners = [
            (row[:, None] * tiles + column, (row_weight[:, None] * column_weight).astype(np.float32))
            for row, row_weight in places[0]
            for column, column_weight in places[1]
        ]

    def __call__(self, levels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
        """(H, W) float32 from 0 to 1.

        Args:
            levels: (H, W) whole numbers from 0 to ``BINS`` - 1.
            counted: (H, W) bool, voxels that the histograms count; None is every voxel. Those left out are turned by
                the same curves. A tile that counts none leaves levels as they are.
        """
        keys = self._tile * BINS + levels
        chosen = keys.ravel() if counted is None else keys[counted]
        counts = np.bincount(chosen, minlength=self._tiles**2 * BINS).reshape(-1, BINS)
        curves = self._curves(counts).ravel()
        return sum(weight * curves[tile * BINS + levels] for tile, weight in self._corners)

    def _curves(self, counts: np.ndarray) -> np.ndarray:
        """(tiles, BINS) float32: what becomes of each level in each tile."""
        sizes = counts.sum(axis=1, keepdims=True)
        shares = np.where(sizes > 0, counts / np.maximum(sizes, 1), 1 / BINS)
        for _ in range(_ROUNDS):
            kept = np.minimum(shares, self._limit)
            shares = kept + (shares - kept).sum(axis=1, keepdims=True) / BINS
        return shares.cumsum(axis=1).astype(np.float32)


def _neighbors(side: int, tiles: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each voxel along an axis the tile whose center is before it and the one after it, each with its weight."""
    place = (np.arange(side) + 0.5) * tiles / side - 0.5
    before = np.floor(place).astype(int)
    share = place - before
    return [
        (before.clip(0, tiles - 1), 1 - share),
        ((before + 1).clip(0, tiles - 1), share),
    ]
