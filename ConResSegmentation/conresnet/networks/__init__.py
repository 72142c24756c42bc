"""Networks by name. One file a paper; the blocks they share lie beside them.

How every one of them is called: ``conresnet.networks.blocks``.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from conresnet.networks.auto_context import AutoContext
from conresnet.networks.conresnet import ConResNet
from conresnet.networks.pyramid import Pyramid, UNet
from conresnet.networks.resdsn import ResDSN
from conresnet.networks.voxresnet import VoxResNet

__all__ = ["NETWORKS", "build_network"]


def build_network(kind: str, arguments: dict) -> nn.Module:
    """Make a network with fresh weights.

    Args:
        kind: a key of ``NETWORKS``.
        arguments: its constructor's keyword arguments.

    Raises:
        ValueError: an unknown name, an unknown argument or one out of range.
    """
    if kind not in NETWORKS:
        raise ValueError(f"There is no network {kind!r}; known are {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"The arguments of network {kind!r} do not fit: {error}.") from error


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # Its rounds are networks of this table, which its file cannot import, since this one imports it.
    "auto_context": partial(AutoContext, build_network),
    "conresnet": ConResNet,
    "pyramid": Pyramid,
    "resdsn": ResDSN,
    "unet": UNet,
    "voxresnet": VoxResNet,
}
