"""The same plan for another system, so that a comparison differs in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conresnet.errors import UserError
from conresnet.networks import all_arguments, declared_network, network_class
from conresnet.systems import System, declared_system
from conresnet_training.planning.plan import Plan
from conresnet_training.planning.systems import Frame, cataloged


def change_system(plan: Plan, name: str) -> Plan:
    """The same plan for another system: the same data, targets, steps and augmentation.

    The window keeps its voxels, the networks their base width. What the plan says of the images is changed only by a
    system that sees them differently.

    Args:
        plan: of a system that takes the images as the data alone decide, such as ConResNet.
        name: a key of ``conresnet_training.planning.systems.SYSTEMS``.

    Raises:
        UserError: ``plan-system-unknown``; ``system-unchangeable`` where the plan's own system has changed what is said
            of the images; ``spacing-unknown``, see ``conresnet.networks.pyramid.Pyramid.plan_images``.
    """
    entry = cataloged(name)
    model = plan.document()["model"]
    system = model["system"]
    first = system["networks"][0]
    has_changed = declared_system(system["type"]).plan_images.__func__ is not System.plan_images.__func__
    if has_changed or any(item["copies"] for item in model["inputs"]) or _changes_images(first):
        sentence = f"The plan {model['title']} prepares the images for its own system; change a plan of ConResNet."
        raise UserError("system-unchangeable", sentence)
    arguments = all_arguments(first["type"], first["arguments"])
    entry.prepare(model)
    axis = arguments.get("residual_axis", "S")
    frame = Frame.of(model, arguments.get("base_width", 32), axis, plan.training.batch)
    model["system"] = entry.describe(entry.build(frame), entry.plan_arguments().values)
    return type(plan).model_validate({**plan.document(), "model": model})


def _changes_images(network: Mapping[str, Any]) -> bool:
    """Whether a network, or the one that it wraps, changes what a plan says of the images."""
    wraps = declared_network(network["type"]).wraps
    if wraps:
        return _changes_images(network["arguments"][wraps])
    return hasattr(network_class(network["type"]), "plan_images")
