"""Several networks of the same inputs and outputs, such as those of a cross-validation; what they say is averaged."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from conresnet.inference.devices import Backend
from conresnet.package import ModelPackage
from conresnet.systems.single import SingleNetwork


class Ensemble:
    """The networks of a package, one after the other over each window.

    Probabilities, residuals, attention and features are means over the networks. Only one network computes at a time
    and only the sum of the answers is kept, so that beyond their weights several take the memory of one.

    Attributes:
        networks: all of them.
        maps: those that every network can give.

    Args:
        package: read for the description and the weights; not kept.

    Raises:
        UserError: what loading a network raises.
    """

    def __init__(self, package: ModelPackage):
        count = len(package.description.system.networks)
        self._members = [SingleNetwork(package, index) for index in range(count)]
        self.networks = [network for member in self._members for network in member.networks]
        self.maps = set.intersection(*(set(member.maps) for member in self._members))

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        for member in self._members:
            member.place(backend)

    @torch.inference_mode()
    def predict(self, block: Tensor, maps: Collection[str]) -> dict[str, Tensor]:
        """One window, see ``Predictor.predict``."""
        first, *others = self._members
        total = first.predict(block, maps)
        for member in others:
            _add(total, member.predict(block, maps))
        return {name: value.div_(len(self._members)) for name, value in total.items()}

    def trial(self, maps: Collection[str]) -> None:
        """Make all that ``predict`` makes, on a window as small as can be."""
        for member in self._members:
            member.trial(maps)


def _add(total: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """In place; a function, so that no name holds the values while the next network computes."""
    for name, value in values.items():
        total[name] += value
