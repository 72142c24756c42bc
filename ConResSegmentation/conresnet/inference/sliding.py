"""One pass of a network over the windows of an array, and fallbacks if memory runs out or the GPU fails.

``slide`` is the pass itself, used for segmentation and for validation during training. Systems use ``Passes``, which
reports progress, can be canceled within a window, and retries with smaller batches and windows or on the CPU.
``segment_part`` runs passes in a part of a case, and then in the whole case if a segment extends beyond the part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.images import Box
from conresnet.images.preparation import PreparedCase
from conresnet.inference import MULTIPLE, SMALLEST_SIDE, Tiling, WindowPlan, axis_weights
from conresnet.inference.devices import (
    Backend,
    ForwardMonitor,
    choose_backend,
    free_memory,
    is_gpu_failure,
    is_out_of_memory,
)
from conresnet.inference.labels import LabelWriter
from conresnet.inference.results import Results
from conresnet.messages import sentence
from conresnet.request import Tracker

if TYPE_CHECKING:
    from conresnet.package.outputs import Output
    from conresnet.systems import System
    from conresnet.systems.predictors import Predictor

logger = logging.getLogger(__name__)

_MOST_HALVINGS = 3
_WAIT = 0.1
"""Seconds between waits for the device, so that progress does not run ahead of an asynchronous GPU."""

Finish = Callable[[Box, dict[str, Tensor]], None]


class Accumulator(Protocol):
    """Receives the finished slabs of a pass."""

    def finish(self, where: Box, values: Mapping[str, Tensor]) -> None:
        """Receive a finished slab: its position (S, H, W) and its values by name, (c, ...) float32, not to be kept.

        The values are still on the device, so that only what is computed from them has to be copied.
        """

    def restart(self) -> None:
        """Discard all slabs, because the pass starts over with other windows."""


def slide(
    predict: Callable[[Tensor], list[Mapping[str, Tensor]]],
    block: Callable[[Sequence[int], Sequence[int]], np.ndarray],
    plan: WindowPlan,
    shape: Sequence[int],
    blending: str,
    finish: Finish,
    together: int = 1,
) -> None:
    """Process the windows of an array and blend the network's outputs.

    Args:
        predict: maps windows (N, C, S, H, W) float32 on the CPU to values by name for each, (c, S, H, W) float32
            on any device.
        block: returns voxels (C, S, H, W) of the array of ``shape``, given the first voxel (S, H, W) and a size; 0
            beyond the array's end.
        blending: "gaussian" or "uniform", see ``axis_weights``.
        finish: see ``Accumulator.finish``.
        together: number of windows passed to ``predict`` at once.
    """
    stitcher, windows = Stitcher(plan, shape, blending, finish), iter(plan)
    while some := list(islice(windows, together)):
        inputs = torch.stack([torch.from_numpy(block(plan.start(window), plan.size)) for window in some])
        outputs = predict(inputs)
        for window in some:
            # Removed from the list, so that no output stays in memory while the next windows are computed.
            stitcher.add(window, outputs.pop(0))


class Stitcher:
    """Sums the weighted windows of a plan in order, and passes on every slab that no later window overlaps.

    Memory is one window deep, however many windows and slices there are. For the arguments see ``slide``.
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
        """Add one window's values by name, (c, S, H, W) float32, each always on the same device, of the plan's size."""
        row, starts = window[0], self._plan.start(window)
        # Slices count from the row's first, the other axes from the extent's.
        places, parts = [], []
        for axis, (start, size) in enumerate(zip(starts, self._plan.size, strict=True)):
            first = starts[0] if axis == 0 else self._extent[axis].start
            inside = min(size, self._extent[axis].stop - start)
            places.append(slice(start - first, start - first + inside))
            parts.append(slice(0, inside))
        along = [self._weights[axis][number][parts[axis]] for axis, number in enumerate(window)]
        weights: dict[torch.device, Tensor] = {}
        for name, value in values.items():
            if value.device not in weights:
                s, h, w = (one.to(value.device) for one in along)
                weights[value.device] = s[:, None, None] * h[:, None] * w
            total = self._sum(name, value)[(slice(None), *places)]
            total.addcmul_(value[(slice(None), *parts)], weights[value.device])
        if tuple(window[1:]) == tuple(len(starts) - 1 for starts in self._plan.starts[1:]):
            self._close(row)

    def _sum(self, name: str, value: Tensor) -> Tensor:
        if name not in self._sums:
            depth = min(self._plan.size[0], self._extent[0].stop - self._extent[0].start)
            sides = [part.stop - part.start for part in self._extent[1:]]
            self._sums[name] = torch.zeros(len(value), depth, *sides, device=value.device)
        return self._sums[name]

    def _close(self, row: int) -> None:
        """Pass on the part that no later window overlaps, and move the rest to the front."""
        starts = self._plan.starts[0]
        begin = starts[row]
        end = starts[row + 1] if row + 1 < len(starts) else self._extent[0].stop
        done = end - begin
        where = (slice(begin, end), *self._extent[1:])
        self._finish(where, {name: total[:, :done] for name, total in self._sums.items()})
        for total in self._sums.values():
            rest = total.shape[1] - done
            total[:, :rest] = total[:, done:].clone()
            total[:, rest:] = 0


@dataclass(frozen=True)
class Pass:
    """A completed pass.

    Args:
        name: name of the system's pass, such as "coarse".
        box: part of the model's array covered by its windows.
        plan: the windows that were finally used.
        backend: device on which they were computed.
    """

    name: str
    box: Box
    plan: WindowPlan
    backend: Backend
    seconds: float


class Passes:
    """Makes the passes of a system, and adds the output of the last one to ``results``.

    Args:
        backend: device and precision for the networks.
        tiling: placement of the windows: the model's unless the user chose another one.
        maps: maps to compute along with the segmentation; only by the last pass.
        results: receives the output, which the user can watch as it grows.
        tracker: progress tracker; raises Cancelled.
        precision: requested precision; "fp32" is kept if the CPU has to take over from a GPU.
        mirrors: whether to average over mirrored windows, as the model asks for.

    Attributes:
        passes, warnings: the passes made so far, and messages for the user about them.
    """

    def __init__(
        self,
        backend: Backend,
        tiling: Tiling,
        maps: Sequence[str],
        results: Results,
        tracker: Tracker,
        precision: str = "auto",
        mirrors: bool = True,
    ):
        self._backend = backend
        self._precision = precision
        self._mirrors = mirrors
        self._tracker = tracker
        self.tiling = tiling
        self.maps = tuple(maps)
        self.results = results
        self.passes: list[Pass] = []
        self.warnings: list[str] = []

    def without_mirrors(self) -> Passes:
        """The same passes, with the same lists of passes and warnings, but without mirrored copies."""
        others = copy(self)
        others._mirrors = False
        return others

    def restart(self) -> None:
        """Discard what the passes added to the results, because they start over."""
        self.results.restart()
        self._tracker.start_over()

    def make(
        self,
        name: str,
        predictor: Predictor,
        case: PreparedCase,
        box: Box,
        tiling: Tiling,
        accumulator: Accumulator,
        maps: Sequence[str] = (),
        share: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Process the windows of a box in a case.

        Each pass starts with the chosen windows and device. When memory runs out, fewer windows and mirrored copies are
        computed at once, which does not change the result. If one at a time is too much, the longest side
        of the windows is halved, up to three times; then the CPU takes over from a GPU. It also does if the GPU has
        no room for the network, or fails. Where half precision gives values that are not numbers, fp32 is used.
        All of this is logged and added to the warnings.

        Args:
            name: see ``Pass``.
            box: (S, H, W), which the windows must cover.
            maps: maps to compute along with the probability.
            share: estimated start and end of this pass in the whole work, 0 to 1.

        Raises:
            Cancelled: from inside a window.
            UserError: "out-of-memory" if nothing helped; "network-not-finite" if a probability is not a number
                in fp32 either.
        """
        self._tracker.part(*share)
        begun = time.monotonic()
        copies = predictor.copies(self._mirrors)
        backend, placement, halvings = self._backend, tiling, 0
        plan = placement.plan(box, case.shape)
        batch = min(backend.batch(plan.size), copies * len(plan))
        while trouble := self._attempt(predictor, backend, case, plan, tiling.blending, maps, accumulator, batch):
            accumulator.restart()
            free_memory(backend)
            if trouble.kind == "precision":
                self.warn(sentence(trouble.code, trouble.values))
                backend = Backend(backend.device, "fp32")
                continue
            if trouble.kind == "memory" and batch > 1:
                batch //= 2
                logger.info("Memory ran out; continuing with %d windows or mirrored copies at once.", batch)
                continue
            smaller = _halved(plan.size) if trouble.kind == "memory" and halvings < _MOST_HALVINGS else None
            if smaller:
                before, placement, halvings = plan.size, tiling.smaller(smaller), halvings + 1
                plan = placement.plan(box, case.shape)
                values = {"where": _where(backend), "size": _text(before), "smaller": _text(plan.size)}
                self.warn(sentence("smaller-windows", values))
                continue
            if backend.device.type == "cpu":
                raise MemoryError("not even small windows fit")
            self.warn(sentence(trouble.code, {**trouble.values, "where": _where(backend)}))
            precision = "fp32" if self._precision == "fp32" else "auto"
            backend, placement, halvings = choose_backend("cpu", precision), tiling, 0
            plan = placement.plan(box, case.shape)
            batch = min(backend.batch(plan.size), copies * len(plan))
        self.passes.append(Pass(name, box, plan, backend, time.monotonic() - begun))

    def warn(self, warning: str) -> None:
        """Log a warning and show it to the user with the result, once for all passes."""
        if warning not in self.warnings:
            self.warnings.append(warning)
        logger.warning(warning)

    def _attempt(
        self,
        predictor: Predictor,
        backend: Backend,
        case: PreparedCase,
        plan: WindowPlan,
        blending: str,
        maps: Sequence[str],
        accumulator: Accumulator,
        batch: int,
    ) -> _Trouble | None:
        """Make the pass; returns the problem if there is a fallback, after the error and its tensors were freed."""
        is_gpu = backend.device.type != "cpu"
        try:
            predictor.place(backend)
        except Exception as error:
            if is_gpu and is_out_of_memory(error):
                return _Trouble("gpu", "cpu-for-network", {})
            if is_gpu and is_gpu_failure(error):
                return _Trouble("gpu", "cpu-for-failure", {"reason": _first_line(error)})
            raise

        def finish(where: Box, values: dict[str, Tensor]) -> None:
            # NaN would become background, and nobody would know why the segment is missing.
            if not values["probability"].sum().isfinite():
                raise UserError("network-not-finite", model=predictor.title)
            accumulator.finish(where, values)

        together = max(1, batch // predictor.copies(self._mirrors))
        try:
            with self._watched(predictor, backend, maps, len(plan), together, batch) as predict:
                slide(predict, case.block, plan, case.shape, blending, finish, together)
        except Exception as error:
            if is_out_of_memory(error):
                return _Trouble("memory", "cpu-for-windows", {"size": _text(plan.size)})
            if is_gpu and is_gpu_failure(error):
                return _Trouble("gpu", "cpu-for-failure", {"reason": _first_line(error)})
            if isinstance(error, UserError) and error.code == "network-not-finite" and backend.precision != "fp32":
                return _Trouble("precision", "half-precision-exceeded", {"precision": backend.precision})
            raise
        return None

    @contextmanager
    def _watched(
        self, predictor: Predictor, backend: Backend, maps: Sequence[str], windows: int, together: int, batch: int
    ) -> Iterator[Callable[[Tensor], list[dict[str, Tensor]]]]:
        """Wrap ``predictor.predict`` so that it reports progress and can be canceled inside each call."""
        finished, some, reached = 0, 0, time.monotonic()

        def tick(share: float) -> None:
            nonlocal reached
            if time.monotonic() - reached >= _WAIT:
                backend.wait()
                reached = time.monotonic()
            self._tracker.update((finished + share * some) / windows)

        def trial() -> None:
            predictor.trial(maps, self._mirrors, min(together, windows), batch)

        with ForwardMonitor(predictor.placed, trial, tick) as monitor:

            def predict(shown: Tensor) -> list[dict[str, Tensor]]:
                nonlocal finished, some
                some = len(shown)
                monitor.restart()
                values = predictor.predict(shown, maps, self._mirrors, batch)
                finished += some
                return values

            yield predict


@dataclass(frozen=True)
class _Trouble:
    """Why a pass failed: "memory" of the windows, "precision", or "gpu", where only the CPU helps.

    ``code`` and ``values`` are the warning's; where memory ran out, those of the one for using the CPU.
    """

    kind: str
    code: str
    values: dict[str, str]


def _halved(size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """The window with its longest side halved, or None where it would show too little."""
    longest = max(size)
    half = -(-longest // (2 * MULTIPLE)) * MULTIPLE
    if half < SMALLEST_SIDE:
        return None
    axis = size.index(longest)
    return (*size[:axis], half, *size[axis + 1 :])


def _where(backend: Backend) -> str:
    return "The computer" if backend.device.type == "cpu" else f"The GPU {backend}"


def _text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def segment_part(system: System, case: PreparedCase, part: Box | None, passes: Passes, output: Output) -> None:
    """Segment a part of a case; or the whole case if ``part`` is None, or as soon as a segment reaches beyond it."""
    if part is not None:
        whole, passes.results = passes.results, _WithinPart(passes.results, output, part, case.box())
        try:
            system.segment(replace(case, part=part), passes)
            return
        except _PartTooSmallError:
            passes.restart()
        finally:
            passes.results = whole
    system.segment(case, passes)


class _PartTooSmallError(Exception):
    """A segment reaches a border of the part that is inside the whole."""


class _WithinPart:
    """Passes slabs on, and raises _PartTooSmallError for the first one with a segment at a border of the part."""

    def __init__(self, results: Accumulator, output: Output, part: Box, whole: Box):
        self._results, self._output = results, output
        self.restart = results.restart
        # Planes of the case's array, each as an axis and an index.
        self._planes = []
        for axis, (inner, outer) in enumerate(zip(part, whole, strict=True)):
            if inner.start > outer.start:
                self._planes.append((axis, inner.start))
            if inner.stop < outer.stop:
                self._planes.append((axis, inner.stop - 1))

    def finish(self, where: Box, values: Mapping[str, Tensor]) -> None:
        """Take a finished slab."""
        for axis, index in self._planes:
            if where[axis].start <= index < where[axis].stop:
                plane = values["probability"].select(axis + 1, index - where[axis].start)
                if LabelWriter(self._output).labels(plane).any():
                    raise _PartTooSmallError
        self._results.finish(where, values)
