"""Parameters and multiply-adds of a network (ConResNet paper, Table VII)."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conresnet.networks.blocks import TRAINING_OUTPUTS

TINY = (16, 16, 16)


def multiply_adds(network: nn.Module, size: Sequence[int]) -> int:
    """Multiply-adds of the convolutions in one pass; the paper's "GFLOPs" are 10^9 of these.

    Args:
        network: a network from ``build_network``.
        size: (S, H, W) of the input.
    """
    with FlopCounterMode(display=False) as counter:
        _pass_without_data(_without_data(network), size)
    return counter.get_total_flops() // 2


def acting_parameters(network: nn.Module) -> int:
    """Number of parameters on which the segmentation, auxiliary or residual outputs depend.

    Parameters that the network has but never uses are not counted.
    """
    network = _without_data(network)
    acting: set[nn.Parameter] = set()
    for module in network.modules():
        module.register_forward_hook(lambda module, *_: acting.update(module.parameters(recurse=False)))
    _pass_without_data(network, TINY)
    return sum(parameter.numel() for parameter in acting)


def _without_data(network: nn.Module) -> nn.Module:
    """A copy on the device "meta", where torch computes only shapes."""
    return copy.deepcopy(network).to("meta").eval()


@torch.no_grad()
def _pass_without_data(network: nn.Module, size: Sequence[int]) -> None:
    network(torch.empty(1, network.input_channels, *size, device="meta"), wanted=TRAINING_OUTPUTS)
