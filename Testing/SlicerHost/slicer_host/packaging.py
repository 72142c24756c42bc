"""``slicer.packaging``: installing Python packages. The stand-in only records what would be installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import slicer
from packaging.requirements import Requirement
from packaging.version import Version
from PySide6 import QtWidgets

requests: list[str] = []


def _listed(requirements: object) -> list[Requirement]:
    items = requirements.split() if isinstance(requirements, str) else [requirements]
    items = list(requirements) if isinstance(requirements, (list, tuple)) else items
    return [item if isinstance(item, Requirement) else Requirement(item) for item in items]


def load_requirements(path: str | Path) -> list[Requirement]:
    """Return the requirements of a requirements.txt."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def pip_check(requirements: object) -> bool:
    """True if all requirements are installed in this Python."""
    from importlib.metadata import PackageNotFoundError, version

    for requirement in _listed(requirements):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            if not requirement.specifier.contains(Version(version(requirement.name)), prereleases=True):
                return False
        except PackageNotFoundError:
            return False
    return True


def pip_install(requirements: object, **options: object) -> None:
    """Record what Slicer would install into its own Python; ValueError if it is neither a string nor a list."""
    if not isinstance(requirements, (str, list)):
        raise ValueError("pip_install takes a string or a list")
    requests.append(requirements if isinstance(requirements, str) else " ".join(str(r) for r in requirements))


def pip_ensure(
    requirements: object, *, prompt_install: bool = True, requester: str | None = None, **options: object
) -> None:
    """Record the missing requirements, after asking; RuntimeError if the user declines."""
    missing = [r for r in _listed(requirements) if not pip_check(r)]
    if not missing:
        return
    question = f"{requester or 'A module'} needs to install: {', '.join(map(str, missing))}"
    if prompt_install and not slicer.util.confirmOkCancelDisplay(question):
        raise RuntimeError("The user declined the installation")
    pip_install(missing)


def _answers_yes(title: str, text: str) -> bool:
    button = QtWidgets.QMessageBox
    return button.question(None, title, text, button.Yes | button.No) == button.Yes


class ExtensionsManagerModel:
    """The Extensions Manager: records what would be installed; ``installed`` lists the installed extensions."""

    interactive = True

    def __init__(self) -> None:
        self.installed: list[str] = []
        self.requests: list[str] = []

    def isExtensionInstalled(self, name: str) -> bool:
        return name in self.installed

    def installExtensionFromServer(self, name: str, restart: bool = True, update: bool = False) -> bool:
        """Ask before, and by default also after, as Slicer's qSlicerExtensionsManagerModel.cxx does."""
        if self.isExtensionInstalled(name):
            return True
        if self.interactive and not _answers_yes("Install extension ?", f"Do you want to install '{name}' now?"):
            return False
        self.requests.append(name)
        self.installed.append(name)
        # Slicer would restart now.
        if restart and self.interactive:
            _answers_yes("Restart slicer ?", f"Extension {name} has been installed from server.")
        return True


def install() -> None:
    """Create the module ``slicer.packaging``."""
    module = types.ModuleType("slicer.packaging")
    for function in (load_requirements, pip_check, pip_install, pip_ensure):
        setattr(module, function.__name__, function)
    slicer.packaging = sys.modules["slicer.packaging"] = module
