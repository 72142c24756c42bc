"""What is trained: the networks of a plan's system with their losses, as the training loop takes them, and their
starting weights.

The losses are those of ConResNet's paper (III-D), with which every network is trained; other papers' losses are parts
of them. Eq. 14 adds the boundary loss of Kervadec et al. (Medical Image Analysis 67, 2021). Each loss is a mean over
samples, so that it does not depend on how a batch is divided among processes.
"""

import copy
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from conresnet.errors import UserError
from conresnet.inference import MULTIPLE
from conresnet.networks import build_network
from conresnet.networks.blocks import segment_probabilities
from conresnet.networks.conresnet import AXES, context_residual
from conresnet.package import Network
from conresnet.systems import Stage, declared_system
from conresnet.systems.predictors import load_network
from conresnet_training.planning.plan import LossKind, Plan

SMOOTH = 1e-5
SPATIAL = (2, 3, 4)
# alpha of eq. 14 falls from 1 to this.
SMALLEST_ALPHA = 0.01


def dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 minus the soft Dice of eq. 7 per sample and channel, averaged; of two tensors (batch, channel, S, H, W)."""
    overlap = 2 * (probabilities * target).sum(SPATIAL)
    total = (probabilities + target).sum(SPATIAL)
    return (1 - (overlap + SMOOTH) / (total + SMOOTH)).mean()


def with_background(target: Tensor) -> Tensor:
    """``target`` of exclusive segments (batch, segments, S, H, W) with the background first."""
    return torch.cat([1 - target.sum(1, keepdim=True), target], 1)


def cross_entropy(logits: Tensor, target: Tensor, exclusive: bool, rare_labels: float = 0.0) -> Tensor:
    """The cross entropy of eq. 7 (VoxResNet's eq. 3, ResDSN's eq. 1), see ``segmentation_loss``, as a mean over voxels
    where the papers have a sum.
    """
    if exclusive and rare_labels:
        return torch.stack([_balanced(*one, rare_labels) for one in zip(logits, target, strict=True)]).mean()
    if exclusive:
        return F.cross_entropy(logits, with_background(target))
    return F.binary_cross_entropy_with_logits(logits, target)


def _balanced(logits: Tensor, target: Tensor, rare_labels: float) -> Tensor:
    """The mean cross entropy of one sample (outputs, S, H, W) whose voxels have the weight ``V_k ** -rare_labels``."""
    shares = with_background(target[None])
    # Unlike torch.bincount, a sum of 0 and 1 does not wait for a GPU.
    counts = shares.sum((0, *SPATIAL), dtype=torch.float32)
    return F.cross_entropy(logits[None], shares.argmax(1), counts.clamp(min=1).to(logits.dtype) ** -rare_labels)


def segmentation_loss(
    logits: Tensor, target: Tensor, exclusive: bool, kind: LossKind = "cross_entropy_dice", rare_labels: float = 0.0
) -> Tensor:
    """Loss of one segmentation: cross entropy plus Dice by eq. 7, or one of them alone as in other papers.

    Since the cross entropy is a mean over voxels, Dice keeps a weight; in the sum that eq. 7 prints it would have none.

    In a window without any voxel of a segment, that segment's Dice loss is always about 1, with almost no
    gradient; only the cross entropy keeps the network from finding it there. Dice alone therefore includes the
    background as a class, as the pyramid's eq. 1 does (its K = 8 are seven organs "plus background"). Regions have no
    background class, so Dice alone learns nothing from such windows.

    Args:
        logits: (batch, outputs, S, H, W).
        target: (batch, segments, S, H, W) of 0 and 1.
        exclusive: labels (softmax over the background and the segments, paper V-D) rather than regions (one sigmoid per
            segment).
        kind: the sum, or one of its parts.
        rare_labels: 0 to 1; in the cross entropy of labels, a voxel of a label (including the background) that has V_k
            voxels in the sample has the weight ``V_k ** -rare_labels``: at 0 all voxels count the same, at 1 all
            labels.
    """
    if kind == "dice" and exclusive:
        return dice_loss(torch.softmax(logits, 1), with_background(target))
    parts = []
    if kind != "dice":
        parts.append(cross_entropy(logits, target, exclusive, rare_labels))
    if kind != "cross_entropy":
        parts.append(dice_loss(segment_probabilities(logits, exclusive), target))
    return sum(parts)


def central_part(volume: Tensor, size: Sequence[int]) -> Tensor:
    """The center of (batch, channel, S, H, W) that logits of the spatial ``size`` cover."""
    starts = [(side - covered) // 2 for side, covered in zip(volume.shape[2:], size, strict=True)]
    return volume[(..., *(slice(start, start + side) for start, side in zip(starts, size, strict=True)))]


def residual_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 8: binary cross entropy, mean over voxels, in which residual voxels have the weight ``log(V / V_k)``.

    ``V`` is the number of a sample's voxels, ``V_k`` that of segment k's residual in it; a segment without any adds
    only its background term. The weight is never below 1. Both tensors are (batch, segments, S, H, W).
    """
    voxels = target[0, 0].numel()
    weight = torch.log(voxels / target.sum(SPATIAL, keepdim=True).clamp(min=1))
    # The paper has no such limit: a residual that fills more than 1/e of the window would weigh less than its
    # background.
    weight = 1 + (weight.clamp(min=1) - 1) * target
    return F.binary_cross_entropy_with_logits(logits, target, weight)


def total_loss(
    outputs: dict,
    target: Tensor,
    exclusive: bool,
    residual_axis: str,
    deep_weight: float,
    kind: LossKind = "cross_entropy_dice",
    auxiliary_weights: Sequence[float] = (),
    rare_labels: float = 0.0,
) -> dict[str, Tensor]:
    """Segmentation loss (eq. 7), also of auxiliary outputs, plus residual loss (eqs 8 and 9; for several segments 13).

    Segmentation logits may be smaller than the target; they then cover its center.

    Args:
        outputs: the network's "segmentation" and, if it has them, "auxiliary" (a list of segmentations for deep
            supervision) and "residuals" (finest first).
        target: (batch, segments, S, H, W) of 0 and 1.
        exclusive, kind, rare_labels: see ``segmentation_loss``.
        residual_axis: "S", "H" or "W".
        deep_weight: lambda of eq. 9 for the coarser residuals; 0.5 in the paper.
        auxiliary_weights: weight of each auxiliary output relative to the segmentation.

    Returns:
        "loss" and its parts "segmentation_loss", "auxiliary_loss" (weighted) and "residual_loss".
    """

    def cost(logits: Tensor) -> Tensor:
        part = central_part(target, logits.shape[2:])
        return segmentation_loss(logits.float(), part, exclusive, kind, rare_labels)

    losses = {"segmentation_loss": cost(outputs["segmentation"])}
    if "auxiliary" in outputs:
        weighed = zip(auxiliary_weights, outputs["auxiliary"], strict=True)
        losses["auxiliary_loss"] = sum(weight * cost(logits) for weight, logits in weighed)
    if "residuals" in outputs:
        edges = context_residual(target, AXES[residual_axis])
        if outputs["residuals"][0].shape[1] == 1:
            # One residual for all segments together: where any of them begins or ends.
            edges = edges.amax(1, keepdim=True)
        finest, *deeper = (residual_loss(logits.float(), edges) for logits in outputs["residuals"])
        losses["residual_loss"] = finest + deep_weight * sum(deeper)
    return {"loss": sum(losses.values()), **losses}


def signed_distances(target: Tensor) -> Tensor:
    """Signed distance of each voxel from the boundary of a segment, in voxels: negative inside, positive outside.

    Args:
        target: bool (segments, S, H, W), the voxels of each segment.

    Returns:
        float32 of the same shape.

    As in the authors' code, voxels next to the boundary have 0 inside and 1 outside. A segment that fills the window
    has no boundary and gets 0.

    In their code an absent segment gets 0 too; here it does not. Such a window would be left to the other losses, which
    eq. 14 fades to 1%, and the network would unlearn that nothing is there. All voxels are outside such a segment, at
    an unknown distance: they get half the window's smallest side, about the mean in windows that contain the segment,
    so that neither kind of window outweighs the other.
    """
    return torch.from_numpy(np.stack([_signed_distance(segment.numpy()) for segment in target]))


def boundary_loss(probabilities: Tensor, distances: Tensor) -> Tensor:
    """Mean over voxels, segments and samples of probability times signed distance, both (batch, segments, S, H, W)."""
    return (probabilities * distances).mean()


def region_weight(progress: float) -> float:
    """alpha of eq. 14, the weight of all losses but the boundary loss, at a share (0 to 1) of the training."""
    return 1 - progress * (1 - SMALLEST_ALPHA)


def _signed_distance(inside: np.ndarray) -> np.ndarray:
    if not inside.any():
        return np.full(inside.shape, min(inside.shape) / 2, np.float32)
    if inside.all():
        return np.zeros(inside.shape, np.float32)
    outward = distance_transform_edt(~inside)
    inward = distance_transform_edt(inside)
    return np.where(inside, 1 - inward, outward).astype(np.float32)


class StagedNetworks(nn.ModuleList):
    """The networks of a system, in the order of their stages, as one module. Each has its own stage and does not see
    the others; when segmenting, ``conresnet.systems`` puts them together.
    """

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__(networks)
        self.stages, self.stage = len(self), 0

    def begin_stage(self, stage: int) -> None:
        """Train the network with this index; the others stay as they are."""
        self.stage = stage
        for place, network in enumerate(self):
            network.requires_grad_(place == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "StagedNetworks":
        """See ``nn.Module.train``; networks of other stages stay in eval mode."""
        super().train(mode)
        for place, network in enumerate(self):
            if place != self.stage:
                network.eval()
        return self

    def forward(self, x: Tensor, **options: Collection[str]) -> dict[str, Tensor | list[Tensor]]:
        """The outputs of the stage's network, see ``conresnet.networks.blocks``."""
        return self[self.stage](x, **options)

    def auxiliary_weights(self, progress: float) -> tuple[float, ...]:
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
        self.exclusive = plan.model.output.kind == "labels"
        system = plan.model.system
        self.residual_axis = system.networks[0].arguments.get("residual_axis", "S")
        #: What each stage of the system trains; a system of one stage is trained in those of its network.
        self.system_stages: Sequence[Stage] = declared_system(system.type).stages(system.arguments)
        networks = [_built(network) for network in system.networks]
        self.network = StagedNetworks(networks) if len(networks) > 1 else networks[0]
        self.stages = self.network.stages

    def forward(
        self, image: Tensor, target: Tensor, distances: Tensor | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The "loss" of a batch, and its parts by name.

        Args:
            image: (batch, channel, S, H, W).
            target: (batch, segments, S, H, W) of 0 and 1.
            distances: of the target's shape; see ``signed_distances``. With it the boundary loss is mixed in.
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
        """The size (S, H, W) of the central part of a window, on which the losses are computed."""
        network = self.network
        return network.answered(window) if hasattr(network, "answered") else tuple(window)

    def losses(self, outputs: dict, target: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
        """The "loss" of the network's outputs and its parts, see ``total_loss``."""
        settings = self.plan.training
        return total_loss(
            outputs,
            target,
            self.exclusive,
            self.residual_axis,
            deep_weight=settings.deep_supervision,
            kind=settings.loss,
            auxiliary_weights=self.network.auxiliary_weights(progress) if "auxiliary" in outputs else (),
            rare_labels=settings.rare_labels,
        )


class WeightAverage:
    """Moving average of a network's parameters and buffers, steadier than those of any one step.

    ``decay`` of the average is kept per step. At first, less of it is kept, because the random initial weights would
    otherwise dominate it for a long time: (1 + n) / (10 + n) after n steps of the stage. PyTorch's ``AveragedModel``
    would wait for the GPU at every step, to read their number.

    Attributes:
        module: the network with the averaged weights.
        made: steps of the stage that it averages.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.module, self.decay, self.made = copy.deepcopy(network), decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after another step; the first time, they replace those there were."""
        kept = min(self.decay, (1 + self.made) / (10 + self.made)) if self.made else 0.0
        averages, values = ([*part.parameters(), *part.buffers()] for part in (self.module, network))
        pairs = list(zip(averages, values, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        get_ema_multi_avg_fn(kept)(*map(list, zip(*floats, strict=True)), None)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
        self.made += 1


def begin_with(model: str, network: nn.Module) -> list[str]:
    """Give ``network`` the weights of a model of one network (its name or path); returns the layers that start anew.

    If ``network`` contains several of the model's kind, such as the rounds of auto-context or a coarse and a fine one,
    each starts with them. A layer made for other channels or segments may have another shape; it keeps its own weights.

    Raises:
        UserError: ``start-does-not-fit`` if most of the tensors do not fit, or any of loading the model.
    """
    given = load_network(model)
    parts = {name: part for name, part in network.named_modules() if type(part) is type(given)}
    own, fitting = network.state_dict(), {}
    for name, tensor in given.state_dict().items():
        for place in parts:
            whole = f"{place}.{name}" if place else name
            if whole in own and own[whole].shape == tensor.shape:
                fitting[whole] = tensor
    if 2 * len(fitting) < len(own):
        raise UserError("start-does-not-fit", model=model, fitting=len(fitting), tensors=len(own))
    network.load_state_dict({**own, **fitting})
    return list(dict.fromkeys(name.rpartition(".")[0] for name in own if name not in fitting))


def stages_of(plan: Plan) -> int:
    """How many parts of the plan's system are trained one after the other. Raises UserError ``plan-network-wrong``."""
    with torch.device("meta"):
        return SegmentationTraining(plan).stages


def steps_of_run(plan: Plan) -> int:
    """The steps of all stages together. Raises UserError ``plan-network-wrong``."""
    return stages_of(plan) * plan.training.steps


def coarsest_step(plan: Plan) -> int:
    """How many voxels of the window are one at the coarsest scale of the plan's network. Raises as ``stages_of``."""
    with torch.device("meta"):
        parts = SegmentationTraining(plan).network.modules()
    return max([MULTIPLE, *(part.multiple for part in parts if isinstance(getattr(part, "multiple", None), int))])


def _built(network: Network) -> nn.Module:
    try:
        return build_network(network.type, network.arguments)
    except ValueError as error:
        raise UserError("plan-network-wrong", reason=str(error).rstrip(".")) from error
