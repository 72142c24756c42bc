"""The usual systems: one pass over the windows of a case, by one network or by the mean of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conresnet.systems import Stage, System, register_system

if TYPE_CHECKING:
    from conresnet.package import ModelPackage


@register_system("single")
class Single(System):
    """A single network, trained in its own stages."""

    files = ("network",)
    ensemble = "ensemble"

    def __init__(self, package: ModelPackage):
        from conresnet.systems.predictors import SingleNetwork

        self.predictors = [SingleNetwork(package)]

    @classmethod
    def stages(cls, arguments: Mapping[str, Any]) -> Sequence[Stage]:
        """One."""
        return (Stage(),)


@register_system("ensemble")
class Ensemble(System):
    """Several networks with the same inputs and outputs, such as those of a cross-validation, averaged.

    It is created by exporting several runs together, and not trained as a whole.
    """

    adds = ("members",)

    def __init__(self, package: ModelPackage):
        from conresnet.systems.predictors import AveragedNetworks

        self.predictors = [AveragedNetworks(package)]
