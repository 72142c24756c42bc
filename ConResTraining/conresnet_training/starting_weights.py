"""Weights that a run begins with instead of random ones: those of a model, to train it further or for another task."""

from torch import nn

from conresnet.errors import UserError
from conresnet.networks.loading import load_network


def begin_with(model: str, network: nn.Module) -> None:
    """Give ``network`` the weights of a model's network.

    Where ``network`` holds several of the model's kind, such as the rounds of auto-context or a coarse and a fine one,
    each begins with them. A layer that is made for the channels or the segments may have another shape, and keeps what
    it has.

    Args:
        model: the name or the path of a model package of one network.
        network: changed in place.

    Raises:
        UserError: ``start-does-not-fit`` where most of the tensors are other ones, or any of loading the model.
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
        sentence = (
            f"The model {model} has another kind or size of network than the plan: only {len(fitting)} of the plan's "
            f"{len(own)} tensors fit; plan a network like the model's, or leave out start_from."
        )
        raise UserError("start-does-not-fit", sentence, model=model)
    network.load_state_dict({**own, **fitting})
