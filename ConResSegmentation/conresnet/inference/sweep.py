"""One pass over all windows, and what becomes of it when memory runs out or half precision does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from conresnet.boxes import Box
from conresnet.errors import UserError
from conresnet.inference.devices import Backend, choose_backend, is_out_of_memory
from conresnet.inference.hooks import ForwardMonitor
from conresnet.inference.predictor import Predictor
from conresnet.inference.progress import Tracker
from conresnet.inference.stitching import Stitcher, Taker
from conresnet.inference.tiling import Tiling
from conresnet.inference.windows import MULTIPLE, SMALLEST_SIDE, WindowPlan
from conresnet.preparation import PreparedCase

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
