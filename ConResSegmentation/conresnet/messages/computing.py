"""Sentences about running the engine: devices, memory, requests, results, the command line."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


COMPUTING: dict[str, str] = {}
