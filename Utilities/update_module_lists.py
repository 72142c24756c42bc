"""Write the files of each Slicer module into the lists of its CMakeLists.txt. Run by ``make lists``.

Slicer packages only the files in these lists and does not report one that is missing from them; a test does.
"""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = ["ConResSegmentation", "ConResTraining"]


def with_list(text: str, variable: str, names: list[str]) -> str:
    """``text`` with ``names`` in ``set(<variable> ...)``, one per line."""
    lines = "".join(f"  {name}\n" for name in names)
    changed, count = re.subn(rf"set\({variable}\s[^)]*\)", f"set({variable}\n{lines}  )", text)
    if count != 1:
        raise ValueError(f"set({variable} ...) occurs {count} times")
    return changed


def update(module: Path) -> None:
    """Update the lists of one module."""
    lists = module / "CMakeLists.txt"
    files = [path for path in module.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = sorted(path.relative_to(module).as_posix() for path in files if path != lists)
    scripts = [name for name in names if name.endswith(".py")]
    text = lists.read_text(encoding="utf-8")
    text = with_list(text, "MODULE_PYTHON_SCRIPTS", scripts)
    text = with_list(text, "MODULE_PYTHON_RESOURCES", [name for name in names if not name.endswith(".py")])
    lists.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    for module_name in MODULES:
        update(REPOSITORY / module_name)
