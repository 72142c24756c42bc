"""MONAI's networks, trained by our loop and run by our engine, so that a comparison differs only in the network.

They replace a plan's network under names of their own. Only the benchmarks' processes register them: the engine itself
does not depend on MONAI.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch.nn.functional as F
from monai.networks.nets import BasicUNet, DynUNet, SegResNet
from torch import Tensor, nn

from conresnet.networks.blocks import TRAINING_OUTPUTS
from conresnet.package import Network, System
from conresnet_training.planning.plan import Plan

SMALLEST_SIDE = 4
"""nnU-Net halves no axis below this many voxels."""

SMALLEST_SIDE_ALONE = 12
"""Nor an axis with fewer voxels than this, if it would be the only one."""

ANISOTROPY = 2
"""Nor an axis whose voxels are this many times longer than the shortest."""


class PeerNetwork(nn.Module):
    """A network with the interface of ours, whose strides require multiples of a size.

    Args:
        network: MONAI's network.
        input_channels: number of images per case.
        multiple: sizes (S, H, W) must be multiples of these; others are padded with 0 and cropped again.
    """

    stages = 1

    def __init__(self, network: nn.Module, input_channels: int, multiple: Sequence[int]):
        super().__init__()
        self.network, self.input_channels, self.multiple = network, input_channels, tuple(multiple)
        self.provides = {"segmentation"}

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """See ``ConResNet.forward``. "auxiliary", finest first, is returned only in training, if there is any."""
        size = x.shape[2:]
        missing = [-side % step for side, step in zip(size, self.multiple, strict=True)]
        if all(side + gap == step for side, gap, step in zip(size, missing, self.multiple, strict=True)):
            # Instance norm cannot normalize a single voxel, which would be all of the coarsest scale.
            missing[0] += self.multiple[0]
        padded = F.pad(x, [part for gap in reversed(missing) for part in (0, gap)])
        finest, *auxiliary = (logits[..., : size[0], : size[1], : size[2]] for logits in self._logits(padded))
        return {"segmentation": finest} | ({"auxiliary": auxiliary} if auxiliary and "auxiliary" in wanted else {})

    def _logits(self, x: Tensor) -> Sequence[Tensor]:
        return [self.network(x)]


class DynUNetPeer(PeerNetwork):
    """MONAI's DynUNet as nnU-Net configures it: instance norm, leaky ReLU, strided convolutions, 32 to 320 features.

    Deep supervision is applied at every scale except the coarsest two, as in nnU-Net, where the coarsest decoder scale
    has weight 0.

    Args:
        strides, kernels: one triple per stage, from ``nnunet_stages``.
    """

    def __init__(
        self, input_channels: int, outputs: int, strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]
    ):
        auxiliary = max(0, len(strides) - 3)
        network = DynUNet(
            3,
            input_channels,
            outputs,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            deep_supervision=auxiliary > 0,
            deep_supr_num=max(1, auxiliary),
        )
        products = [1, 1, 1]
        for stride in strides:
            products = [a * b for a, b in zip(products, stride, strict=True)]
        super().__init__(network, input_channels, products)
        self.auxiliary = auxiliary
        if auxiliary:
            self.provides |= {"auxiliary"}

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
        """1/2, 1/4, ... relative to 1 at the finest scale, as in nnU-Net, which divides all by their sum."""
        return tuple(0.5**scale for scale in range(1, self.auxiliary + 1))

    def _logits(self, x: Tensor) -> Sequence[Tensor]:
        logits = self.network(x)
        # In training: (batch, scale, channel, S, H, W), all at the finest size.
        return logits.unbind(1) if logits.ndim == 6 else [logits]


class SegResNetPeer(PeerNetwork):
    """MONAI's SegResNet with the 32 features of its paper (Myronenko 2018) and three halvings."""

    def __init__(self, input_channels: int, outputs: int):
        super().__init__(SegResNet(3, 32, input_channels, outputs), input_channels, (8, 8, 8))


class BasicUNetPeer(PeerNetwork):
    """MONAI's BasicUNet with its defaults: 32 to 256 features, four halvings, instance norm."""

    def __init__(self, input_channels: int, outputs: int):
        super().__init__(BasicUNet(3, input_channels, outputs), input_channels, (16, 16, 16))


def nnunet_stages(window: Sequence[int], spacing: Sequence[float] | None) -> tuple[list[list[int]], list[list[int]]]:
    """(strides, kernels), one triple per stage, by nnU-Net's rule (Isensee et al., Nature Methods 2021).

    Each stage halves the axes that keep at least 4 voxels and whose voxels are less than twice as long as the shortest
    of those. Kernels are 3, except 1 along an axis whose voxels are still at least twice as long as the shortest, and
    always 3 at the deepest stage.
    """
    sides, lengths = list(window), list(spacing or (1, 1, 1))
    strides, kernels = [[1, 1, 1]], [_kernels(lengths)]
    while able := [axis for axis in range(3) if sides[axis] >= 2 * SMALLEST_SIDE]:
        shortest = min(lengths[axis] for axis in able)
        halved = [axis for axis in able if lengths[axis] < ANISOTROPY * shortest]
        if len(halved) == 1 and sides[halved[0]] < SMALLEST_SIDE_ALONE:
            break
        for axis in halved:
            sides[axis] = -(-sides[axis] // 2)
            lengths[axis] *= 2
        strides.append([2 if axis in halved else 1 for axis in range(3)])
        kernels.append([max(pair) for pair in zip(kernels[-1], _kernels(lengths), strict=True)])
    return strides, [*kernels[:-1], [3, 3, 3]]


def _kernels(lengths: Sequence[float]) -> list[int]:
    return [3 if length < ANISOTROPY * min(lengths) else 1 for length in lengths]


PEERS = {"dynunet": DynUNetPeer, "segresnet": SegResNetPeer, "basicunet": BasicUNetPeer}


def with_peer(plan: Plan, name: str) -> Plan:
    """``plan`` with another network in place of its own, and everything else unchanged.

    Args:
        name: a key of ``PEERS``.
    """
    description = plan.model
    segments = len(description.output.segments)
    outputs = segments + 1 if description.output.kind == "labels" else segments
    arguments: dict = {"input_channels": len(description.inputs), "outputs": outputs}
    if name == "dynunet":
        strides, kernels = nnunet_stages(description.inference.window, description.preparation.spacing)
        arguments |= {"strides": strides, "kernels": kernels}
    system = System("single", (Network(name, arguments, f"{name}.safetensors"),), {})
    return plan.model_copy(update={"model": replace(description, name=name, title=name, system=system)})
