"""The inter-slice context residual: one definition for images, labels and features."""

import numpy as np


def context_residual(values, axis: int):
    """Absolute difference of adjacent slices (eq. 4 without its sigmoid; eq. 13 for label masks).

    The first slice has no predecessor and is 0, which "pads the first slice" of the paper and keeps the shape.

    Args:
        values: numpy array or torch tensor of any shape and type; unsigned integers do not wrap around.
        axis: the dimension that runs across slices.

    Returns:
        The same kind, shape and type as ``values``; differentiable for tensors.
    """
    later = (slice(None),) * (axis % values.ndim) + (slice(1, None),)
    earlier = (slice(None),) * (axis % values.ndim) + (slice(None, -1),)
    if isinstance(values, np.ndarray):
        residual = np.zeros_like(values)
        residual[later] = np.maximum(values[later], values[earlier])
        residual[later] -= np.minimum(values[later], values[earlier])
        return residual
    import torch  # here, because Slicer's process uses the numpy half without torch

    first = torch.zeros_like(values.narrow(axis, 0, 1))
    return torch.cat([first, (values[later] - values[earlier]).abs()], dim=axis)
