"""What every system is to those who use it: the passes over a case, and the placing of its networks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import nn

from conresnet.inference.devices import Backend
from conresnet.inference.passes import Passes
from conresnet.inference.predictor import Predictor
from conresnet.inference.tiling import Tiling
from conresnet.preparation import PreparedCase


class System(Protocol):
    """Networks that together segment a prepared case.

    Attributes:
        predictors: what answers for a window in each of its passes.
        networks: all of them.
        maps: names in ``conresnet.maps.MAPS`` that it can give.
        tiling: how the model would have windows laid.
    """

    predictors: Sequence[Predictor]
    networks: Sequence[nn.Module]
    maps: Collection[str]
    tiling: Tiling

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """Make the passes over a case, the last of which goes to ``passes.results``.

        Raises:
            Cancelled: heard inside a window.
            UserError: "out-of-memory" or "network-not-finite".
        """
