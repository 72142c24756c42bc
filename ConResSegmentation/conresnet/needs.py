"""What the engine and training need from the Python that runs them.

``python -m conresnet.needs`` reports as JSON which of the engine's packages a Python has, or with the argument
``training``, which of those for training. The engine's packages are only looked up, which takes no time. Those for
training are actually imported, because a broken one would otherwise fail hours later.

This module uses only the standard library, and runs on a Python that is too old for the rest, so that it can report
that.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys

PYTHON = "3.11"
# Minimum versions as in pyproject.toml. Reading files and the command line also need nibabel and click.
ENGINE_PACKAGES = {"torch": "2.6", "numpy": "1.26", "SimpleITK": "2.3", "safetensors": "0.4.3"}
TRAINING_PACKAGES = {
    **ENGINE_PACKAGES,
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


def report(packages: dict, really_import: bool) -> dict:
    """Which of the packages this Python has; ``packages`` maps their names for pip to the minimum versions.

    Returns:
        "python" (its version), "python_is_enough", "platform" and "machine"; "packages": the version of each package
        that is installed, "" if it is unknown; "problems": what is wrong with each that is missing, broken or too old;
        "devices": the names of the GPUs that torch sees, if it was really imported.
    """
    found, problems, devices = {}, {}, []
    for name, least in packages.items():
        try:
            found[name] = _version(name, really_import)
        except Exception as error:
            problems[name] = str(error).partition("\n")[0] or type(error).__name__
        else:
            if not is_enough(found[name], least):
                problems[name] = f"{found[name]} is too old"
    if really_import and "torch" in found:
        cuda = importlib.import_module("torch").cuda
        devices = [cuda.get_device_name(number) for number in range(cuda.device_count())]
    return {
        "python": platform.python_version(),
        "python_is_enough": is_enough(platform.python_version(), PYTHON),
        "platform": sys.platform,
        "machine": platform.machine(),
        "packages": found,
        "problems": problems,
        "devices": devices,
    }


def _version(name: str, really_import: bool) -> str:
    """A package's version, "" if it is unknown. Raises ImportError if it is missing, or any error of its import."""
    module = importlib.import_module(_IMPORTED_AS.get(name, name)) if really_import else None
    spec = module.__spec__ if really_import else importlib.util.find_spec(_IMPORTED_AS.get(name, name))
    if spec is None:
        raise ImportError("not installed")
    # A package that was removed may leave an empty folder.
    if spec.origin is None:
        raise ImportError("only parts of it are installed")
    # Not every package says its version itself, and not every one was installed by pip.
    version = str(getattr(module, "__version__", ""))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = version or importlib.metadata.version(name)
    return version


def is_enough(version: str, least: str) -> bool:
    """Whether a version is ``least`` or later; an unknown one counts as later."""
    return not version or _numbers(version) >= _numbers(least)


def _numbers(version: str) -> list:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def read_report(output: str) -> dict:
    """The report in a program's output, after any lines that the packages print; {} if there is none."""
    lines = output.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) and "problems" in found else {}


def problem_of(found: dict, packages: dict, program: str):
    """What is wrong with the Python ``program`` according to its report, as a UserError; None if nothing is.

    Its code is ``python-not-running``, ``python-too-old`` or ``python-packages-missing``.
    """
    from conresnet.errors import UserError

    if not found:
        return UserError("python-not-running", program=program)
    if not found["python_is_enough"]:
        return UserError("python-too-old", program=program, found=found["python"], least=PYTHON)
    if not found["problems"]:
        return None
    names = list(found["problems"])
    values = {"names": ", ".join(names), "first": names[0], "reason": found["problems"][names[0]]}
    return UserError("python-packages-missing", **values, program=program, wanted=requirements(packages, names))


def requirements(packages: dict, names) -> str:
    """The packages with their minimum versions, as they are typed after ``pip install``."""
    return " ".join(f'"{name}>={packages[name]}"' for name in names)


if __name__ == "__main__":
    is_for_training = sys.argv[1:] == ["training"]
    print(json.dumps(report(TRAINING_PACKAGES if is_for_training else ENGINE_PACKAGES, really_import=is_for_training)))
