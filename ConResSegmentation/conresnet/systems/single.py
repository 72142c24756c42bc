"""One network that answers for a window: the paper's own way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.inference.devices import Backend
from conresnet.networks.context_residual import AXES
from conresnet.networks.folding import fold_weight_standardization
from conresnet.networks.loading import load_network
from conresnet.networks.outputs import segment_probabilities
from conresnet.package import ModelPackage


class SingleNetwork:
    """A network made ready for inference.

    Attributes:
        networks: to be watched; here one.
        maps: names in ``conresnet.maps.MAPS`` that it can give.

    Args:
        package: read for the description and the weights; not kept.
        index: which of the package's networks.
        mirror_axes: over which the answer is averaged, of "S", "H", "W"; None is the model's.

    Raises:
        UserError: what loading raises.
    """

    def __init__(self, package: ModelPackage, index: int = 0, mirror_axes: Sequence[str] | None = None):
        description = package.description
        self._title = description.title
        self._network = fold_weight_standardization(load_network(package, index)).requires_grad_(False)
        self._exclusive = description.output.kind == "labels"
        mirror_axes = description.inference.mirror_axes if mirror_axes is None else mirror_axes
        self._mirrorings = _subsets([AXES[name] for name in mirror_axes])
        self._input_channels = description.channel_count
        self.networks = [self._network]
        self.maps = {"probability"} | ({"residual", "attention", "features"} & set(self._network.provides))

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        self._backend = backend
        backend.place(self._network)

    @torch.inference_mode()
    def predict(self, block: Tensor, maps: Collection[str]) -> dict[str, Tensor]:
        """One window, see ``Predictor.predict``.

        Raises:
            UserError: "network-not-finite".
        """
        wanted = {"segmentation"} | (set(maps) - {"probability"})
        # A mirrored pass sees each slice's other neighbor, so that maps are those of the pass that is not mirrored.
        output = self._forward(block[None], wanted)
        probability = segment_probabilities(output.pop("segmentation").float(), self._exclusive)
        for axes in self._mirrorings:
            mirrored = self._forward(block[None].flip(axes), {"segmentation"})["segmentation"]
            probability += segment_probabilities(mirrored.float(), self._exclusive).flip(axes)
        result = {"probability": probability.div_(1 + len(self._mirrorings)) if self._mirrorings else probability}
        # They would be painted as background, and nobody would know why there is no segment.
        if not probability.isfinite().all():
            raise UserError(
                "network-not-finite",
                f"The network of {self._title} answers with values that are not numbers; its training may have "
                "diverged, or this image has intensities unlike those it was trained on: check the image, or choose "
                "another model.",
                model=self._title,
            )
        for name, value in output.items():
            result[name] = value.float().sigmoid_() if name == "residual" else value.float()
        return {name: value[0].cpu() for name, value in result.items()}

    def trial(self, maps: Collection[str]) -> None:
        """Make all that ``predict`` makes, on a window as small as can be."""
        self.predict(torch.zeros(self._input_channels, 16, 16, 16), maps)

    def _forward(self, batch: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        with self._backend.computing():
            return self._network(self._backend.take(batch), wanted=wanted)


def _subsets(axes: list[int]) -> list[tuple[int, ...]]:
    """Every way to mirror, but for not at all."""
    return list(chain.from_iterable(combinations(axes, count) for count in range(1, len(axes) + 1)))
