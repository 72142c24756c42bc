"""The plan's network with its losses, as the loop takes it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.inference.windows import MULTIPLE
from conresnet.networks import build_network
from conresnet.networks.outputs import segment_probabilities
from conresnet.networks.pyramid import Pyramid
from conresnet.package.description import Network
from conresnet_training.boundary import boundary_loss, region_weight
from conresnet_training.coarse_then_fine import CoarseThenFine
from conresnet_training.losses import central_part, total_loss
from conresnet_training.plan import Plan


class SegmentationTraining(nn.Module):
    """What a plan trains; called with a batch it returns what the batch costs.

    Attributes:
        network: the plan's network, or those of its system as one that is trained in stages.
        stages: how many parts of it are trained one after the other, each for the plan's steps.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.exclusive = plan.description.output.kind == "labels"
        system = plan.description.system
        self.residual_axis = system.networks[0].arguments.get("residual_axis", "S")
        networks = [_built(network) for network in system.networks]
        self.network = CoarseThenFine(*networks) if system.type == "coarse_to_fine" else networks[0]
        self.stages = self.network.stages

    def forward(
        self, image: Tensor, target: Tensor, distances: Tensor | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The "loss" of a batch, and its parts by name.

        Args:
            image: (batch, channel, S, H, W).
            target: (batch, segments, S, H, W) of 0 and 1.
            distances: of the target's shape; see ``boundary.signed_distances``. With it the boundary loss is mixed in.
            progress: share (0 to 1) of the stage's steps that were made, on which some weights depend.
        """
        outputs = self.network(image)
        losses = self.losses(outputs, target, progress)
        if distances is None:
            return losses
        logits = outputs["segmentation"].float()
        probabilities = segment_probabilities(logits, self.exclusive)
        boundary = boundary_loss(probabilities, central_part(distances, logits.shape[2:]))
        alpha = region_weight(progress)
        return {**losses, "loss": alpha * losses["loss"] + (1 - alpha) * boundary, "boundary_loss": boundary}

    def answered(self, window: Sequence[int]) -> tuple[int, int, int]:
        """The size (S, H, W) of the central part of a window that the losses are taken of."""
        network = self.network
        return network.answered(window) if hasattr(network, "answered") else tuple(window)

    def losses(self, outputs: dict, target: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
        """The "loss" of the network's outputs and its parts, see ``losses.total_loss``."""
        settings = self.plan.training
        weights = self.network.auxiliary_weights(progress) if "auxiliary" in outputs else ()
        deep_weight = settings.deep_supervision
        return total_loss(outputs, target, self.exclusive, self.residual_axis, deep_weight, settings.loss, weights)


def stages_of(plan: Plan) -> int:
    """How many parts of the plan's system are trained one after the other. Raises UserError ``network-unknown``."""
    with torch.device("meta"):
        return SegmentationTraining(plan).stages


def steps_of_run(plan: Plan) -> int:
    """The steps of all stages together. Raises UserError ``network-unknown``."""
    return stages_of(plan) * plan.training.steps


def coarsest_step(plan: Plan) -> int:
    """How many voxels of the window are one where the plan's network sees it coarsest. Raises as ``stages_of``."""
    with torch.device("meta"):
        parts = SegmentationTraining(plan).network.modules()
    return MULTIPLE * max([2 ** (len(part.levels) - 1) for part in parts if isinstance(part, Pyramid)], default=1)


def _built(network: Network) -> nn.Module:
    try:
        return build_network(network.type, network.arguments)
    except ValueError as error:
        raise UserError("network-unknown", f"The plan's network cannot be built: {error}") from error
