"""The moving average of a network's weights, which is steadier than the weights of any one step."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def averaging(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]:
    """How weights go into their moving average, for ``AveragedModel``: of the average, ``decay`` stays at a step.

    Less of it stays at first, or the random weights that a network begins with would be in it for long: (1 + n) /
    (10 + n) after n steps of the stage.
    """

    def average(averages: Sequence[Tensor], values: Sequence[Tensor], made: Tensor) -> None:
        count = float(made)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, values, made)

    return average
