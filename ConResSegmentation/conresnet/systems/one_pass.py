"""One pass over the windows of a case, by one network or by the mean of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conresnet.systems import Stage, System, register_system

if TYPE_CHECKING:
    from conresnet.images.preparation import PreparedCase
    from conresnet.inference.sliding import Passes, Predictor
    from conresnet.package import ModelPackage


class OnePass(System):
    """A system whose one predictor answers for every window."""

    def __init__(self, package: ModelPackage):
        from conresnet.inference.windows import Tiling

        predictor = self._predictor(package)
        inference = package.description.inference
        self.predictors, self.networks, self.maps = [predictor], predictor.networks, predictor.maps
        self.tiling = Tiling(inference.tiling, inference.window, inference.overlap, inference.blending)

    @staticmethod
    def _predictor(package: ModelPackage) -> Predictor:
        raise NotImplementedError

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """The windows over the foreground of a case."""
        passes.make("only", self.predictors[0], case, case.box(), passes.tiling, passes.results, passes.maps)


@register_system("single")
class Single(OnePass):
    """One network: the usual way. It is trained in the stages that the network has."""

    files = ("network",)
    ensemble = "ensemble"

    @classmethod
    def stages(cls, arguments: Mapping[str, Any]) -> Sequence[Stage]:
        """One."""
        return (Stage(),)

    @staticmethod
    def _predictor(package: ModelPackage) -> Predictor:
        from conresnet.systems.predictors import SingleNetwork

        return SingleNetwork(package)


@register_system("ensemble")
class Ensemble(OnePass):
    """Several networks with the same inputs and outputs, such as those of a cross-validation, averaged.

    It is made of runs that are exported together, and not trained as a whole.
    """

    adds = ("members",)

    @staticmethod
    def _predictor(package: ModelPackage) -> Predictor:
        from conresnet.systems.predictors import AveragedNetworks

        return AveragedNetworks(package)
