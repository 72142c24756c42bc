"""One pass over the windows of a case, by one network or by several together."""

from __future__ import annotations

from conresnet.inference.devices import Backend
from conresnet.inference.passes import Passes
from conresnet.inference.predictor import Predictor
from conresnet.inference.tiling import Tiling
from conresnet.package.description import Inference
from conresnet.preparation import PreparedCase


class OnePass:
    """See ``conresnet.systems.system.System``.

    Args:
        predictor: what answers for a window.
        inference: the model's windows.
    """

    def __init__(self, predictor: Predictor, inference: Inference):
        self.predictors = [predictor]
        self.networks = predictor.networks
        self.maps = predictor.maps
        self.tiling = Tiling(inference.tiling, inference.window, inference.overlap, inference.blending)

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        self.predictors[0].place(backend)

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """The windows over the foreground of a case."""
        passes.make("only", self.predictors[0], case, case.box(), passes.tiling, passes.results, passes.maps)
