"""What a network may be asked for.

Every network is called as ``network(x, wanted)`` with x (batch, channel, S, H, W) of any size, and returns a dict of
what is wanted and what it ``provides``:

- "segmentation": logits (batch, outputs, S, H, W).
- "auxiliary": a list of such logits for deep supervision; ``auxiliary_weights(progress)`` says what each one's loss
  weighs.
- "residuals", "residual", "attention", "features": what a context residual decoder has beside, see
  ``conresnet.networks.context_residual_decoder``.
"""

TRAINING_OUTPUTS = ("segmentation", "auxiliary", "residuals")
"""What losses are taken of."""
