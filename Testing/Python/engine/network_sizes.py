"""Number of parameters of a network, computed without allocating them."""

from typing import Any

import torch

from conresnet.networks import build_network


def parameter_count(kind: str, arguments: dict[str, Any]) -> int:
    """Number of parameters of the network that ``build_network`` would build."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(kind, arguments).parameters())
