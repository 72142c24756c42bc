"""Networks by name: one file per paper, next to the blocks that they share.

A new network is one file with one class:

    @register_network("mynet", provides={"attention": True})
    class MyNet(nn.Module):
        ...

It is then planned, trained, exported and used like the others. `conresnet.networks.blocks` says how a network is
called. Constructor arguments of these names are filled in by a plan: ``input_channels``, ``outputs``,
``residual_outputs`` (one per segment), ``base_width``, ``norm``, ``residual_axis``, ``exclusive``. All others need
defaults. Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conresnet.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkDeclaration:
    """What a network declares about itself, readable without importing torch.

    Args:
        provides: its outputs besides "segmentation", each with True or the name of the argument that switches it. One
            that provides "residual" compares neighboring slices along its argument ``residual_axis`` and has one
            residual channel per segment.
        wraps: the argument that holds another network, ``{"type": ..., "arguments": {...}}``, whose outputs this one
            gives.
        window: the largest window (S, H, W) in voxels that is planned for it.
        multiple: planned windows have sides that are multiples of it.
        plans: what can be planned with it, by the name for ``plan --system``: "title", "sentence", and "arguments" that
            differ from their defaults. Empty: it can be planned by its own name.
    """

    provides: Mapping[str, bool | str] = field(default_factory=dict)
    wraps: str = ""
    window: tuple[int, int, int] = (80, 160, 160)
    multiple: int = 8
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


NETWORKS = Registry("conresnet.networks", "register_network", NetworkDeclaration)
register_network = NETWORKS.register
network_names = NETWORKS.names


def declared_network(kind: str) -> NetworkDeclaration:
    """What a network declares about itself; one that is not installed here is taken to give just a segmentation."""
    return NETWORKS.declaration(kind) or NetworkDeclaration()


def provided_outputs(kind: str, arguments: Mapping[str, Any]) -> set[str]:
    """The outputs of a network with these arguments, read from its declaration."""
    declaration = declared_network(kind)
    if declaration.wraps:
        inner = arguments.get(declaration.wraps, {})
        return provided_outputs(inner.get("type", ""), inner.get("arguments", {}))
    given = {name for name, switch in declaration.provides.items() if switch is True or arguments.get(switch, True)}
    return {"segmentation", *given}


def all_arguments(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network, and of the one that it wraps where there is one."""
    wraps = declared_network(kind).wraps
    inner = arguments.get(wraps) if wraps else None
    return {**(all_arguments(inner["type"], inner["arguments"]) if inner else {}), **arguments}


def unknown_network(kind: str, arguments: Mapping[str, Any]) -> str:
    """What is wrong with a network, or with one that it wraps, if no package here provides it; otherwise ""."""
    if kind not in network_names():
        return f'Unknown network "{kind}"; known networks are {", ".join(network_names())}'
    inner = arguments.get(declared_network(kind).wraps)
    return unknown_network(inner["type"], inner["arguments"]) if inner else ""


def wrapped_faults(place: str, kind: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A network inside another that is not one: which outputs there are is read from it."""
    wraps = declared_network(kind).wraps
    if not wraps or wraps not in arguments:
        return
    inner, place = arguments[wraps], f"{place}.{wraps}"
    is_network = isinstance(inner, dict) and set(inner) == {"type", "arguments"}
    if not (is_network and isinstance(inner["type"], str) and isinstance(inner["arguments"], dict)):
        yield place, 'must be {"type": ..., "arguments": {...}}'
    else:
        yield from wrapped_faults(f"{place}.arguments", inner["type"], inner["arguments"])


def residual_faults(
    place: str, kind: str, arguments: Mapping[str, Any], segments: int, outputs: Any
) -> Iterator[tuple[str, str]]:
    """Residuals of anything but the segments, which are all that the residual map shows."""
    wraps = declared_network(kind).wraps
    if wraps and wraps in arguments:
        inner = arguments[wraps]
        yield from residual_faults(f"{place}.{wraps}.arguments", inner["type"], inner["arguments"], segments, outputs)
    elif "residual" in provided_outputs(kind, arguments):
        residuals = arguments.get("residual_outputs")
        residuals = outputs if residuals is None else residuals
        if residuals is not None and residuals not in (1, segments):
            reason = f"must be {segments}, one per segment, or 1 for all segments; by default it equals outputs"
            yield f"{place}.residual_outputs", reason


def network_class(kind: str) -> type[nn.Module]:
    """The class of a network. Raises ValueError for an unknown name, or a file that cannot be imported."""
    try:
        return NETWORKS.load(kind)
    except LookupError:
        raise ValueError(f"{unknown_network(kind, {})}.") from None


def build_network(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """Make a network with fresh weights from its name and its constructor's keyword arguments.

    Raises ValueError for an unknown name, an unknown argument or one out of range.
    """
    made = network_class(kind)
    known = inspect.signature(made).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for name in arguments if not takes_any else ():
        if name not in known:
            nearest = [f'; the closest match is "{match}"' for match in difflib.get_close_matches(name, known, 1, 0)]
            raise ValueError(f'The network "{kind}" has no argument "{name}"{"".join(nearest)}.')
    try:
        return made(**arguments)
    except TypeError as error:
        raise ValueError(f'The arguments do not fit the network "{kind}": {error}.') from error
