"""Networks and systems by name: ConResNet's own, and those that installed packages add through entry points.

A class enters by a decorator in its own file, such as ``@register_network("resdsn", window=(64, 64, 64))``. Nothing
else names it. What the decorator says must be literals, because it is read from the file's text: Slicer's process and
``--help`` need it and must not import torch. The file itself is imported when its class is needed.

Another package adds its file by an entry point of the group ``conresnet.networks`` or ``conresnet.systems``:

    [project.entry-points."conresnet.networks"]
    mynet = "my_package.mynet"

An entry point that cannot be used costs one warning, and nothing else. Standard library only.
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
        package: ours, such as ``conresnet.networks``, whose files are searched; also the group of entry points.
        decorator: the name by which files register their classes.
        declare: makes a declaration from the decorator's keywords; raises TypeError or ValueError for wrong ones.
    """

    def __init__(self, package: str, decorator: str, declare: Callable[..., Any]):
        self._package, self._decorator, self._declare = package, decorator, declare
        self._modules: dict[str, str] | None = None
        self._declarations: dict[str, Any] = {}
        self.classes: dict[str, type] = {}

    def register(self, name: str, **declared: Any) -> Callable[[type], type]:
        """The decorator. It also makes a class known that is in none of the files that are searched."""
        declaration = self._declare(**declared)

        def enter(made: type) -> type:
            self.classes[name], self._declarations[name] = made, declaration
            return made

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._found(), *self.classes})

    def declaration(self, name: str) -> Any:
        """What the class declares about itself, without importing it; None for an unknown name."""
        self._found()
        return self._declarations.get(name)

    def load(self, name: str) -> type:
        """The class. Raises LookupError for an unknown name, ValueError if its file fails or does not register it."""
        if name not in self.classes:
            if name not in self._found():
                raise LookupError(name)
            module = self._modules[name]
            try:
                importlib.import_module(module)
            except Exception as error:  # another package's file may fail in any way
                raise ValueError(f"{module} cannot be imported: {error}") from error
            if name not in self.classes:
                raise ValueError(f"{module} does not register {name!r}")
        return self.classes[name]

    def _found(self) -> Mapping[str, str]:
        """The module that registers each class."""
        if self._modules is None:
            self._modules = {}
            folder = Path(__file__).parent / self._package.rpartition(".")[2]
            for path in sorted(folder.glob("*.py")):
                if path.name != "__init__.py":
                    self._enter(f"{self._package}.{path.stem}", path)
            for point in importlib.metadata.entry_points(group=self._package):
                self._enter_other(point)
        return self._modules

    def _enter_other(self, point: importlib.metadata.EntryPoint) -> None:
        try:
            if not self._enter(point.module, _source(point.module)):
                raise ValueError(f"{point.module} has no @{self._decorator}")
        except Exception as error:  # its fault must not stop anything else
            package = point.dist.name if point.dist else point.module
            logger.warning("The entry point %s of the package %s is ignored: %s.", point.name, package, error)

    def _enter(self, module: str, path: Path) -> int:
        """Take in what a file registers, and return how many classes those are."""
        found = [(name, self._declare(**declared)) for name, declared in self._registrations(path)]
        for name, declaration in found:
            if name in self._modules:
                raise ValueError(f"{name!r} is already registered by {self._modules[name]}")
            self._modules[name] = module
            self._declarations.setdefault(name, declaration)
        return len(found)

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
    """The file of a module, found without importing it or the packages that it is in."""
    names = module.split(".")
    spec = importlib.util.find_spec(names[0])
    for depth in range(2, len(names) + 1):
        if spec is None:
            break
        spec = importlib.machinery.PathFinder.find_spec(".".join(names[:depth]), spec.submodule_search_locations)
    if spec is None or not spec.origin:
        raise ValueError(f"there is no module {module}")
    return Path(spec.origin)
