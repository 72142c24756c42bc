"""Sentences about model packages, their networks, and imported checkpoints."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


MODELS: dict[str, str] = {}
