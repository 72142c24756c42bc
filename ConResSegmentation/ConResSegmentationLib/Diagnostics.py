"""What a report of a fault should hold, and what it must not: the names of a patient's images."""

import os
import platform

import slicer


def report(engine, model: str, choices: dict[str, object], privateNames: list[str], log: str) -> str:
    """A text for a fault report.

    Args:
        engine: the engine process.
        model: name and version of the model.
        choices: the settings in the panel, by name.
        privateNames: names of images in the scene, which may be a patient's; they are replaced wherever they occur.
        log: what the panel has logged.
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
    return withoutNames("\n".join(lines), privateNames)


def withoutNames(text: str, privateNames: list[str]) -> str:
    """The text with image names and the user's home folder replaced."""
    # A name of one or two letters tells nobody, and replacing it would leave nothing readable.
    names = [name for name in dict.fromkeys(privateNames) if len(name or "") > 2]
    named = sorted(enumerate(names, start=1), key=lambda item: -len(item[1]))
    for number, name in named:
        text = text.replace(name, f"<image {number}>")
    return text.replace(os.path.expanduser("~"), "~")
