"""How many numbers a network has, without making them."""

from typing import Any

import torch

from conresnet.networks import build_network


def parameter_count(kind: str, arguments: dict[str, Any]) -> int:
    """The number of parameters of a network of ``build_network``."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(kind, arguments).parameters())
