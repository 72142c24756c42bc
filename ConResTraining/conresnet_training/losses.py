"""The paper's losses (III-D). Each is a mean over samples, so that it does not depend on how a batch is split."""

import torch
import torch.nn.functional as F
from torch import Tensor

from conresnet.networks.context_residual import AXES
from conresnet.residual import context_residual

SMOOTH = 1e-5
SPATIAL = (2, 3, 4)


def dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 minus the soft Dice of eq. 7, a sample and a channel, averaged.

    Args:
        probabilities, target: (batch, channel, S, H, W).
    """
    overlap = 2 * (probabilities * target).sum(SPATIAL)
    total = (probabilities + target).sum(SPATIAL)
    return (1 - (overlap + SMOOTH) / (total + SMOOTH)).mean()


def segmentation_loss(logits: Tensor, target: Tensor, exclusive: bool) -> Tensor:
    """Eq. 7: cross entropy plus Dice.

    The cross entropy is a mean over voxels; eq. 7 as printed sums it, which would leave Dice without weight.

    Args:
        logits: (batch, outputs, S, H, W).
        target: (batch, segments, S, H, W) of 0 and 1.
        exclusive: labels (softmax over the background and the segments, paper V-D) rather than regions (a sigmoid a
            segment).
    """
    if exclusive:
        background = 1 - target.sum(1, keepdim=True)
        cross_entropy = F.cross_entropy(logits, torch.cat([background, target], 1))
        return cross_entropy + dice_loss(logits.softmax(1)[:, 1:], target)
    return F.binary_cross_entropy_with_logits(logits, target) + dice_loss(logits.sigmoid(), target)


def residual_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 8: binary cross entropy whose residual voxels weigh ``log(V / V_k)``, a mean over voxels.

    ``V`` counts a sample's voxels, ``V_k`` those of segment k's residual in it; a segment without any adds only its
    background term.

    Args:
        logits, target: (batch, segments, S, H, W), target of 0 and 1.
    """
    voxels = target[0, 0].numel()
    weight = torch.log(voxels / target.sum(SPATIAL, keepdim=True).clamp(min=1))
    # A residual that fills more than 1/e of the window must not weigh less than its background.
    weight = 1 + (weight.clamp(min=1) - 1) * target
    return F.binary_cross_entropy_with_logits(logits, target, weight)


def total_loss(
    outputs: dict, target: Tensor, exclusive: bool, residual_axis: str, deep_weight: float
) -> dict[str, Tensor]:
    """Segmentation loss (eq. 7) plus residual loss with deep supervision (eqs 8, 9 and, for several segments, 13).

    Args:
        outputs: the network's "segmentation" and, unless it is the baseline, "residuals".
        target: (batch, segments, S, H, W) of 0 and 1.
        exclusive: see ``segmentation_loss``.
        residual_axis: "S", "H" or "W".
        deep_weight: lambda of eq. 9; 0.5 in the paper.

    Returns:
        "loss" and its parts "segmentation_loss" and "residual_loss".
    """
    segmentation = segmentation_loss(outputs["segmentation"].float(), target, exclusive)
    losses = {"loss": segmentation, "segmentation_loss": segmentation}
    if "residuals" in outputs:
        edges = context_residual(target, AXES[residual_axis])
        finest, *deeper = (residual_loss(logits.float(), edges) for logits in outputs["residuals"])
        losses["residual_loss"] = finest + deep_weight * sum(deeper)
        losses["loss"] = segmentation + losses["residual_loss"]
    return losses
