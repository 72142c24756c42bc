"""Networks and systems by name: ConResNet's own, and those that installed packages add through entry points.

A class is registered by a decorator in its own file, such as ``@register_network("resdsn", window=(64, 64, 64))``.
Nothing else names it. The decorator's arguments must be literals, because they are read from the file's text: Slicer's
process and ``--help`` need them and must not import torch. The file itself is imported when its class is needed.

Another package adds its file by an entry point of the group ``conresnet.networks`` or ``conresnet.systems``:

    [project.entry-points."conresnet.networks"]
    mynet = "my_package.mynet"

An entry point that cannot be used is ignored with a warning. Standard library only.
"""

import ast
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
        """The module that registers each class."""
        if self._modules is None:
            self._modules = {}
            folder = Path(__file__).parent / self._package.rpartition(".")[2]
            for path in sorted(folder.glob("*.py")):
                if path.name != "__init__.py":
                    self._register_file(f"{self._package}.{path.stem}", path)
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
            if name in self._modules:
                raise ValueError(f"{name!r} is already registered by {self._modules[name]}")
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
