"""The networks of a package: loaded with their weights, as predictors for the windows of a pass, and as a system."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from os import PathLike

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.inference.devices import Backend
from conresnet.inference.results import disagreement, entropies
from conresnet.networks import build_network, network_class, unknown_network
from conresnet.networks.blocks import fold_weight_standardization, segment_probabilities
from conresnet.networks.conresnet import AXES
from conresnet.package import ModelDescription, Network
from conresnet.package.outputs import MAPS
from conresnet.package.reader import ModelPackage
from conresnet.package.store import read_model
from conresnet.systems import System, check_system


def load_network(package: str | PathLike | ModelPackage, index: int | None = None) -> nn.Module:
    """Build a network of a model package in eval mode, float32, on the CPU.

    Called with a (batch, channel, S, H, W) tensor it returns a dict of logits, see ``conresnet.networks.blocks``.

    Args:
        package: as for ``conresnet.package.store.read_model``.
        index: index of the network in the system, from 0; may be omitted if there is only one.

    Raises:
        UserError: the package is not found, is damaged, or has other weights than its description says;
            ``network-ambiguous`` or ``network-not-found`` where ``index`` does not select one of its networks.
    """
    package = read_model(package)
    description = _network_named(package.description, index)
    source = f"{description.weights} of the model {package.description.name}"
    try:
        # First on the meta device, without memory: a description may specify a network of any size, but its weights
        # cannot.
        planned = _planned(description)
        _check_tensors(planned, package.tensor_shapes(description.weights), source)
        network = build_network(description.type, description.arguments)
    except ValueError as error:
        code = "network-wrong" if _is_available(description) else "network-unknown"
        raise UserError(code, model=package.description.name, reason=str(error).rstrip(".")) from error
    try:
        tensors = safetensors.torch.load(package.read_file(description.weights))
    except safetensors.SafetensorError as error:
        raise UserError("weights-damaged", source=source, reason=str(error)) from error
    expected = network.state_dict()
    for name, tensor in tensors.items():
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise UserError("weights-type", source=source, tensor=name)
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError("weights-not-finite", source=source, tensor=name)
    network.load_state_dict(tensors)
    return network.float().eval()


def _network_named(description: ModelDescription, index: int | None) -> Network:
    networks, last = description.system.networks, len(description.system.networks) - 1
    if index is None and last:
        raise UserError("network-ambiguous", model=description.name, count=len(networks), last=last)
    if index is not None and not 0 <= index <= last:
        raise UserError("network-not-found", model=description.name, index=index, last=last)
    return networks[index or 0]


def _is_available(description: Network) -> bool:
    """Whether a package here provides the network, so that only its arguments can be wrong."""
    try:
        network_class(description.type)
    except ValueError:
        return False
    return not unknown_network(description.type, description.arguments)


def _planned(description: Network) -> nn.Module:
    """The network without memory. Raises ValueError as ``build_network`` does, and for absurd sizes."""
    try:
        with torch.device("meta"):
            return build_network(description.type, description.arguments)
    except (RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network {description.type!r} would be too large ({reason}).") from error


def _check_tensors(network: nn.Module, shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Refuse by name a tensor that is missing, superfluous or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError("weights-missing", source=source, tensor=name)
        if shapes[name] != shape:
            raise UserError("weights-shape", source=source, tensor=name, shape=shapes[name], expected=shape)
    for name in shapes:
        if name not in expected:
            raise UserError("weights-left-over", source=source, tensor=name)


class Predictor:
    """One network of a package, or several whose outputs are averaged, made ready to predict windows.

    Probabilities, residuals, attention and features are means over the networks. Only one network computes at a time
    and only the sum of the outputs is kept, so apart from their weights, several need no more memory than one. How
    much the networks disagree, also a map, is measured in each window, and not between the windows.

    Args:
        package: provides the description and the weights; not kept.
        indices: which of the package's networks; None uses all.
        mirror_axes: axes for mirrored copies, of "S", "H", "W"; None uses the model's.

    Attributes:
        title: the model's.
        networks: on the CPU, in float32.
        placed: the networks on the device; their convolutions are used to measure progress.

    Raises:
        UserError: as ``load_network``.
    """

    def __init__(
        self, package: ModelPackage, indices: Iterable[int] | None = None, mirror_axes: Sequence[str] | None = None
    ):
        description = package.description
        self.title = description.title
        indices = range(len(description.system.networks)) if indices is None else indices
        loaded = (load_network(package, index) for index in indices)
        self.networks = [fold_weight_standardization(network).requires_grad_(False) for network in loaded]
        self._exclusive = description.output.kind == "labels"
        mirror_axes = description.inference.mirror_axes if mirror_axes is None else mirror_axes
        axes = [AXES[name] for name in mirror_axes]
        self._mirrorings = [subset for count in range(1, len(axes) + 1) for subset in combinations(axes, count)]
        # Only if segments are swapped, because indexing copies all of them.
        self._mirrored_segments = description.output.mirrored if description.output.swapped_segments else None
        self._input_channels = description.channel_count
        self._backend: Backend | None = None
        self.placed: Sequence[nn.Module] = self.networks

    def place(self, backend: Backend) -> None:
        """Move the networks to a device, in its precision, unless they are already there."""
        if backend != self._backend:
            # Never keep two copies at once: one may fill the GPU's memory.
            self._backend, self.placed = None, []
            self.placed = [backend.placed(network) for network in self.networks]
            self._backend = backend

    def copies(self, mirrors: bool = True) -> int:
        """Number of times a network processes a window: once, plus once per mirrored copy."""
        return 1 + len(self._mirrorings) * mirrors

    @torch.inference_mode()
    def predict(
        self, windows: Tensor, maps: Collection[str], mirrors: bool = True, batch: int = 1
    ) -> list[dict[str, Tensor]]:
        """Predict several windows.

        Args:
            windows: (N, C, S, H, W) float32 on the CPU.
            maps: maps to compute along with the probability.
            mirrors: whether to average over mirrored windows, as the model asks for.
            batch: number of windows and mirrored copies that a network processes at once.

        Returns:
            For each window (c, S, H, W) float32 by name: always "probability", one component per segment (without the
            background where segments exclude each other); "residual" as probabilities; "attention" and "features" as
            the networks return them.
        """
        first, *others = self.placed
        totals = self._answers(first, windows, maps, mirrors, batch)
        for network in others:
            _add(totals, self._answers(network, windows, maps, mirrors, batch))
        for total in totals:
            for value in total.values() if others else ():
                value /= len(self.placed)
            if "disagreement" in total:
                parts = total["probability"].cpu().numpy(), total["disagreement"].numpy(), self._exclusive
                total["disagreement"] = torch.from_numpy(disagreement(*parts))[None]
        return totals

    def trial(self, maps: Collection[str], mirrors: bool, windows: int, batch: int) -> None:
        """Run ``predict`` on the smallest possible windows."""
        maps = [name for name in maps if name != "disagreement"]
        self.predict(torch.zeros(windows, self._input_channels, 16, 16, 16), maps, mirrors, batch)

    def _answers(
        self, network: nn.Module, windows: Tensor, maps: Collection[str], mirrors: bool, batch: int
    ) -> list[dict[str, Tensor]]:
        """Output of one network, with its entropies in place of the disagreement, which requires those of all."""
        wanted = {"segmentation", *(MAPS[name].output for name in maps)} - {MAPS["disagreement"].output}
        shown = self._backend.take(windows)
        mirrorings = [(), *(self._mirrorings if mirrors else [])]
        copies = [(axes, index) for axes in mirrorings for index in range(len(windows))]
        answers: list[dict[str, Tensor]] = []
        for first in range(0, len(copies), batch):
            part = copies[first : first + batch]
            # In a mirrored copy, each slice follows its other neighbor, so maps come from the original window only.
            output = self._forward(network, shown, part, wanted if () in dict(part) else {"segmentation"})
            probability = segment_probabilities(output.pop("segmentation").float(), self._exclusive)
            for row, (axes, index) in enumerate(part):
                if axes:
                    answers[index]["probability"] += self._mirrored_back(probability[row], axes)
                else:
                    answers.append({"probability": probability[row], **_maps(output, row, maps)})
        for answer in answers:
            if len(mirrorings) > 1:
                answer["probability"] /= len(mirrorings)
            if "disagreement" in maps:
                own = entropies(answer["probability"].cpu().numpy(), self._exclusive)
                answer["disagreement"] = torch.from_numpy(own)
        return answers

    def _mirrored_back(self, probability: Tensor, axes: Sequence[int]) -> Tensor:
        """The output for a mirrored copy, flipped back to match the original window."""
        back = probability.flip([axis - 1 for axis in axes])
        # Mirrored along two axes, the copy is only rotated.
        return back[self._mirrored_segments] if self._mirrored_segments and len(axes) % 2 else back

    def _forward(
        self, network: nn.Module, shown: Tensor, copies: Sequence[tuple], wanted: Collection[str]
    ) -> dict[str, Tensor]:
        images = torch.cat([shown[index : index + 1].flip(axes) for axes, index in copies])
        with self._backend.computing():
            return network(images.contiguous(memory_format=self._backend.memory_format), wanted=wanted)


def _maps(output: dict[str, Tensor], row: int, names: Collection[str]) -> dict[str, Tensor]:
    """The maps in a network's output for one window of a batch."""
    values = {name: output[MAPS[name].output][row].float() for name in names if MAPS[name].output in output}
    return {name: value.sigmoid_() if MAPS[name].is_logit else value for name, value in values.items()}


def _add(totals: list[dict[str, Tensor]], answers: list[dict[str, Tensor]]) -> None:
    """Add in place; a function, so that no variable keeps the outputs in memory while the next network computes."""
    for total, answer in zip(totals, answers, strict=True):
        for name, value in answer.items():
            total[name] += value


def build_system(package: ModelPackage) -> System:
    """The system of a package with its weights, on the CPU. Raises UserError as ``check_system``, or as for loading."""
    system = check_system(package.description)(package)
    system.predictors = system.predictors or [Predictor(package)]
    return system
