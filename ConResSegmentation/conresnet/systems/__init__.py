"""Systems by name: how the networks of a model are combined to a segmentation.

A new system is one file with one class:

    @register_system("mysystem")
    class MySystem(System):
        ...

Slicer's process reads model descriptions, and for that imports the files of systems. They, and this module, must
therefore import torch, numpy and SimpleITK inside methods only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from conresnet.errors import UserError
from conresnet.networks import Registry, residual_faults, unknown_network

if TYPE_CHECKING:
    import numpy as np

    from conresnet.images import Box
    from conresnet.images.preparation import PreparedCase
    from conresnet.inference.sliding import Passes
    from conresnet.package import ModelDescription
    from conresnet.package.reader import ModelPackage
    from conresnet.systems.predictors import Predictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """The training of one of a system's networks; stages run one after another, each for the plan's steps.

    Args:
        around_segments: whether every window is drawn around a labeled voxel, instead of the plan's share of them.
        find_box: maps the previous network's result for a case, one (S, H, W) mask per segment, to the box
            in which this stage's network is validated; None for the whole case.
    """

    around_segments: bool = False
    find_box: Callable[[Iterable[np.ndarray]], Box | None] | None = None


@dataclass(frozen=True)
class PlannedArguments:
    """Arguments of a system that a plan derives from the data.

    Args:
        values: arguments that differ from their defaults.
        reasons: (what, value, why), one per line of the plan's summary.
    """

    values: Mapping[str, Any]
    reasons: Sequence[tuple[str, str, str]] = ()


class System:
    """Networks that together segment a prepared case.

    The class describes the system without its weights. An instance holds the networks of one package. Unless a system
    does something else, it has one predictor for all its networks, which processes every window of the foreground.

    Class attributes:
        Arguments: a dataclass of the system's own arguments, by the rules of `conresnet.package.schema`; None where it
            has none.
        files: the names of its networks, in their order, as in a package's weights files; empty for any number.
        ensemble: the system that combines several trained runs of this one; "" if there is none.
        adds: outputs for maps that the system computes itself, in addition to those of its networks.
        plans: what can be planned with it, by the name for ``plan --system``: "title", "sentence", "network" (its type)
            and "arguments" of the network that differ from their defaults.

    Attributes:
        predictors: its networks, ready to be passed to ``conresnet.inference.sliding.Passes.make``. A system that makes
            none gets one for all its networks, see ``conresnet.systems.predictors.build_system``.
    """

    Arguments: ClassVar[type | None] = None
    files: ClassVar[tuple[str, ...]] = ()
    ensemble: ClassVar[str] = ""
    adds: ClassVar[Collection[str]] = ()
    plans: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    predictors: Sequence[Predictor] = ()

    def __init__(self, package: ModelPackage):
        """Read what the system needs from a package. It may leave the predictors to ``build_system``."""

    @classmethod
    def shown(cls, networks: Sequence[Any]) -> Sequence[Any]:
        """The networks of a description that make the maps; a map is available if all of them provide it."""
        return networks

    @classmethod
    def stages(cls, arguments: Mapping[str, Any]) -> Sequence[Stage]:
        """Training stages: one per network, in order; empty if a plan cannot train the system."""
        return ()

    @classmethod
    def plan_images(cls, model: dict[str, Any]) -> dict[str, str]:
        """Change the settings for images in a planned ``model.json``, in place.

        Returns remarks for the plan's summary, by the line that they belong to ("spacing", "window", "intensity T1").
        """
        return {}

    @classmethod
    def plan_arguments(cls, segments: Callable[[], Iterable[Sequence[np.ndarray]]] | None) -> PlannedArguments:
        """Arguments for a plan; ``segments`` reads the labels of some cases: for each segment its masks, (S, H, W) bool
        per case; None where there are no data to look at.
        """
        return PlannedArguments({})

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """Make the passes over a case, the last of which goes to ``passes.results``.

        Raises:
            Cancelled: noticed inside a window.
            UserError: ``out-of-memory`` or ``network-not-finite``.
        """
        passes.make("only", self.predictors[0], case, case.box(), passes.tiling, passes.results, passes.maps)


SYSTEMS = Registry("conresnet.systems", "register_system", lambda: None)
_BROKEN: set[str] = set()
register_system = SYSTEMS.register
system_names = SYSTEMS.names


@register_system("single")
class Single(System):
    """A single network, trained in its own stages."""

    files = ("network",)
    ensemble = "ensemble"

    @classmethod
    def stages(cls, arguments: Mapping[str, Any]) -> Sequence[Stage]:
        """One."""
        return (Stage(),)


@register_system("ensemble")
class Ensemble(System):
    """Several networks with the same inputs and outputs, such as those of a cross-validation, averaged.

    It is created by exporting several runs together, and not trained as a whole.
    """

    adds = ("members",)


def declared_system(kind: str) -> type[System] | None:
    """The class of a system; None if the name is unknown or its file cannot be imported."""
    try:
        return SYSTEMS.load(kind)
    except LookupError:
        return None
    except ValueError as error:
        if kind not in _BROKEN:
            logger.warning("The system %s is not available: %s.", kind, error)
        _BROKEN.add(kind)
        return None


def trained_systems() -> list[str]:
    """The names of the systems that a plan can train."""
    kinds = ((name, declared_system(name)) for name in system_names())
    return [name for name, kind in kinds if kind and kind.stages.__func__ is not System.stages.__func__]


def system_faults(description: ModelDescription) -> Iterator[tuple[str, str]]:
    """Faults: too many or too few networks, or networks with other channels than the model.

    Systems that are not installed here may chain networks freely.
    """
    system, kind = description.system, declared_system(description.system.type)
    if kind is None:
        return
    if kind.files and len(system.networks) != len(kind.files):
        yield "system.networks", f"must have {len(kind.files)} entries, because the system is {system.type}"
    if description.inference.coarse_look and kind.segment is not System.segment:
        yield "inference.coarse_look", f"cannot be used, because the system {system.type} makes its own passes"
    segments = len(description.output.segments)
    expected = {
        "input_channels": description.channel_count,
        "outputs": segments + (description.output.kind == "labels"),
    }
    first_axis = system.networks[0].arguments.get("residual_axis", "S")
    for index, network in enumerate(system.networks):
        place = f"system.networks[{index}].arguments"
        for key, value in expected.items():
            if network.arguments.get(key, value) != value:
                yield f"{place}.{key}", f"must be {value}, to match the inputs and segments"
        outputs = network.arguments.get("outputs")
        yield from residual_faults(place, network.type, network.arguments, segments, outputs)
        if network.arguments.get("residual_axis", "S") != first_axis:
            yield f"{place}.residual_axis", f"must be {first_axis}, as for the first network"


def check_system(description: ModelDescription) -> type[System]:
    """The class of a model's system.

    Raises UserError ``system-unknown`` or ``network-unknown`` if no package here provides it or one of its networks.
    """
    made = declared_system(description.system.type)
    if made is None:
        known = ", ".join(system_names())
        raise UserError("system-unknown", model=description.name, system=description.system.type, known=known)
    for network in description.system.networks:
        if reason := unknown_network(network.type, network.arguments):
            raise UserError("network-unknown", model=description.name, reason=reason)
    return made
