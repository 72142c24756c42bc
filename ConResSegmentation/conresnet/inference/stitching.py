"""Putting windows together while they come, holding no more slices than windows still touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from conresnet.boxes import Box
from conresnet.inference.blending import axis_weights
from conresnet.inference.windows import WindowPlan

Finish = Callable[[Box, dict[str, np.ndarray]], None]


class Taker(Protocol):
    """Whoever the slabs of a pass go to."""

    def finish(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        """Take a finished slab: its place (S, H, W) and its values by name, (c, ...) float32, not to be kept."""

    def restart(self) -> None:
        """Forget all slabs: the windows are made anew, of another size."""


class Stitcher:
    """Sums the weighted windows of a plan and hands over every slab of slices that no later window touches.

    Memory is one window deep, however many windows and slices there are.

    Args:
        plan: the windows; ``add`` takes them in its order.
        shape: of the array they lie in.
        blending: see ``axis_weights``.
        finish: called with the place (S, H, W) of each finished slab and its values by name, (c, ...) float32, which
            it must not keep.
    """

    def __init__(self, plan: WindowPlan, shape: Sequence[int], blending: str, finish: Finish):
        self._plan = plan
        self._extent = plan.extent(shape)
        self._finish = finish
        self._weights = [
            [torch.from_numpy(weights) for weights in axis_weights(starts, size, blending)]
            for starts, size in zip(plan.starts, plan.size, strict=True)
        ]
        self._sums: dict[str, Tensor] = {}

    def add(self, window: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Add one window's values by name, (c, S, H, W) float32 on the CPU, of the plan's size."""
        row, starts = window[0], self._plan.start(window)
        # Slices count from the row's first, the other axes from the extent's.
        places, parts = [], []
        for axis, (start, size) in enumerate(zip(starts, self._plan.size, strict=True)):
            first = starts[0] if axis == 0 else self._extent[axis].start
            inside = min(size, self._extent[axis].stop - start)
            places.append(slice(start - first, start - first + inside))
            parts.append(slice(0, inside))
        s, h, w = (self._weights[axis][number][parts[axis]] for axis, number in enumerate(window))
        weight = s[:, None, None] * h[:, None] * w
        for name, value in values.items():
            self._sum(name, len(value))[(slice(None), *places)].addcmul_(value[(slice(None), *parts)], weight)
        if tuple(window[1:]) == tuple(len(starts) - 1 for starts in self._plan.starts[1:]):
            self._close(row)

    def _sum(self, name: str, components: int) -> Tensor:
        if name not in self._sums:
            depth = min(self._plan.size[0], self._extent[0].stop - self._extent[0].start)
            sides = [part.stop - part.start for part in self._extent[1:]]
            self._sums[name] = torch.zeros(components, depth, *sides)
        return self._sums[name]

    def _close(self, row: int) -> None:
        """Hand over what only windows up to this row touch, and move the rest to the front."""
        starts = self._plan.starts[0]
        begin = starts[row]
        end = starts[row + 1] if row + 1 < len(starts) else self._extent[0].stop
        done = end - begin
        where = (slice(begin, end), *self._extent[1:])
        self._finish(where, {name: total[:, :done].numpy() for name, total in self._sums.items()})
        for total in self._sums.values():
            rest = total.shape[1] - done
            total[:, :rest] = total[:, done:].clone()
            total[:, rest:] = 0
