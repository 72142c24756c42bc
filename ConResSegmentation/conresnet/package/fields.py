"""Checked values out of a parsed JSON document: every refusal is one sentence that names the file and the field."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from conresnet.errors import UserError

LONGEST_TEXT = 20_000
LONGEST_INTEGER = 20
# Control characters steer terminals, and lone surrogates cannot be written as UTF-8; line breaks and tabs are text.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Item = TypeVar("Item")


def load_json(text: bytes, source: str) -> dict[str, Any]:
    """Parse the bytes of a JSON file that must hold one object.

    Stricter than ``json.loads``: not UTF-8, a repeated key, NaN and Infinity are refused, since each means that two
    readers could understand the file differently.

    Raises:
        UserError: ``package-json``.
    """
    try:
        document = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (ValueError, RecursionError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else "it is nested too deeply"
    else:
        if isinstance(document, dict):
            return document
        reason = "it does not hold a JSON object"
    raise UserError(
        "package-json",
        f"{source} cannot be read as JSON ({reason}); get a fresh copy of the model package.",
        file=source,
        reason=reason,
    )


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:80]}" is there twice')
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"{digits[:LONGEST_INTEGER]}... is too large a number")
    return int(digits)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """The fields of one JSON object, each read once and checked; `finish` refuses those that nobody asked for.

    Args:
        document: the parsed object.
        source: the file's name for messages.
        where: the object's place in the file, such as ``inputs[0]``; empty for the file itself.
    """

    def __init__(self, document: Any, source: str, where: str = ""):
        self.source = source
        self.where = where
        if not isinstance(document, Mapping):
            self.refuse("", f"must be an object, but is {_shown(document)}")
        self._document = document
        self._asked: set[str] = set()

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Raise the `UserError` ``package-description`` for the field `key` (empty: for the object itself)."""
        # Names and values from the file may hold line breaks, and the sentence stays one line.
        place = " ".join(self._place(key).split())
        reason = " ".join(reason.split())
        subject = f'"{place}"' if place else "the whole"
        raise UserError(
            "package-description",
            f"The model description {self.source} is wrong: {subject} {reason}; correct it or get a fresh package.",
            file=self.source,
            field=place,
            reason=reason,
        )

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where and key else self.where or key

    def names(self) -> tuple[str, ...]:
        """The keys of an object whose keys are names, all of them asked for by this."""
        self._asked.update(self._document)
        return tuple(self._document)

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        self._asked.add(key)
        return self._document.get(key) is not None

    def value(self, key: str) -> Any:
        """The field as it stands; refused when it is missing."""
        self._asked.add(key)
        if key not in self._document:
            self.refuse(key, "is missing")
        return self._document[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A string; one without a default must be there and not be blank."""
        if default is not None and not self.has(key):
            return default
        value = self.value(key)
        self._check_text(key, value)
        if default is None and not value.strip():
            self.refuse(key, "must not be empty")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        value = self.value(key)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, f"must be one of {', '.join(choices)}, but is {_shown(value)}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        return self._number(key, self.value(key), low, high)

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return self._integer(key, self.value(key), low, high)

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of exactly `count` finite numbers."""
        return tuple(self._number(key, value, low, high) for value in self._list(key, count, count))

    def integers(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """A list of exactly `count` whole numbers."""
        return tuple(self._integer(key, value, low, high) for value in self._list(key, count, count))

    def texts(self, key: str, most: int = 100) -> tuple[str, ...]:
        """A list of strings; a missing one is empty."""
        if not self.has(key):
            return ()
        values = self._list(key, 0, most)
        for value in values:
            self._check_text(key, value)
        return tuple(values)

    def plain_object(self, key: str) -> dict[str, Any]:
        """An object whose meaning belongs to another room; only its numbers and texts are checked."""
        value = self.value(key)
        if not isinstance(value, Mapping):
            self.refuse(key, f"must be an object, but is {_shown(value)}")
        self._check_leaves(key, value)
        return dict(value)

    def plain_objects(self, key: str, most: int = 100) -> tuple[dict[str, Any], ...]:
        """A list of such objects; a missing one is empty."""
        if not self.has(key):
            return ()
        values = self._list(key, 0, most)
        if not all(isinstance(value, Mapping) for value in values):
            self.refuse(key, f"must be a list of objects, but is {_shown(list(values))}")
        self._check_leaves(key, values)
        return tuple(dict(value) for value in values)

    def lists_of_plain_objects(self, key: str, most: int) -> tuple[tuple[dict[str, Any], ...], ...]:
        """A list of at most `most` lists of such objects, none of them empty; a missing one is empty."""
        if not self.has(key):
            return ()
        values = self._list(key, 0, most)
        lists = Fields({f"{key}[{index}]": value for index, value in enumerate(values)}, self.source, self.where)
        for place in lists.names():
            if not lists.has(place) or not lists.plain_objects(place):
                lists.refuse(place, "must not be empty")
        return tuple(lists.plain_objects(place) for place in lists.names())

    def child(self, key: str) -> "Fields":
        """The fields of an object inside this one."""
        return Fields(self.value(key), self.source, self._place(key))

    def children(self, key: str, parse: Callable[["Fields"], Item], most: int) -> tuple[Item, ...]:
        """A list of 1 to `most` objects, each parsed by `parse`."""
        values = self._list(key, 1, most)
        return tuple(
            parse(Fields(value, self.source, f"{self._place(key)}[{index}]")) for index, value in enumerate(values)
        )

    def finish(self) -> None:
        """Refuse fields that nobody asked for: the format version rises with each new field, so they are misspelled."""
        for key in self._document:
            if key not in self._asked:
                self.refuse(str(key)[:80], "is not a field of this format")

    def _list(self, key: str, least: int, most: int) -> Sequence[Any]:
        values = self.value(key)
        if isinstance(values, str) or not isinstance(values, Sequence) or not least <= len(values) <= most:
            length = f"{least}" if least == most else f"{least} to {most}"
            self.refuse(key, f"must be a list of {length} entries, but is {_shown(values)}")
        return values

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
        # An integer too large for a float makes float() raise, so the range is checked before.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(key, f"must be a number from {low:g} to {high:g}, but is {_shown(value)}")
        return float(value)

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"must be a whole number from {low} to {high}, but is {_shown(value)}")
        return value

    def _check_text(self, key: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            self.refuse(key, f"must be text of at most {LONGEST_TEXT} characters, but is {_shown(value)}")
        if _UNPRINTABLE.search(value):
            self.refuse(key, f"must be text without control characters, but is {_shown(ascii(value))}")

    def _check_leaves(self, key: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(key, "holds a number that is not finite")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
            self.refuse(key, "holds a number that is too large")
        if isinstance(value, str):
            self._check_text(key, value)
        if isinstance(value, Mapping):
            value = [*value, *value.values()]
        if isinstance(value, Sequence) and not isinstance(value, str):
            for item in value:
                self._check_leaves(key, item)
