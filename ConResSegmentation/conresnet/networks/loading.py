"""A network with a model package's weights."""

from os import PathLike

import safetensors
import safetensors.torch
import torch
from torch import nn

from conresnet.errors import UserError
from conresnet.networks import build_network
from conresnet.package import ModelPackage, read_package
from conresnet.package.description import ModelDescription, Network
from conresnet.package.store import find_model


def load_network(package: str | PathLike | ModelPackage, index: int | None = None) -> nn.Module:
    """Build a network of a model package in eval mode, float32, on the CPU.

    Called with a (batch, channel, S, H, W) tensor it returns a dict of logits, see ``conresnet.networks.blocks``.

    Args:
        package: a package, or its path or name as ``conresnet.package.store.find_model`` accepts it.
        index: which of the system's networks, from 0; may be left out where there is only one.

    Raises:
        UserError: the package is not found, is damaged, or has other weights than its description says;
            ``network-ambiguous`` or ``network-not-found`` where ``index`` does not select one of its networks.
    """
    if not isinstance(package, ModelPackage):
        package = read_package(find_model(package))
    description = _network_named(package.description, index)
    source = f"{description.weights} of the model {package.description.name}"
    try:
        # First on the meta device, without memory: a description may ask for a network of any size, but its weights
        # cannot.
        planned = _planned(description)
        check_tensors(planned, package.tensor_shapes(description.weights), source)
        network = build_network(description.type, description.arguments)
    except ValueError as error:
        name = package.description.name
        raise UserError("network-unknown", model=name, reason=str(error).rstrip(".")) from error
    try:
        tensors = safetensors.torch.load(package.read_file(description.weights))
    except safetensors.SafetensorError as error:
        raise UserError("weights-damaged", source=source, reason=str(error)) from error
    network.load_state_dict(tensors)
    return network.float().eval()


def _network_named(description: ModelDescription, index: int | None) -> Network:
    networks, last = description.system.networks, len(description.system.networks) - 1
    if index is None and last:
        raise UserError("network-ambiguous", model=description.name, count=len(networks), last=last)
    if index is not None and not 0 <= index <= last:
        raise UserError("network-not-found", model=description.name, index=index, last=last)
    return networks[index or 0]


def _planned(description: Network) -> nn.Module:
    """The network without memory. Raises ValueError as ``build_network`` does, and for absurd sizes."""
    try:
        with torch.device("meta"):
            return build_network(description.type, description.arguments)
    except (RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network {description.type!r} would be too large ({reason}).") from error


def check_tensors(network: nn.Module, shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Refuse by name a tensor that is missing, superfluous or of another shape.

    Raises:
        UserError: ``weights-missing``, ``weights-left-over`` or ``weights-shape``.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError("weights-missing", source=source, tensor=name)
        if shapes[name] != shape:
            raise UserError("weights-shape", source=source, tensor=name, shape=shapes[name], expected=shape)
    for name in shapes:
        if name not in expected:
            raise UserError("weights-left-over", source=source, tensor=name)
