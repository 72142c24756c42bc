"""What a network may be asked for, and what its logits mean.

Every network is called as ``network(x, wanted)`` with x (batch, channel, S, H, W) of any size, and returns a dict of
what is wanted and what it ``provides``:

- "segmentation": logits (batch, outputs, S, H, W).
- "auxiliary": a list of such logits for deep supervision; ``auxiliary_weights(progress)`` says what each one's loss
  weighs at that share (0..1) of the training.
- "residuals", "residual", "attention", "features": what a context residual decoder has beside, see
  ``conresnet.networks.context_residual_decoder``.

In training, logits may be smaller than x along an axis; then they cover its center, and ``answered(size)`` says how
many voxels of an x of that size they cover.

A network that is trained in more than one of ``stages`` has ``begin_stage(k)``.
"""

import torch
from torch import Tensor

TRAINING_OUTPUTS = ("segmentation", "auxiliary", "residuals")
"""What losses are taken of."""


def segment_probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """Probabilities of the segments (batch, segments, S, H, W), the background left out.

    Args:
        logits: (batch, outputs, S, H, W).
        exclusive: whether the outputs are background and labels (softmax) rather than regions (a sigmoid each).
    """
    return torch.softmax(logits, dim=1)[:, 1:] if exclusive else torch.sigmoid(logits)


def segment_count(outputs: int, exclusive: bool) -> int:
    """How many segments so many outputs mean.

    Raises:
        ValueError: there is none.
    """
    if outputs <= exclusive:
        raise ValueError(f"outputs must be more than {int(exclusive)}, so that there is a segment, not {outputs}.")
    return outputs - exclusive
