"""What a description says of its system: that its networks are as many and take and give as much as the model needs,
and that the arguments of a coarse-to-fine system are right."""

from collections.abc import Mapping
from typing import Any

from conresnet.package.description import ModelDescription, Network
from conresnet.package.fields import Fields

# How many networks each system takes; None is any number.
NETWORK_COUNTS = {"single": 1, "ensemble": None, "coarse_to_fine": 2}
# What a coarse-to-fine system's arguments are unless it says otherwise, as in the ResDSN paper (4.1, 4.2): n of each
# pass's windows, and the share of a segment below which a component is dropped.
COARSE_TO_FINE = {"coarse_windows": 6, "fine_windows": 12, "smallest_component": 0.2}


def parse_system_arguments(fields: Fields, kind: str) -> dict[str, Any]:
    """The arguments of a system of the type `kind`; those of a coarse-to-fine one whole, the paper's where missing."""
    if kind != "coarse_to_fine":
        return fields.plain_object("arguments") if fields.has("arguments") else {}
    given = fields.child("arguments")
    arguments = {"margin": given.integer("margin", 0, 1000), **COARSE_TO_FINE}
    for name in ("coarse_windows", "fine_windows"):
        if given.has(name):
            arguments[name] = given.integer(name, 1, 100)
    if given.has("smallest_component"):
        arguments["smallest_component"] = given.number("smallest_component", 0, 1)
    given.finish()
    return arguments


def check_networks(fields: Fields, description: ModelDescription) -> None:
    """Refuse networks that are too many or too few, or that take and give other channels than the model.

    Systems that this version does not know may chain networks freely.
    """
    system = description.system
    for index, network in enumerate(system.networks):
        _check_inner(fields, f"system.networks[{index}].arguments.network", network)
    if system.type not in NETWORK_COUNTS:
        return
    count = NETWORK_COUNTS[system.type] or len(system.networks)
    if len(system.networks) != count:
        fields.refuse("system.networks", f"must hold {count} of them, since the system is {system.type}")
    segments = len(description.output.segments)
    expected = {
        "input_channels": description.channel_count,
        "outputs": segments + 1 if description.output.kind == "labels" else segments,
    }
    first_axis = system.networks[0].arguments.get("residual_axis", "S")
    for index, network in enumerate(system.networks):
        place = f"system.networks[{index}].arguments"
        for key, value in expected.items():
            if network.arguments.get(key, value) != value:
                fields.refuse(f"{place}.{key}", f"must be {value}, as the inputs and segments say")
        _check_residuals(fields, place, network.type, network.arguments, segments, network.arguments.get("outputs"))
        if network.arguments.get("residual_axis", "S") != first_axis:
            fields.refuse(f"{place}.residual_axis", f"must be {first_axis}, as that of the first network")


def _check_inner(fields: Fields, place: str, network: Network) -> None:
    """Refuse an auto-context whose network is not said as one: what maps it gives is read from there."""
    if network.type != "auto_context" or "network" not in network.arguments:
        return
    inner = network.arguments["network"]
    is_network = isinstance(inner, dict) and set(inner) == {"type", "arguments"}
    if not (is_network and isinstance(inner["type"], str) and isinstance(inner["arguments"], dict)):
        fields.refuse(place, 'must be {"type": ..., "arguments": {...}}')


def _check_residuals(
    fields: Fields, place: str, kind: str, arguments: Mapping[str, Any], segments: int, outputs: Any
) -> None:
    """Refuse residuals of others than the segments, which are all that the residual map shows."""
    if kind == "auto_context" and "network" in arguments:
        inner = arguments["network"]
        _check_residuals(fields, f"{place}.network.arguments", inner["type"], inner["arguments"], segments, outputs)
    if kind != "conresnet" or not arguments.get("residual_mapping", True):
        return
    residuals = arguments.get("residual_outputs")
    residuals = outputs if residuals is None else residuals
    if residuals is not None and residuals not in (1, segments):
        fields.refuse(
            f"{place}.residual_outputs",
            f"must be {segments}, one per segment, or 1 for all segments together; left out, it is as outputs",
        )
