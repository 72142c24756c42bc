"""What a report of a fault should hold, and what it must not: the names of a patient's images."""

import os
import platform
from collections.abc import Iterable

import slicer


def report(engine, model: str, choices: dict[str, object], log: str, names: Iterable[str]) -> str:
    """A text for a fault report. Names of nodes, which may be a patient's, are replaced in it.

    Args:
        engine: the engine process.
        model: name and version of the model.
        choices: the settings in the panel, by name.
        log: what the panel has logged.
        names: of what was segmented, besides the nodes that are in the scene now.
    """
    app = slicer.app
    lines = [
        f"Slicer {app.applicationVersion} (revision {app.revision}) on {platform.platform()}",
        f"Model: {model}",
        *(f"{name}: {value}" for name, value in choices.items()),
        "",
        engine.diagnostics(),
        "Log of the module:",
        log,
    ]
    nodes = [*_nodes("vtkMRMLStorableNode"), *_nodes("vtkMRMLTransformNode")]
    return withoutNames("\n".join(lines), [*(node.GetName() for node in nodes), *sorted(names)])


def withoutNames(text: str, privateNames: list[str]) -> str:
    """The text with image names and the user's home folder replaced."""
    # A name of one or two letters tells nobody, and replacing it would leave nothing readable.
    names = [name for name in dict.fromkeys(privateNames) if len(name or "") > 2]
    named = sorted(enumerate(names, start=1), key=lambda item: -len(item[1]))
    for number, name in named:
        text = text.replace(name, f"<image {number}>")
    return text.replace(os.path.expanduser("~"), "~")


def _nodes(className: str) -> list:
    return [node for node in slicer.util.getNodesByClass(className) if not node.GetHideFromEditors()]
