"""Module imports, read from the sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One import: ``module`` is the module in the statement, ``name`` what ``from module import name`` imports."""

    module: str
    name: str | None
    line: int
    at_file_level: bool

    @property
    def top(self) -> str:
        """The distribution-level name, such as ``torch`` of ``torch.nn``."""
        return self.module.split(".")[0]


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a source file below ``root``; a package has the name of its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> list[Import]:
    """All imports of a source file, with relative ones made absolute, except those only for type checkers."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for statement, at_file_level in _import_statements(ast.parse(path.read_text(encoding="utf-8")), True):
        if isinstance(statement, ast.Import):
            found += [Import(alias.name, None, statement.lineno, at_file_level) for alias in statement.names]
            continue
        base = statement.module or ""
        if statement.level:
            above = package[: len(package) - statement.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        found += [Import(base, alias.name, statement.lineno, at_file_level) for alias in statement.names]
    return found


def _import_statements(node: ast.AST, at_file_level: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_file_level
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _import_statements(child, at_file_level and not inside)


def import_graph(roots: list[Path]) -> dict[str, set[str]]:
    """For every module below ``roots``, the modules below them that it imports, including inside functions."""
    files = {module_name(path, root): (path, root) for root in roots for path in sorted(root.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for name, (path, root) in files.items():
        wanted = set()
        for entry in imports_of(path, root):
            submodule = f"{entry.module}.{entry.name}"
            wanted.add(submodule if submodule in files else entry.module)
        graph[name] = wanted & files.keys()
    return graph
