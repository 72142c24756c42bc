"""The passes over the windows of one case that a system makes, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from conresnet.boxes import Box
from conresnet.inference.devices import Backend
from conresnet.inference.predictor import Predictor
from conresnet.inference.progress import Tracker
from conresnet.inference.results import Results
from conresnet.inference.stitching import Taker
from conresnet.inference.sweep import Sweep, sweep
from conresnet.inference.tiling import Tiling
from conresnet.preparation import PreparedCase

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
