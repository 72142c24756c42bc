"""The two networks of coarse-to-fine, in training."""

from collections.abc import Collection

from torch import Tensor, nn


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
