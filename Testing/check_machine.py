"""Report missing system libraries in one sentence, before a test or the demo fails with an obscure message.

Everything else comes with the Python packages; VTK's renderer and Qt use these libraries of the operating system.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path

# VTK loads these only when it renders, so a successful import proves nothing.
RENDERER_LIBRARIES = ("libEGL.so.1", "libGL.so.1")
MODULES = {"vtkmodules.vtkRenderingOpenGL2": "VTK's renderer", "PySide6.QtUiTools": "Qt"}
DEBIAN_PACKAGES = Path(__file__).resolve().parents[1] / "requirements" / "debian.txt"


def missing() -> list[str]:
    """One sentence for each library that cannot be loaded; empty if the machine has all of them."""
    sentences = []
    if sys.platform == "linux":
        for library in RENDERER_LIBRARIES:
            try:
                ctypes.CDLL(library)
            except OSError as error:
                sentences.append(f"VTK's renderer needs a system library: {error}.")
    for module, purpose in MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            sentences.append(f"{purpose} cannot be loaded: {error}.")
    return sentences


if __name__ == "__main__":
    faults = missing()
    if faults:
        packages = " ".join(DEBIAN_PACKAGES.read_text(encoding="utf-8").split())
        sys.exit("\n".join([*faults, f"On Debian or Ubuntu: sudo apt-get install {packages}"]))
