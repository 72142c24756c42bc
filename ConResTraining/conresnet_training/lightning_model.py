"""The network, its losses, its optimizer and its validation, as Lightning takes them."""

import lightning
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from conresnet.networks import build_network
from conresnet_training.losses import total_loss
from conresnet_training.plan import Plan

POLYNOMIAL_POWER = 0.9


class SegmentationTraining(lightning.LightningModule):
    """Trains the plan's network by Adam with the paper's polynomial schedule (IV-B, eq. 10)."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.segments = [segment.name for segment in plan.description.output.segments]
        self.exclusive = plan.description.output.kind == "labels"
        description = plan.description.system.networks[0]
        self.residual_axis = description.arguments.get("residual_axis", "S")
        self.network = build_network(description.type, description.arguments)
        self._dice: list[Tensor] = []

    def on_train_batch_start(self, batch, batch_index: int) -> None:
        """Seed dropout by the step's number, so that a resumed run drops what an unbroken one would."""
        torch.manual_seed(self.plan.training.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        image, target = batch
        losses = self.losses(self.network(image), target)
        self.log_dict(losses, prog_bar=True)
        return losses["loss"]

    def losses(self, outputs: dict, target: Tensor) -> dict[str, Tensor]:
        """The "loss" of the network's outputs and its parts; what trains another network by this loop overrides it."""
        deep_weight = self.plan.training.deep_supervision
        return total_loss(outputs, target, self.exclusive, self.residual_axis, deep_weight)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        image, target = batch
        window = self.plan.description.inference.window
        logits = sliding_window_inference(
            image,
            window,
            1,
            lambda x: self.network(x, wanted=("segmentation",))["segmentation"].float(),
            overlap=0.5,
            mode="gaussian",
        )
        found = self._segments(logits)
        volume = found.sum((2, 3, 4)) + target.sum((2, 3, 4))
        dice = 2 * (found * target).sum((2, 3, 4)) / volume.clamp(min=1)
        self._dice.append(torch.where(volume > 0, dice, 1.0))

    def on_validation_epoch_end(self) -> None:
        dice = torch.cat(self._dice).mean(0)
        self._dice.clear()
        self.log_dict({f"dice_{name}": value for name, value in zip(self.segments, dice, strict=True)})
        self.log("dice", dice.mean(), prog_bar=True)

    def _segments(self, logits: Tensor) -> Tensor:
        """(batch, segments, S, H, W) of 0 and 1."""
        if not self.exclusive:
            return (logits > 0).float()
        label = logits.argmax(1, keepdim=True)
        return (label == torch.arange(1, logits.shape[1], device=label.device).view(1, -1, 1, 1, 1)).float()

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict]]:
        """Adam, and eq. 10 a step: lr0 (1 - t/T)^0.9."""
        training = self.plan.training
        optimizer = Adam(self.network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
        schedule = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / training.steps) ** POLYNOMIAL_POWER)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
