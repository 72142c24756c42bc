"""The network with its losses, as the loop takes it."""

from torch import Tensor, nn

from conresnet.networks import build_network
from conresnet_training.boundary import boundary_loss
from conresnet_training.losses import total_loss
from conresnet_training.plan import Plan


class SegmentationTraining(nn.Module):
    """The plan's network; called with a batch it returns what the batch costs."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.exclusive = plan.description.output.kind == "labels"
        description = plan.description.system.networks[0]
        self.residual_axis = description.arguments.get("residual_axis", "S")
        self.network = build_network(description.type, description.arguments)

    def forward(
        self, image: Tensor, target: Tensor, distances: Tensor | None = None, region_weight: float = 1.0
    ) -> dict[str, Tensor]:
        """The "loss" of a batch, and its parts by name.

        Args:
            image: (batch, channel, S, H, W).
            target: (batch, segments, S, H, W) of 0 and 1.
            distances: of the target's shape; see ``boundary.signed_distances``. With it the boundary loss is mixed in.
            region_weight: alpha of eq. 14.
        """
        outputs = self.network(image)
        losses = self.losses(outputs, target)
        if distances is None:
            return losses
        boundary = boundary_loss(self._probabilities(outputs["segmentation"].float()), distances)
        loss = region_weight * losses["loss"] + (1 - region_weight) * boundary
        return {**losses, "loss": loss, "boundary_loss": boundary}

    def losses(self, outputs: dict, target: Tensor) -> dict[str, Tensor]:
        """The "loss" of the network's outputs and its parts; what trains another network by this loop overrides it."""
        deep_weight = self.plan.training.deep_supervision
        return total_loss(outputs, target, self.exclusive, self.residual_axis, deep_weight)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(batch, segments, S, H, W)."""
        return logits.softmax(1)[:, 1:] if self.exclusive else logits.sigmoid()
