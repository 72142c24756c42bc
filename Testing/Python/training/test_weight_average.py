"""The moving average of a network's weights."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from conresnet_training.weight_average import averaging


def averaged(decay, values):
    """The average after the weight had each of the values in turn."""
    network = nn.Linear(1, 1)
    average = AveragedModel(network, multi_avg_fn=averaging(decay), use_buffers=True)
    for value in values:
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
    return average.module.weight.item()


def test_what_a_network_begins_with_is_soon_forgotten():
    begun = [100.0] + [1.0] * 200
    assert abs(averaged(0.998, begun) - 1) < 0.01 < abs(100 * 0.998**200)
    assert averaged(0.998, [5.0, 5.0]) == 5


def test_later_the_decay_is_what_was_asked_for():
    settled = [0.0] * 2000
    assert abs(averaged(0.9, [*settled, 1.0]) - 0.1) < 1e-6
    assert abs(averaged(0.99, [*settled, 1.0, 1.0]) - (1 - 0.99**2)) < 1e-6
