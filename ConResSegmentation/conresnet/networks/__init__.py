"""Networks by name: one file per paper, next to the blocks that they share.

A new network is one file with one class:

    @register_network("mynet", provides={"attention": True})
    class MyNet(nn.Module):
        ...

It is then planned, trained, exported and used like the others. `conresnet.networks.blocks` says how a network is
called. Constructor arguments of these names are filled in by a plan: ``input_channels``, ``outputs``,
``residual_outputs`` (one per segment), ``base_width``, ``norm``, ``residual_axis``, ``exclusive``. All others need
defaults. Importing this module does not import torch.

The decorator's arguments must be literals, because they are read from the file's text: Slicer's process and ``--help``
need them and must not import torch. The file itself is imported when its class is needed. Another package adds its file
by an entry point of the group ``conresnet.networks``:

    [project.entry-points."conresnet.networks"]
    mynet = "my_package.mynet"

An entry point that cannot be used is ignored with a warning. Systems are registered in the same way.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


class Registry:
    """The classes of one kind; ``classes`` are those imported so far, by name.

    Args:
        package: package whose files are searched, such as ``conresnet.networks``; also the group of entry points.
        decorator: name of the decorator with which files register their classes.
        declare: makes a declaration from the decorator's keywords; raises TypeError or ValueError for invalid ones.
    """

    def __init__(self, package: str, decorator: str, declare: Callable[..., Any]):
        self._package, self._decorator, self._declare = package, decorator, declare
        self._modules: dict[str, str] | None = None
        self._declarations: dict[str, Any] = {}
        self.classes: dict[str, type] = {}

    def register(self, name: str, **declared: Any) -> Callable[[type], type]:
        """Return the decorator. It also registers classes in files that are not searched."""
        declaration = self._declare(**declared)

        def register_class(registered: type) -> type:
            self.classes[name], self._declarations[name] = registered, declaration
            return registered

        return register_class

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._modules_by_name(), *self.classes})

    def declaration(self, name: str) -> Any:
        """The declaration of a class, without importing it; None for an unknown name."""
        self._modules_by_name()
        return self._declarations.get(name)

    def load(self, name: str) -> type:
        """The class. Raises LookupError for an unknown name, ValueError if its file fails or does not register it."""
        if name not in self.classes:
            if name not in self._modules_by_name():
                raise LookupError(name)
            module = self._modules[name]
            try:
                importlib.import_module(module)
            except Exception as error:  # another package's file may fail in any way
                raise ValueError(f"{module} cannot be imported: {error}") from error
            if name not in self.classes:
                raise ValueError(f"{module} does not register {name!r}")
        return self.classes[name]

    def _modules_by_name(self) -> Mapping[str, str]:
        """The module that registers each class. Raises ValueError if two register the same name."""
        if self._modules is None:
            self._modules = {}
            folder = Path(__file__).parents[1] / self._package.rpartition(".")[2]
            try:
                for path in sorted(folder.glob("*.py")):
                    if path.name != "__init__.py":
                        self._register_file(f"{self._package}.{path.stem}", path)
            except ValueError:
                # Otherwise, the files that come after it would be missing from then on, without an error.
                self._modules = None
                raise
            for point in importlib.metadata.entry_points(group=self._package):
                self._register_entry_point(point)
        return self._modules

    def _register_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        try:
            if not self._register_file(point.module, _source(point.module)):
                raise ValueError(f"{point.module} has no @{self._decorator}")
        except Exception as error:  # must not affect anything else
            package = point.dist.name if point.dist else point.module
            logger.warning("The entry point %s of the package %s is ignored: %s.", point.name, package, error)

    def _register_file(self, module: str, path: Path) -> int:
        """Register the classes that a file declares, and return their number."""
        declared = [(name, self._declare(**keywords)) for name, keywords in self._registrations(path)]
        for name, declaration in declared:
            # A class may be in a file that is not searched, or its file may have been imported before the search.
            imported = self.classes[name].__module__ if name in self.classes else module
            if name in self._modules or imported != module:
                raise ValueError(f"{name!r} is already registered by {self._modules.get(name, imported)}")
            self._modules[name] = module
            self._declarations.setdefault(name, declaration)
        return len(declared)

    def _registrations(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, keywords) of each use of the decorator in a file."""
        text = path.read_text(encoding="utf-8")
        if f"@{self._decorator}(" not in text:
            return
        for node in ast.parse(text, path.name).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == self._decorator:
                    (name,) = (ast.literal_eval(argument) for argument in call.args)
                    yield name, {item.arg: ast.literal_eval(item.value) for item in call.keywords}


def _source(module: str) -> Path:
    """Find the file of a module without importing it or its parent packages."""
    names = module.split(".")
    spec = importlib.util.find_spec(names[0])
    for depth in range(2, len(names) + 1):
        if spec is None:
            break
        spec = importlib.machinery.PathFinder.find_spec(".".join(names[:depth]), spec.submodule_search_locations)
    if spec is None or not spec.origin:
        raise ValueError(f"there is no module {module}")
    return Path(spec.origin)


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
