"""How networks make a segmentation, by name."""

from __future__ import annotations

from collections.abc import Callable

from conresnet.errors import UserError
from conresnet.package import ModelPackage
from conresnet.systems.coarse_to_fine import CoarseToFine
from conresnet.systems.one_pass import Ensemble, OnePass, SingleNetwork, System

SYSTEMS: dict[str, Callable[[ModelPackage], System]] = {
    "single": lambda package: OnePass(SingleNetwork(package), package.description.inference),
    "ensemble": lambda package: OnePass(Ensemble(package), package.description.inference),
    "coarse_to_fine": CoarseToFine,
}


def build_system(package: ModelPackage) -> System:
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
            model=package.description.name,
            system=kind,
        )
    return SYSTEMS[kind](package)
