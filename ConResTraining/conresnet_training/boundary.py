"""The boundary loss of Kervadec et al. (Medical Image Analysis 67, 2021), which eq. 14 of the paper mixes in."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

# alpha of eq. 14 falls from 1 to this.
SMALLEST_ALPHA = 0.01


def signed_distances(target: Tensor) -> Tensor:
    """How far each voxel lies from its segment's boundary, in voxels: negative inside, positive outside.

    As in the loss authors' code, voxels next to the boundary have 0 inside and 1 outside. A segment that is everywhere
    has no boundary and gets 0.

    In their code one that is nowhere gets 0 too; here we leave it. Such a window would be left to the other losses,
    which eq. 14 fades to 1 %, and the network would unlearn that nothing is there. All voxels lie outside such a
    segment, by an unknown distance: they get half the window's smallest side, about what they have in windows that
    hold the segment, so that neither kind of window outweighs the other.

    Args:
        target: (segments, S, H, W), boolean.

    Returns:
        float32 of the same shape.
    """
    return torch.from_numpy(np.stack([_signed_distance(segment.numpy()) for segment in target]))


def boundary_loss(probabilities: Tensor, distances: Tensor) -> Tensor:
    """Mean over voxels, segments and samples of probability times signed distance.

    Args:
        probabilities, distances: (batch, segments, S, H, W).
    """
    return (probabilities * distances).mean()


def region_weight(progress: float) -> float:
    """alpha of eq. 14 at that share (0 to 1) of the training: what the losses but the boundary loss weigh."""
    return 1 - progress * (1 - SMALLEST_ALPHA)


def _signed_distance(inside: np.ndarray) -> np.ndarray:
    if not inside.any():
        return np.full(inside.shape, min(inside.shape) / 2, np.float32)
    if inside.all():
        return np.zeros(inside.shape, np.float32)
    outward = distance_transform_edt(~inside)
    inward = distance_transform_edt(inside)
    return np.where(inside, 1 - inward, outward).astype(np.float32)
