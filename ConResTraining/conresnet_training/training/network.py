"""The networks of a plan's system with their losses, as the training loop takes them, and their starting weights."""

import copy
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from conresnet.errors import UserError
from conresnet.inference.windows import MULTIPLE
from conresnet.networks import build_network
from conresnet.networks.blocks import segment_probabilities
from conresnet.package.description import Network
from conresnet.systems import Stage, declared_system
from conresnet.systems.predictors import load_network
from conresnet_training.planning.plan import Plan
from conresnet_training.training.losses import boundary_loss, central_part, region_weight, total_loss


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
            distances: of the target's shape; see ``losses.signed_distances``. With it the boundary loss is mixed in.
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
        """The "loss" of the network's outputs and its parts, see ``losses.total_loss``."""
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
