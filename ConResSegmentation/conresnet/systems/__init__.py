"""How networks make a segmentation, by name."""

from __future__ import annotations

from conresnet.errors import UserError
from conresnet.package import ModelPackage
from conresnet.systems.single import SingleNetwork

SYSTEMS = {"single": SingleNetwork}


def build_system(package: ModelPackage) -> SingleNetwork:
    """The system of a model package with its weights, on the CPU.

    Raises:
        UserError: "system-unknown", or what loading a network raises.
    """
    kind = package.description.system.type
    if kind not in SYSTEMS:
        raise UserError(
            "system-unknown",
            f"The model {package.description.name} needs the system {kind!r}, which this version of ConResNet does not "
            f"have (it has {', '.join(SYSTEMS)}); update ConResNet.",
            system=kind,
        )
    return SYSTEMS[kind](package)
