"""Every sentence a user can read when something is wrong, by code: the only place where these sentences are written.

`conresnet.errors.UserError` looks its sentence up here. Slicer's module translates the same templates, which is why
each is marked by ``_()``. Names in braces are the values that come with the error. Standard library only.

A good sentence names the file or setting, says what is wrong and what to do, and ends with a period. It says "image"
and "ROI", which fit the command line and Slicer alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

from conresnet.messages.computing import COMPUTING
from conresnet.messages.images import IMAGES
from conresnet.messages.models import MODELS
from conresnet.messages.slicer import SLICER
from conresnet.messages.training import TRAINING

MESSAGES: dict[str, str] = {**IMAGES, **MODELS, **COMPUTING, **TRAINING, **SLICER}


def sentence(code: str, values: Mapping[str, Any], translate: Callable[[str], str] = str) -> str:
    """The sentence for a code.

    Args:
        code: a key of ``MESSAGES``.
        values: what the names in braces stand for.
        translate: from an English template to one in the user's language.

    Raises:
        KeyError: no sentence has this code, or a value that it names is missing.
    """
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    return translate(MESSAGES[code]).format(**shown)


def printable(text: str) -> str:
    r"""``text`` with control characters and lone surrogates escaped (``\x1b``), so that it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
