"""Watching a network from inside, so that progress moves and a cancel is heard within one window."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from torch import Tensor, nn

_ELEMENT_COST = 300
"""What norms, activations and resizing cost beside each element of a convolution's output, in multiply-adds."""

_WATCHED = (nn.Conv3d, nn.ConvTranspose3d)


class ForwardMonitor:
    """Calls back after every convolution with the share of the forward pass that is done.

    A trial pass on a tiny input tells in what order the convolutions come, deconvolutions among them, and how much
    each costs; their shares hardly depend on the input's size. To be used as a context: no hook is left behind.

    Args:
        networks: whose convolutions to watch.
        trial: makes the pass that will be made for every window, on a tiny input.
        tick: called with the share done, 0 to 1; before each convolution with the same share as after the last. What
            it raises ends the pass.
    """

    def __init__(self, networks: Iterable[nn.Module], trial: Callable[[], object], tick: Callable[[float], None]):
        self._networks = list(networks)
        self._trial = trial
        self._tick = tick
        self._stack = ExitStack()
        self._shares: list[float] = []
        self._calls = 0

    def __enter__(self) -> ForwardMonitor:
        costs: list[float] = []
        with ExitStack() as recording:
            for layer in self._convolutions():
                handle = layer.register_forward_hook(lambda *call: costs.append(_cost(*call)))
                recording.callback(handle.remove)
            self._trial()
        done = 0.0
        for cost in costs:
            done += cost
            self._shares.append(done / sum(costs))
        for layer in self._convolutions():
            self._stack.callback(layer.register_forward_pre_hook(self._before).remove)
            self._stack.callback(layer.register_forward_hook(self._after).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        """The next pass begins."""
        self._calls = 0

    def _convolutions(self) -> list[nn.Module]:
        return [layer for network in self._networks for layer in network.modules() if isinstance(layer, _WATCHED)]

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._tick(self._shares[self._calls - 1] if self._calls else 0.0)

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls += 1
        self._tick(self._shares[self._calls - 1])


def _cost(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> float:
    """About how many multiply-adds: a convolution gathers every output from a kernel, a deconvolution spreads every
    input by one."""
    applied = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
    return applied.numel() * layer.weight[0].numel() + output.numel() * _ELEMENT_COST
