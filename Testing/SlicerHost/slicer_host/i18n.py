"""``slicer.i18n``: translation of text for users. The stand-in returns English, Slicer's default."""

from __future__ import annotations

from pathlib import Path

__all__ = ["getContext", "tr", "translate"]


def getContext(sourceFile: str) -> str:
    """Return the context under which translators find a file's texts: its package, if it is in one, and its name."""
    path = Path(sourceFile)
    return f"{path.parent.name}.{path.stem}" if (path.parent / "__init__.py").is_file() else path.stem


def translate(context: str, text: str) -> str:
    """Return ``text`` in the user's language."""
    if not isinstance(context, str) or not isinstance(text, str):
        raise TypeError("translate takes two texts: the context and the text to translate")
    return text


def tr(text: str) -> str:
    """Return ``text`` in the user's language; the context is the calling module."""
    if not isinstance(text, str):
        raise TypeError("tr takes the text to be translated")
    return text
