"""The measured figures that a package may bring, `metrics.json`: of any form, so long as it is one JSON object."""

from collections.abc import Iterator, Mapping
from typing import Any

from conresnet.package.fields import load_json
from conresnet.package.reader import ModelPackage

METRICS_FILE = "metrics.json"


def read_metrics(package: ModelPackage) -> dict[str, Any]:
    """What a package's `metrics.json` holds; empty where it brings none.

    Raises:
        UserError: ``package-json``, or that of ``ModelPackage.read_file``.
    """
    if METRICS_FILE not in package.description.files:
        return {}
    return load_json(package.read_file(METRICS_FILE), str(package.path / METRICS_FILE))


def figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each figure with its name in words, without the tables inside of tables: those of the single cases."""
    for name, value in metrics.items():
        for key, item in value.items() if isinstance(value, dict) else [("", value)]:
            if not isinstance(item, dict):
                yield f"{name} {key}".strip().replace("_", " "), item
