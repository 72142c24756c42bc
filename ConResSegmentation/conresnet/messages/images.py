"""Sentences about image files, their geometry, channels and ROIs."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


IMAGES: dict[str, str] = {}
