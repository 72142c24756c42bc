"""What the engine's process needs of the Python that runs it: ``python -m conresnet.needs`` says what is missing.

Imports the standard library alone, and runs on a Python that is too old for the rest, so that it can say so. Packages
are looked up and not imported, which takes no time. Reading files and the command line need nibabel and click besides.
"""

import importlib.metadata
import importlib.util
import json
import platform
import re
import sys

PYTHON = "3.11"
PACKAGES = {"torch": "2.6", "numpy": "1.26", "SimpleITK": "2.3", "safetensors": "0.4.3"}


def find_packages() -> dict:
    """The needed packages that are there, by name, with their versions; "" for one that does not tell."""
    found = {}
    for name in PACKAGES:
        if is_whole(importlib.util.find_spec(name)):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = ""
    return found


def is_whole(spec) -> bool:
    """Whether a package's spec names more than a folder: what a removal has left of one is importable, and empty."""
    return spec is not None and spec.origin is not None


def missing_packages(found: dict) -> list:
    """The names of the needed packages that are not among ``found`` or too old there."""
    return [name for name, least in PACKAGES.items() if name not in found or not is_enough(found[name], least)]


def is_enough(version: str, least: str) -> bool:
    """Whether a version is ``least`` or later; one that is not told counts as such."""
    return not version or _numbers(version) >= _numbers(least)


def _numbers(version: str) -> list:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


if __name__ == "__main__":
    found_here = find_packages()
    report = {
        "python": platform.python_version(),
        "python_is_enough": sys.version_info[:2] >= tuple(_numbers(PYTHON)),
        "platform": sys.platform,
        "machine": platform.machine(),
        "packages": found_here,
        "missing": missing_packages(found_here),
    }
    print(json.dumps(report))
