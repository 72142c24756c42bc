"""The text of a bug report, without the names of images, which may identify a patient."""

import os
import platform
from collections.abc import Iterable

import slicer


def report(engine, model: str, choices: dict[str, object], log: str, names: Iterable[str]) -> str:
    """The text of a bug report. Names of nodes, which may identify a patient, are replaced.

    Args:
        engine: the engine process.
        model: name and version of the model.
        choices: the settings of the panel by name.
        log: the panel's log.
        names: names of what was segmented earlier, in addition to the nodes of the scene.
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
    """The text with the given names and the user's home folder replaced."""
    # A name of one or two letters identifies nobody, and replacing it would make the text unreadable.
    names = [name for name in dict.fromkeys(privateNames) if len(name or "") > 2]
    named = sorted(enumerate(names, start=1), key=lambda item: -len(item[1]))
    for number, name in named:
        text = text.replace(name, f"<image {number}>")
    return text.replace(os.path.expanduser("~"), "~")


def _nodes(className: str) -> list:
    return [node for node in slicer.util.getNodesByClass(className) if not node.GetHideFromEditors()]
