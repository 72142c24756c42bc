"""Settings inside a plan's content, named by keys such as ``training.steps``."""

import difflib
from collections.abc import Iterator
from typing import Any

from conresnet.errors import UserError


def replace_setting(content: Any, key: str, value: Any) -> None:
    """Replace what ``key`` names in nested dicts and lists by ``value``.

    Args:
        key: the keys on the way to the setting, joined by dots, such as ``model.system.networks.0.base_width``.

    Raises:
        UserError: ``setting-unknown`` with the nearest key there is, or ``setting-too-deep``.
    """
    parts = key.split(".")
    place = content
    for depth, part in enumerate(parts):
        choices = _keys(place)
        if part not in choices:
            if whole := [known for known in _all_keys(content) if known.endswith(f".{key}")]:
                raise UserError("setting-unknown", setting=key, nearest=min(whole, key=lambda known: known.count(".")))
            above = "".join(f"{known}." for known in parts[:depth])
            nearest = difflib.get_close_matches(part, choices, 1, 0)
            if not nearest:
                raise UserError("setting-too-deep", setting=key, above=above[:-1])
            raise UserError("setting-unknown", setting=key, nearest=f"{above}{nearest[0]}")
        step = int(part) if isinstance(place, list) else part
        if depth + 1 == len(parts):
            place[step] = value
        place = place[step]


def _keys(place: Any) -> list[str]:
    if isinstance(place, dict):
        return list(place)
    return [str(index) for index in range(len(place))] if isinstance(place, list) else []


def _all_keys(place: Any, above: str = "") -> Iterator[str]:
    """The keys of nested dicts and lists, each with those above it."""
    for key in _keys(place):
        yield above + key
        yield from _all_keys(place[int(key) if isinstance(place, list) else key], f"{above}{key}.")
