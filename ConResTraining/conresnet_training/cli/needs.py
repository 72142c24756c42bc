"""What training needs from the Python that runs it; ``python -m conresnet_training.cli.needs`` reports what it has.

Imports only the standard library and the engine's list of packages, and runs on a Python that is too old for the rest,
so that it can say so. The packages are really imported: a broken one would otherwise fail hours later.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import platform

from conresnet import needs as engine
from conresnet.needs import PYTHON, is_enough

# Minimum versions as in pyproject.toml: the engine's packages, those of its command line and of reading files, and the
# extra "training".
PACKAGES = {
    **engine.PACKAGES,
    "click": "8.1",
    "nibabel": "5.2",
    "pydicom": "2.4",
    "lightning-fabric": "2.4",
    "monai": "1.4",
    "psutil": "5.9",
    "pydantic": "2.7",
    "PyYAML": "6.0",
    "scipy": "1.15",
    "matplotlib": "3.8",
    "Jinja2": "3.1",
    "tensorboard": "2.16",
    "tqdm": "4.66",
}
_IMPORTED_AS = {"PyYAML": "yaml", "Jinja2": "jinja2", "lightning-fabric": "lightning_fabric"}


def missing_packages() -> list[str]:
    """Names (as for pip) of the packages that are not installed; nothing is imported."""
    missing = []
    for name in PACKAGES:
        spec = None
        with contextlib.suppress(ImportError):
            spec = importlib.util.find_spec(_IMPORTED_AS.get(name, name))
        if not engine.is_whole(spec):
            missing.append(name)
    return missing


def report() -> dict:
    """Versions of the packages, problems with those that are missing or too old, and the GPUs that torch sees."""
    found, problems = {}, {}
    for name, least in PACKAGES.items():
        try:
            module = importlib.import_module(_IMPORTED_AS.get(name, name))
            if not engine.is_whole(module.__spec__):
                raise ImportError("only parts of it are installed")
            found[name] = str(getattr(module, "__version__", ""))
            # Not every package says its version itself, and not every one was installed by pip.
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = found[name] or importlib.metadata.version(name)
        except Exception as error:
            problems[name] = str(error).partition("\n")[0] or type(error).__name__
        else:
            if not is_enough(found[name], least):
                problems[name] = f"{found[name]} is too old"
    devices = []
    if "torch" in found:
        cuda = importlib.import_module("torch").cuda
        devices = [cuda.get_device_name(number) for number in range(cuda.device_count())]
    return {
        "python": platform.python_version(),
        "python_is_enough": is_enough(platform.python_version(), PYTHON),
        "packages": found,
        "problems": problems,
        "devices": devices,
    }


if __name__ == "__main__":
    print(json.dumps(report()))
