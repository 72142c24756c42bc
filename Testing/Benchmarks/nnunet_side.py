"""The part that runs in nnU-Net's environment, started by nnunet.py and training_throughput.py with a task in JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from conresnet.networks import build_network
from conresnet_training.training import total_loss

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer with optional bf16 on the CPU, as it uses fp16 on a GPU.

    Attributes:
        autocast: whether bf16 is used; nnU-Net itself computes in fp32 on a CPU.
    """

    autocast = False

    def initialize(self) -> None:
        """Run only the network itself in bf16; its outputs and the loss are fp32."""
        super().initialize()
        forward = self.network.forward

        def computed(x: Tensor):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                return _float(forward(x))

        self.network.forward = computed


class TrainerOfOurNetwork(Trainer):
    """nnU-Net's data pipeline and loop around our network, our loss and our optimizer.

    Attributes:
        task: see ``measure``.
    """

    task: dict

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        """Build our network from the task's description."""
        network = TrainerOfOurNetwork.task["network"]
        return build_network(network["type"], network["arguments"])

    def configure_optimizers(self):
        """Adam as in our loop; nnU-Net's schedule changes once per epoch, and there is only one here."""
        task = self.task
        optimizer = torch.optim.Adam(
            self.network.parameters(), task["learning_rate"], weight_decay=task["weight_decay"]
        )
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: deep supervision is in our network's heads and loss."""

    def _build_loss(self):
        values = [torch.tensor(values) for values in self.task["targets"]]
        rest = self.task["exclusive"], self.task["residual_axis"], self.task["deep_supervision"]

        def loss(outputs: dict, label: Tensor) -> Tensor:
            target = torch.cat([torch.isin(label.long(), wanted) for wanted in values], 1).float()
            return total_loss(outputs, target, *rest)["loss"]

        return loss


def train(task: dict) -> None:
    """Train to the end, continuing an earlier run, and let nnU-Net segment the held-out cases of the fold.

    Args:
        task: "plans" (file), "fold", "epochs", "iterations" per epoch, "autocast", "seed".
    """
    torch.manual_seed(task["seed"])
    trainer = _trainer(Trainer, task)
    trainer.num_epochs, trainer.num_iterations_per_epoch = task["epochs"], task["iterations"]
    # Its validation on random windows decides nothing here; one iteration is the minimum.
    trainer.num_val_iterations_per_epoch, trainer.save_every = 1, 5
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    trainer.perform_actual_validation()


def measure(task: dict) -> None:
    """Print the times of nnU-Net's training steps with our network, as JSON in the last line.

    Args:
        task: as for ``train``, and "steps", "network", "targets" (label values of each segment), "exclusive",
            "residual_axis", "deep_supervision", "learning_rate", "weight_decay".
    """
    torch.manual_seed(task["seed"])
    TrainerOfOurNetwork.task = task
    trainer = _trainer(TrainerOfOurNetwork, task)
    trainer.enable_deep_supervision = False
    trainer.on_train_start()
    trainer.network.train()
    moments = []
    for _ in range(task["steps"]):
        trainer.train_step(next(trainer.dataloader_train))
        moments.append(time.perf_counter())
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        # The processes that prepare samples do not end by themselves.
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()
    print(json.dumps({"moments": moments}))


def _trainer(kind: type[Trainer], task: dict) -> Trainer:
    plans = json.loads(Path(task["plans"]).read_text(encoding="utf-8"))
    description = json.loads((Path(task["plans"]).parent / "dataset.json").read_text(encoding="utf-8"))
    plans["continue_training"] = True
    trainer = kind(plans, "3d_fullres", task["fold"], description, DEVICE)
    trainer.autocast = task["autocast"]
    return trainer


def _float(outputs):
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _float(value) for name, value in outputs.items()}
    return [_float(value) for value in outputs]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    {"train": train, "measure": measure}[given["do"]](given)
