"""What answers for one window of a prepared case: one network, or several together.

Putting windows together while they come, holding no more slices than windows still touch.

One pass over all windows, and what becomes of it when memory runs out or half precision does not suffice.

The passes over the windows of one case that a system makes, one after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.images.grid import Box
from conresnet.images.preparation import PreparedCase
from conresnet.inference.devices import Backend, ForwardMonitor, choose_backend, is_out_of_memory
from conresnet.inference.progress import Tracker
from conresnet.inference.results import Results
from conresnet.inference.windows import MULTIPLE, SMALLEST_SIDE, Tiling, WindowPlan, axis_weights


class Predictor(Protocol):
    """Networks that together answer for one window.

    Attributes:
        networks: those whose convolutions tell how far a pass is.
        maps: names in ``conresnet.package.maps.MAPS`` that it can give.
    """

    networks: Sequence[nn.Module]
    maps: Collection[str]

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""

    def predict(self, block: Tensor, maps: Collection[str]) -> dict[str, Tensor]:
        """One window.

        Args:
            block: (C, S, H, W) float32 on the CPU.
            maps: wanted beside the probability.

        Returns:
            (c, S, H, W) float32 on the CPU by name: always "probability", one component a segment (of labels without
            the background); "residual" as probabilities; "attention" and "features" as the networks give them.

        Raises:
            UserError: "network-not-finite" where a probability is no number, as of values that half precision cannot
                hold.
        """

    def trial(self, maps: Collection[str]) -> None:
        """Make all that ``predict`` makes, on a window as small as can be."""


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


logger = logging.getLogger(__name__)

_MOST_HALVINGS = 3


@dataclass
class Sweep:
    """How a pass was made in the end."""

    plan: WindowPlan
    backend: Backend
    warnings: list[str] = field(default_factory=list)


def sweep(
    predictor: Predictor,
    backend: Backend,
    case: PreparedCase,
    box: Box,
    tiling: Tiling,
    maps: Collection[str],
    taker: Taker,
    tracker: Tracker,
) -> Sweep:
    """Go over all windows of a box of a case; what they say goes to ``taker``.

    When memory runs out, the longest side of the windows is halved, up to three times; then, where it was a GPU, the
    CPU does it. Where half precision gives values that are not numbers, fp32 does it. All of that is logged and told in
    the warnings. Afterwards the predictor is on ``backend`` as before.

    Raises:
        Cancelled: heard inside a window.
        UserError: "out-of-memory" where nothing helped; "network-not-finite" in fp32 too.
    """
    laid = tiling
    done = Sweep(laid.plan(box, case.shape), backend)
    halvings = 0
    try:
        while trouble := _trouble(
            lambda: _pass(predictor, case, done.plan, tiling.blending, maps, taker, tracker), done.backend
        ):
            taker.restart()
            _free(done.backend)
            if trouble == "network-not-finite":
                _tell(done, f"Values went beyond what {done.backend.precision} holds; fp32 was used instead.")
                done.backend = Backend(done.backend.device, "fp32")
                predictor.place(done.backend)
                continue
            smaller = _halved(done.plan.size) if halvings < _MOST_HALVINGS else None
            name, size = _name(done.backend), _text(done.plan.size)
            if smaller:
                halvings += 1
                laid = tiling.smaller(smaller)
            elif done.backend.device.type != "cpu":
                halvings = 0
                laid = tiling
                done.backend = choose_backend("cpu")
                predictor.place(done.backend)
            else:
                raise UserError(
                    "out-of-memory",
                    f"The memory of {name} does not hold the segmentation of {case.space.grid.shape} voxels; close "
                    "other programs, or draw an ROI around the structure.",
                )
            done.plan = laid.plan(box, case.shape)
            change = f"smaller ones of {_text(done.plan.size)}" if smaller else "the CPU, which takes longer,"
            subject = name[0].upper() + name[1:]
            _tell(done, f"{subject} ran out of memory with windows of {size} voxels; {change} were used instead.")
    finally:
        if done.backend is not backend:
            predictor.place(backend)
    return done


def _pass(
    predictor: Predictor,
    case: PreparedCase,
    plan: WindowPlan,
    blending: str,
    maps: Collection[str],
    taker: Taker,
    tracker: Tracker,
) -> None:
    stitcher = Stitcher(plan, case.shape, blending, taker.finish)
    finished = 0

    def tick(share: float) -> None:
        tracker.update((finished + share) / len(plan))

    with ForwardMonitor(predictor.networks, lambda: predictor.trial(maps), tick) as monitor:
        for window in plan:
            monitor.restart()
            block = case.block(plan.start(window), plan.size)
            stitcher.add(window, predictor.predict(torch.from_numpy(block), maps))
            finished += 1


def _trouble(attempt: Callable[[], None], backend: Backend) -> str:
    """The code of an error that can be helped, once the error and all that it holds is gone; "" if all went well."""
    try:
        attempt()
    except Exception as error:
        if is_out_of_memory(error):
            return "out-of-memory"
        if isinstance(error, UserError) and error.code == "network-not-finite" and backend.precision != "fp32":
            return error.code
        raise
    return ""


def _tell(done: Sweep, warning: str) -> None:
    done.warnings.append(warning)
    logger.warning(warning)


def _free(backend: Backend) -> None:
    if backend.device.type == "cuda":
        torch.cuda.empty_cache()
    elif backend.device.type == "mps":
        torch.mps.empty_cache()


def _halved(size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """The window with its longest side halved, or None where that would be too little to see by."""
    longest = max(size)
    half = -(-longest // (2 * MULTIPLE)) * MULTIPLE
    if half < SMALLEST_SIDE:
        return None
    axis = size.index(longest)
    return (*size[:axis], half, *size[axis + 1 :])


def _name(backend: Backend) -> str:
    return "the computer" if backend.device.type == "cpu" else f"the device {backend}"


def _text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """A pass that was made.

    Args:
        name: which of the system's it was, such as "coarse".
        box: of the model's array, what its windows had to cover.
        made: the windows it took in the end, and where they were computed.
        seconds: how long it took.
    """

    name: str
    box: Box
    made: Sweep
    seconds: float


class Passes:
    """What a system works with: it makes passes, and gives the last one's answer to ``results``.

    Args:
        backend: where the system's predictors are.
        tiling: how windows shall be laid, the model's way unless the user chose another.
        maps: wanted beside the segmentation; made by the last pass alone.
        results: what the user gets, and sees growing.
        tracker: of progress; hears a cancel.

    Attributes:
        made: the passes so far.
        warnings: sentences for the user, in the order in which they came up.
    """

    def __init__(self, backend: Backend, tiling: Tiling, maps: Sequence[str], results: Results, tracker: Tracker):
        self._backend = backend
        self._tracker = tracker
        self.tiling = tiling
        self.maps = tuple(maps)
        self.results = results
        self.made: list[Pass] = []
        self.warnings: list[str] = []

    def make(
        self,
        name: str,
        predictor: Predictor,
        case: PreparedCase,
        box: Box,
        tiling: Tiling,
        taker: Taker,
        maps: Sequence[str] = (),
        share: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Go over the windows of a box of a case. Each pass begins anew with windows and device as they were chosen.

        Args:
            name: see ``Pass``.
            box: (S, H, W), what the windows must cover.
            tiling: how they lie.
            taker: whom the answer goes to.
            maps: wanted beside the probability.
            share: from where to where of the work this pass probably goes, 0 to 1.

        Raises:
            Cancelled: heard inside a window.
            UserError: "out-of-memory" or "network-not-finite".
        """
        self._tracker.part(*share)
        begun = time.monotonic()
        made = sweep(predictor, self._backend, case, box, tiling, maps, taker, self._tracker)
        self.made.append(Pass(name, box, made, time.monotonic() - begun))
        self.warnings += made.warnings

    def warn(self, sentence: str) -> None:
        """Have the user read a sentence with the result."""
        self.warnings.append(sentence)
        logger.warning(sentence)
