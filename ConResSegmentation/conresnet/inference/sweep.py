"""The pass over all windows, and what becomes of it when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from conresnet.errors import UserError
from conresnet.inference.devices import Backend, choose_backend, is_out_of_memory
from conresnet.inference.hooks import ForwardMonitor
from conresnet.inference.progress import Tracker
from conresnet.inference.results import Results
from conresnet.inference.stitching import Stitcher
from conresnet.inference.windows import MULTIPLE, WindowPlan, authors_windows, fitted_windows
from conresnet.preparation import PreparedCase
from conresnet.systems.system import System

logger = logging.getLogger(__name__)

_SMALLEST_SIDE = 32
_MOST_HALVINGS = 3


@dataclass(frozen=True)
class Tiling:
    """How windows are laid and blended.

    Args:
        kind: "fitted" or "authors", see ``conresnet.inference.windows``.
        window: the model's (S, H, W).
        overlap: of fitted windows.
        blending: "gaussian" or "uniform".
    """

    kind: str
    window: tuple[int, int, int]
    overlap: float
    blending: str

    def plan(self, case: PreparedCase) -> WindowPlan:
        """The windows for a case."""
        if self.kind == "authors":
            return authors_windows(case.shape, self.window)
        return fitted_windows(case.box(), case.shape, self.window, self.overlap)


@dataclass
class Sweep:
    """How the pass was made in the end."""

    plan: WindowPlan
    backend: Backend
    warnings: list[str] = field(default_factory=list)


def sweep(
    system: System,
    backend: Backend,
    case: PreparedCase,
    tiling: Tiling,
    maps: Collection[str],
    results: Results,
    tracker: Tracker,
) -> Sweep:
    """Segment all windows of a case into ``results``.

    When memory runs out, the longest side of the windows is halved, up to three times; then, where it was a GPU, the
    CPU does it. Both are logged and told in the warnings. Afterwards the system is on ``backend`` as before.

    Raises:
        Cancelled: heard inside a window.
        UserError: "out-of-memory" where nothing helped.
    """
    done = Sweep(tiling.plan(case), backend)
    halvings = 0
    try:
        while not _fits(lambda: _pass(system, case, done.plan, tiling.blending, maps, results, tracker)):
            results.restart()
            _free(done.backend)
            smaller = _halved(done.plan.size) if halvings < _MOST_HALVINGS else None
            name, size = _name(done.backend), _text(done.plan.size)
            if smaller:
                halvings += 1
                done.plan = fitted_windows(case.box(), case.shape, smaller, tiling.overlap)
                change = f"smaller ones of {_text(done.plan.size)}"
            elif done.backend.device.type != "cpu":
                halvings = 0
                done.plan = tiling.plan(case)
                done.backend = choose_backend("cpu")
                system.place(done.backend)
                change = "the CPU, which takes longer,"
            else:
                raise UserError(
                    "out-of-memory",
                    f"The memory of {name} does not hold the segmentation of {case.space.grid.shape} voxels; close "
                    "other programs, or draw an ROI around the structure.",
                )
            done.warnings.append(f"{name} ran out of memory with windows of {size} voxels; {change} were used instead.")
            logger.warning(done.warnings[-1])
    finally:
        if done.backend is not backend:
            system.place(backend)
    return done


def _pass(
    system: System,
    case: PreparedCase,
    plan: WindowPlan,
    blending: str,
    maps: Collection[str],
    results: Results,
    tracker: Tracker,
) -> None:
    stitcher = Stitcher(plan, case.shape, blending, results.finish)
    finished = 0

    def tick(share: float) -> None:
        tracker.update((finished + share) / len(plan))

    with ForwardMonitor(system.networks, lambda: system.trial(maps), tick) as monitor:
        for window in plan:
            monitor.restart()
            block = case.block(plan.start(window), plan.size)
            stitcher.add(window, system.predict(torch.from_numpy(block), maps))
            finished += 1


def _fits(attempt: Callable[[], None]) -> bool:
    """Whether it went through; False when memory ran out, once the error and all that it holds is gone."""
    try:
        attempt()
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def _free(backend: Backend) -> None:
    if backend.device.type == "cuda":
        torch.cuda.empty_cache()
    elif backend.device.type == "mps":
        torch.mps.empty_cache()


def _halved(size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """The window with its longest side halved, or None where that would be too little to see by."""
    longest = max(size)
    half = -(-longest // (2 * MULTIPLE)) * MULTIPLE
    if half < _SMALLEST_SIDE:
        return None
    axis = size.index(longest)
    return (*size[:axis], half, *size[axis + 1 :])


def _name(backend: Backend) -> str:
    return "The computer" if backend.device.type == "cpu" else f"The device {backend}"


def _text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
