"""Where the coarse network of coarse-to-fine finds the segments of cases that it never saw.

The two networks of coarse-to-fine, in training.

The plan's network with its losses, as the loop takes it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.images.grid import Box
from conresnet.inference.results import small_components
from conresnet.inference.windows import MULTIPLE
from conresnet.networks import build_network
from conresnet.networks.blocks import segment_probabilities
from conresnet.networks.pyramid import Pyramid
from conresnet.package.description import Network
from conresnet.systems.coarse_to_fine import crop
from conresnet_training.data.preparation import TrainingCase
from conresnet_training.planning.plan import Plan
from conresnet_training.training.losses import boundary_loss, central_part, region_weight, total_loss
from conresnet_training.training.validation import found_segments, segment_mask, whole_case


class FoundBoxes:
    """The boxes in which the fine network will be used, and is validated in; called with a case.

    The true ones would flatter it: what the coarse network misses is lost, and what it finds too much widens the box.
    Each is computed once, since the coarse network learns no more.

    Args:
        network: the coarse one, on its device.
        window: voxels (S, H, W) that it sees at a time.
        segments: how many there are.
        exclusive: labels rather than regions.
        arguments: of the system, see ``conresnet.systems.coarse_to_fine.CoarseToFine``.
    """

    def __init__(
        self, network: nn.Module, window: Sequence[int], segments: int, exclusive: bool, arguments: Mapping[str, Any]
    ):
        self.network, self.window, self.segments, self.exclusive = network, window, segments, exclusive
        self.margin, self.smallest = arguments["margin"], arguments["smallest_component"]
        self._boxes: dict[str, Box | None] = {}

    def __call__(self, case: TrainingCase) -> Box | None:
        """The box (S, H, W) around all that is found, with the margin; None where nothing is."""
        if case.name not in self._boxes:
            device = next(self.network.parameters()).device
            box = whole_case(case)
            found = found_segments(self.network, case.image, box, self.window, self.segments, self.exclusive, device)
            kept = np.zeros(found.shape[-3:], bool)
            for segment in range(self.segments):
                mask = segment_mask(found, segment)
                if mask.any():
                    kept |= mask & ~small_components(mask, self.smallest)
            self._boxes[case.name] = crop(kept, self.margin) if kept.any() else None
        return self._boxes[case.name]


class CoarseThenFine(nn.ModuleList):
    """The coarse network, then the fine one, as one network that is trained in two stages (ResDSN paper, section 3).

    Neither sees what the other finds: the coarse one is trained on windows from the whole case, the fine one on windows
    around the segments. In segmenting, ``conresnet.systems`` puts them together.
    """

    stages = 2

    def __init__(self, coarse: nn.Module, fine: nn.Module):
        super().__init__([coarse, fine])
        self.stage = 0

    def begin_stage(self, stage: int) -> None:
        """Train the coarse network (0) or the fine one (1); the other stays as it is."""
        self.stage = stage
        for place, network in enumerate(self):
            network.requires_grad_(place == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CoarseThenFine":
        """See ``nn.Module.train``; what is not trained at this stage stays in eval mode."""
        super().train(mode)
        self[1 - self.stage].eval()
        return self

    def forward(self, x: Tensor, **options: Collection[str]) -> dict[str, Tensor | list[Tensor]]:
        """The outputs of the stage's network, see ``ConResNet.forward``."""
        return self[self.stage](x, **options)

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
        """Those of the stage's network."""
        return self[self.stage].auxiliary_weights(progress)


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
        how = self.exclusive, self.residual_axis, deep_weight, settings.loss, weights, settings.rare_labels
        return total_loss(outputs, target, *how)


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
