"""Weights that a run begins with instead of random ones: those of a model, to train it further or for another task."""

from torch import nn

from conresnet.errors import UserError
from conresnet.networks.loading import load_network


def begin_with(model: str, network: nn.Module) -> list[str]:
    """Give ``network`` the weights of a model's network.

    A layer that is made for the channels or the segments may have another shape, and keeps what it has.

    Args:
        model: the name or the path of a model package of one network.
        network: changed in place.

    Returns:
        the names of the tensors that were kept.

    Raises:
        UserError: ``start-does-not-fit`` where most of the tensors are other ones, or any of loading the model.
    """
    given, own = load_network(model).state_dict(), network.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        sentence = (
            f"The model {model} has another kind or size of network than the plan: only {len(fitting)} of the plan's "
            f"{len(own)} tensors fit; plan a network like the model's, or leave out start_from."
        )
        raise UserError("start-does-not-fit", sentence, model=model)
    network.load_state_dict({**own, **fitting})
    return [name for name in own if name not in fitting]
