"""What several benchmarks measure: Dice, peak memory, and the size of networks (ConResNet paper, Table VII)."""

import copy
import statistics
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conresnet.networks.blocks import TRAINING_OUTPUTS

TINY = (16, 16, 16)
STATUS = Path("/proc/self/status")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks; 0 if both are empty."""
    return 2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + np.count_nonzero(other))


def spread(values: Sequence[float], decimals: int = 2) -> str:
    """Median, and the lowest and highest of several values."""
    middle, low, high = (f"{value:.{decimals}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, including loaded libraries. Not available on Windows."""
    if STATUS.exists():
        # The value of resource starts at the peak of the process that started this one.
        return int(STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def multiply_adds(network: nn.Module, size: Sequence[int], wanted: Collection[str] = TRAINING_OUTPUTS) -> int:
    """Multiply-adds of the convolutions in one pass; the paper's "GFLOPs" are 10^9 of these.

    Args:
        network: a network from ``build_network``.
        size: (S, H, W) of the input.
        wanted: the outputs that are computed.
    """
    with FlopCounterMode(display=False) as counter:
        _pass_without_data(_without_data(network), size, wanted)
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
def _pass_without_data(network: nn.Module, size: Sequence[int], wanted: Collection[str] = TRAINING_OUTPUTS) -> None:
    network(torch.empty(1, network.input_channels, *size, device="meta"), wanted=wanted)
