"""What answers for one window of a pass: one network, or the mean of several."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.inference.devices import Backend
from conresnet.inference.result_maps import disagreement, entropies
from conresnet.networks.blocks import fold_weight_standardization, segment_probabilities
from conresnet.networks.context_residual import AXES
from conresnet.networks.loading import load_network
from conresnet.package import ModelPackage
from conresnet.package.maps import MAPS, maps_from


class SingleNetwork:
    """A network made ready for inference.

    Attributes:
        networks: to be watched; here one.
        maps: names in ``conresnet.package.maps.MAPS`` that it can give.

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
        self.maps = maps_from(self._network.provides)

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        self._backend = backend
        backend.place(self._network)

    @torch.inference_mode()
    def predict(self, block: Tensor, maps: Collection[str], mirrors: bool = True) -> dict[str, Tensor]:
        """One window, see ``Predictor.predict``.

        Raises:
            UserError: "network-not-finite".
        """
        wanted = {"segmentation", *(MAPS[name].output for name in maps)}
        # A mirrored pass sees each slice's other neighbor, so that maps are those of the pass that is not mirrored.
        output = self._forward(block[None], wanted)
        probability = segment_probabilities(output.pop("segmentation").float(), self._exclusive)
        mirrorings = self._mirrorings if mirrors else []
        for axes in mirrorings:
            mirrored = self._forward(block[None].flip(axes), {"segmentation"})["segmentation"]
            probability += segment_probabilities(mirrored.float(), self._exclusive).flip(axes)
        result = {"probability": probability.div_(1 + len(mirrorings)) if mirrorings else probability}
        # They would be painted as background, and nobody would know why there is no segment.
        if not probability.isfinite().all():
            raise UserError("network-not-finite", model=self._title)
        for name in maps:
            if MAPS[name].output in output:
                value = output[MAPS[name].output].float()
                result[name] = value.sigmoid_() if MAPS[name].is_logit else value
        return {name: value[0].cpu() for name, value in result.items()}

    def trial(self, maps: Collection[str], mirrors: bool = True) -> None:
        """Make all that ``predict`` makes, on a window as small as can be."""
        self.predict(torch.zeros(self._input_channels, 16, 16, 16), maps, mirrors)

    def _forward(self, batch: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        with self._backend.computing():
            return self._network(self._backend.take(batch), wanted=wanted)


def _subsets(axes: list[int]) -> list[tuple[int, ...]]:
    """Every way to mirror, except not at all."""
    return list(chain.from_iterable(combinations(axes, count) for count in range(1, len(axes) + 1)))


class AveragedNetworks:
    """The networks of a package, one after the other over each window.

    Probabilities, residuals, attention and features are means over the networks. Only one network computes at a time
    and only the sum of the answers is kept, so that beyond their weights several take the memory of one. How much the
    networks disagree is measured in each window, and not between the windows.

    Attributes:
        networks: all of them.
        maps: those that every network can give, and "disagreement".

    Args:
        package: read for the description and the weights; not kept.

    Raises:
        UserError: what loading a network raises.
    """

    def __init__(self, package: ModelPackage):
        count = len(package.description.system.networks)
        self._members = [SingleNetwork(package, index) for index in range(count)]
        self.networks = [network for member in self._members for network in member.networks]
        self.maps = set.intersection(*(set(member.maps) for member in self._members)) | {"disagreement"}
        self._exclusive = package.description.output.kind == "labels"

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        for member in self._members:
            member.place(backend)

    @torch.inference_mode()
    def predict(self, block: Tensor, maps: Collection[str], mirrors: bool = True) -> dict[str, Tensor]:
        """One window, see ``Predictor.predict``."""
        first, *others = self._members
        total = self._answer(first, block, maps, mirrors)
        for member in others:
            _add(total, self._answer(member, block, maps, mirrors))
        mean = {name: value.div_(len(self._members)) for name, value in total.items()}
        if "disagreement" in mean:
            parts = (mean["probability"].numpy(), mean["disagreement"].numpy(), self._exclusive)
            mean["disagreement"] = torch.from_numpy(disagreement(*parts))[None]
        return mean

    def _answer(self, member: SingleNetwork, block: Tensor, maps: Collection[str], mirrors: bool) -> dict[str, Tensor]:
        """What a member says; its entropies take the place of the disagreement, which needs those of all members."""
        answer = member.predict(block, [name for name in maps if name != "disagreement"], mirrors)
        if "disagreement" in maps:
            answer["disagreement"] = torch.from_numpy(entropies(answer["probability"].numpy(), self._exclusive))
        return answer

    def trial(self, maps: Collection[str], mirrors: bool = True) -> None:
        """Make all that ``predict`` makes, on a window as small as can be."""
        for member in self._members:
            member.trial([name for name in maps if name != "disagreement"], mirrors)


def _add(total: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """In place; a function, so that no name holds the values while the next network computes."""
    for name, value in values.items():
        total[name] += value
