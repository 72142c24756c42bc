"""Networks of others, trained by our loop and run by our engine, so that a comparison differs in the network alone.

They take the place of a plan's network under a name of their own, which peers.py enters into the engine's table, in its
process only: the engine itself stays without MONAI.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from monai.networks.nets import DynUNet, SegResNet
from torch import Tensor, nn

from conresnet_training.losses import segmentation_loss
from conresnet_training.network_with_losses import SegmentationTraining
from conresnet_training.plan import Plan

SMALLEST_SIDE = 4
"""nnU-Net halves no axis below so many voxels."""

SMALLEST_SIDE_ALONE = 12
"""Nor one that has fewer, where it would be the only one."""

ANISOTROPY = 2
"""Nor one whose voxels are so many times longer than the shortest."""


class PeerNetwork(nn.Module):
    """A network that answers as ours do: a dict with "segmentation" and, in training, "deeper" logits, finest first.

    Args:
        multiple: voxels (S, H, W) of which the network takes whole multiples; others are padded by 0 and cut again.
    """

    provides = frozenset({"segmentation"})

    def __init__(self, network: nn.Module, multiple: Sequence[int]):
        super().__init__()
        self.network, self.multiple = network, tuple(multiple)

    def forward(self, x: Tensor, wanted: Collection[str] = ()) -> dict[str, Tensor | list[Tensor]]:
        """See ``ConResNet.forward``; nothing but the segmentation can be wanted, and it is always given."""
        size = x.shape[2:]
        missing = [-side % step for side, step in zip(size, self.multiple, strict=True)]
        padded = F.pad(x, [part for gap in reversed(missing) for part in (0, gap)])
        finest, *deeper = (logits[..., : size[0], : size[1], : size[2]] for logits in self._logits(padded))
        return {"segmentation": finest, "deeper": deeper} if deeper else {"segmentation": finest}

    def _logits(self, x: Tensor) -> Sequence[Tensor]:
        return [self.network(x)]


class DynUNetPeer(PeerNetwork):
    """MONAI's DynUNet as nnU-Net configures it: instance norm, leaky ReLU, strided convolutions, 32 to 320 features.

    Deep supervision is at every scale but the coarsest two, as in nnU-Net, where the coarsest decoder scale has
    weight 0.

    Args:
        strides, kernels: a triple a stage, as ``nnunet_stages`` gives them.
    """

    def __init__(
        self, input_channels: int, outputs: int, strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]
    ):
        scales = len(strides) - 3
        network = DynUNet(
            3,
            input_channels,
            outputs,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            deep_supervision=scales > 0,
            deep_supr_num=max(1, scales),
        )
        products = [1, 1, 1]
        for stride in strides:
            products = [a * b for a, b in zip(products, stride, strict=True)]
        super().__init__(network, products)

    def _logits(self, x: Tensor) -> Sequence[Tensor]:
        logits = self.network(x)
        # In training, (batch, scale, channel, S, H, W), all at the finest size.
        return logits.unbind(1) if logits.ndim == 6 else [logits]


class SegResNetPeer(PeerNetwork):
    """MONAI's SegResNet with the 32 features of its paper (Myronenko 2018), three halvings."""

    def __init__(self, input_channels: int, outputs: int):
        super().__init__(SegResNet(3, 32, input_channels, outputs), (8, 8, 8))


class PeerTraining(SegmentationTraining):
    """Our loop with the loss that is usual for peers: eq. 7 at every scale, weighed 1, 1/2, 1/4, ..., summing to 1."""

    def losses(self, outputs: dict, target: Tensor) -> dict[str, Tensor]:
        """The weighted "loss", and "segmentation_loss" of the finest scale alone."""
        scales = [outputs["segmentation"], *outputs.get("deeper", [])]
        parts = [segmentation_loss(logits.float(), target, self.exclusive) for logits in scales]
        weights = [0.5**scale for scale in range(len(parts))]
        total = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
        return {"loss": total, "segmentation_loss": parts[0]}


def nnunet_stages(window: Sequence[int], spacing: Sequence[float] | None) -> tuple[list[list[int]], list[list[int]]]:
    """(strides, kernels), a triple a stage, by nnU-Net's rule (Isensee et al., Nature Methods 2021).

    Each stage halves the axes that keep at least 4 voxels and whose voxels are less than twice as long as the
    shortest of those. Kernels are 3, but 1 along an axis whose voxels are still at least twice as long as the
    shortest; at the deepest stage always 3.
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


PEERS = {"dynunet": DynUNetPeer, "segresnet": SegResNetPeer}


def with_peer(plan: Plan, name: str) -> Plan:
    """``plan`` with another network in the place of its own, everything else as it is.

    Args:
        name: a key of ``PEERS``.
    """
    description = plan.description
    segments = len(description.output.segments)
    outputs = segments + 1 if description.output.kind == "labels" else segments
    arguments: dict = {"input_channels": len(description.inputs), "outputs": outputs}
    if name == "dynunet":
        strides, kernels = nnunet_stages(description.inference.window, description.preparation.spacing)
        arguments |= {"strides": strides, "kernels": kernels}
    network = {"type": name, "arguments": arguments, "weights": f"{name}.safetensors"}
    model = {**plan.model, "name": name, "title": name, "system": {"type": "single", "networks": [network]}}
    return plan.model_copy(update={"model": model})
