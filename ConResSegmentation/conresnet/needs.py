"""What the engine's process needs from the Python that runs it: ``python -m conresnet.needs`` lists what is missing.

Standard library only, and it runs on a Python that is too old for the rest, so that it can report that. Packages are
looked up rather than imported, which takes no time. Reading files and the command line also need nibabel and click.
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
    """The installed ones of the needed packages, by name, with their versions; "" where a version is unknown."""
    found = {}
    for name in PACKAGES:
        if is_whole(importlib.util.find_spec(name)):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = ""
    return found


def is_whole(spec) -> bool:
    """Whether a package's spec names more than a folder: one that was removed may leave an empty folder."""
    return spec is not None and spec.origin is not None


def missing_packages(found: dict) -> list:
    """The names of the needed packages that are not in ``found`` or are too old."""
    return [name for name, least in PACKAGES.items() if name not in found or not is_enough(found[name], least)]


def is_enough(version: str, least: str) -> bool:
    """Whether a version is ``least`` or later; an unknown one counts as later."""
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
