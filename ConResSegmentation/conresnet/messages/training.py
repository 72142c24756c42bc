"""Sentences about training: data sets, plans, runs, evaluation."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


TRAINING: dict[str, str] = {}
