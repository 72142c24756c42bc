"""Slicer's own Python layer in place of the stand-ins, for developers who have a copy of Slicer or its sources.

``SLICER_PY`` is a folder that contains Slicer's ``slicer`` Python package, such as ``Base/Python`` in Slicer's sources
or ``bin/Python`` in an installed Slicer. With it, the module tests run on Slicer's real ``parameterNodeWrapper``,
``ScriptedLoadableModule``, ``i18n`` and ``util``. None of these files are part of this repository.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import slicer

VARIABLE = "SLICER_PY"
_REAL = ("util", "i18n", "ScriptedLoadableModule", "parameterNodeWrapper")


def folder() -> Path | None:
    """The folder of Slicer's own ``slicer`` package; None if the variable is not set.

    Raises:
        FileNotFoundError: the folder does not contain the package.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    found = Path(value) / "slicer"
    if not (found / "parameterNodeWrapper" / "__init__.py").is_file():
        raise FileNotFoundError(f"{VARIABLE}={value}: there is no slicer/parameterNodeWrapper in this folder.")
    return found


def install(package: Path) -> None:
    """Load Slicer's own files as ``slicer.util`` and so on; qt, ctk and the stand-ins for widgets must exist."""
    _add_placeholders(package / "parameterNodeWrapper")
    slicer.__path__.insert(0, str(package))
    for name in _REAL:
        sys.modules.pop(f"slicer.{name}", None)
        setattr(slicer, name, importlib.import_module(f"slicer.{name}"))
    for name, value in vars(slicer.util).items():
        # Names that slicer-core's package copied from its own util when it was imported.
        if hasattr(slicer, name) and getattr(value, "__module__", "") == "slicer.util":
            setattr(slicer, name, value)


def _add_placeholders(package: Path) -> None:
    """Add placeholders for widget classes that Slicer's connectors mention and the stand-in does not have.

    The connectors are declared for all of Slicer's widgets. Placeholders cannot be instantiated.
    """
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(package.glob("*.py")))
    for owner, name in set(re.findall(r"\b(ctk|qt|slicer)\.((?:ctk|Q|qMRML)\w+)", text)):
        module = sys.modules[owner]
        if not hasattr(module, name):
            setattr(module, name, type(name, (_Missing,), {}))


class _Missing:
    """A widget class without a stand-in."""

    def __new__(cls, *arguments: object) -> object:
        raise AttributeError(f"The stand-in application has no {cls.__name__}.")
