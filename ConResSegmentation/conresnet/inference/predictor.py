"""What answers for one window of a prepared case: one network, or several together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor, nn

from conresnet.inference.devices import Backend


class Predictor(Protocol):
    """Networks that together answer for one window.

    Attributes:
        networks: those whose convolutions tell how far a pass is.
        maps: names in ``conresnet.maps.MAPS`` that it can give.
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
