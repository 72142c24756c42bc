"""Dataclasses as the schema of a JSON document: a loader that checks, a writer, and rules for the documentation.

A field's type determines the type of its JSON value, and its `rule` the valid values:

    str, int, float                 text, a whole number, a finite number
    tuple[X, ...], tuple[X, X, X]   a list whose length the rule limits, or one of exactly three entries
    dict[str, Any]                  an object that another module defines; only its numbers and texts are checked
    dict[str, X], X                 objects by name, or one object, X being a dataclass
    X | None                        the same, or null

A field with a default may be omitted. Every other field is required, and a field that the dataclass does not have is
refused as a misspelling. A dataclass may also have

    faults(self)                    yields (field, reason) for each field that is inconsistent with the others
    resolved(self, place, version)  the same object with defaults that depend on its other fields

Standard library only, so that Slicer's process can use it.
"""

import dataclasses
import functools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from conresnet.errors import UserError

LONGEST_TEXT = 20_000
LONGEST_INTEGER = 20
# Control characters can control terminals, and lone surrogates cannot be written as UTF-8; line breaks and tabs are
# text.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Schema = TypeVar("Schema")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Valid values of a field.

    Args:
        note: meaning of the field, for the documentation.
        low, high: range of a number.
        choices: allowed texts.
        pattern, shape: regular expression for the whole text, and its description in error messages after "must".
        least, most: number of entries of a list; a list within a list has 1 to 100.
        blank: whether a required text may be blank.
        unique: whether the entries of a list must differ, even if case is ignored.
        keys: for objects by name: returns what is wrong with a name, or None.
        check: returns what is wrong with a value of the right type, or None.
        since: format version that introduced the field. Older documents must not have it.
        before: its value in older documents.
        omit: whether it is omitted when written if it is None.
    """

    note: str = ""
    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    choices: tuple[str, ...] = ()
    pattern: str = ""
    shape: str = ""
    least: int = 0
    most: int = 100
    blank: bool = False
    unique: bool = False
    keys: Callable[[str], str | None] | None = None
    check: Callable[[Any], str | None] | None = None
    since: int = 1
    before: Any = None
    omit: bool = False


def field(note: str, *, default: Any = dataclasses.MISSING, **rule: Any) -> Any:
    """A dataclass field with its `Rule`; a field with a ``default`` may be omitted in a document."""
    return dataclasses.field(default=default, metadata={"rule": Rule(note, **rule)})


@functools.cache
def rules(schema: type) -> list[tuple[dataclasses.Field, Any, Rule]]:
    """The fields of a dataclass, each with its type and its rule."""
    hints = typing.get_type_hints(schema)
    return [(item, hints[item.name], item.metadata.get("rule", Rule())) for item in dataclasses.fields(schema)]


@dataclasses.dataclass(frozen=True)
class Place:
    """Location of a value, for messages.

    Args:
        source: the file.
        where: the field, such as ``inputs[0]``; "" is the whole file.
        code: error code for a wrong value there; its message may use {file}, {field} and {reason}.
    """

    source: str
    where: str = ""
    code: str = "package-description"

    def inside(self, key: str) -> "Place":
        """Location of a field or entry of this value."""
        where = f"{self.where}.{key}" if self.where and key and key[0] != "[" else self.where + key
        return dataclasses.replace(self, where=where)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the UserError for this value, with the place's code."""
        # Names and values from the file may contain line breaks, but the message must stay on one line.
        where, reason = (" ".join(text.split()) for text in (self.where or "the document", reason))
        raise UserError(self.code, file=self.source, field=where, reason=reason)


def load(schema: type[Schema], document: Any, place: Place, version: int) -> Schema:
    """Read an object of a document into a dataclass; ``version`` is the document's format version.

    Raises UserError with the place's code, naming the first field that is missing, unknown or invalid.
    """
    _check_object(document, place)
    values, known = {}, set()
    for item, hint, rule in rules(schema):
        key = item.name
        if version < rule.since:
            values[key] = rule.before
            continue
        known.add(key)
        if item.default is not dataclasses.MISSING and document.get(key) is None:
            values[key] = item.default
        elif key not in document:
            place.inside(key).refuse("is missing")
        else:
            required = item.default is dataclasses.MISSING
            values[key] = _value(hint, document[key], rule, place.inside(key), version, required)
    for key in document:
        if key not in known:
            # Every new field increases the format version, so this one must be misspelled.
            place.inside(str(key)[:80]).refuse("is not a field of this format")
    made = schema(**values)
    if hasattr(made, "resolved"):
        made = made.resolved(place, version)
    if hasattr(made, "faults"):
        for key, reason in made.faults():
            place.inside(key).refuse(reason)
    return made


def dump(value: Any) -> Any:
    """A dataclass as JSON values; the inverse of `load`."""
    if dataclasses.is_dataclass(value):
        pairs = ((item, getattr(value, item.name), rule) for item, _hint, rule in rules(type(value)))
        return {item.name: dump(held) for item, held, rule in pairs if not (rule.omit and held is None)}
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in value.items()}
    return [dump(item) for item in value] if isinstance(value, tuple | list) else value


def _value(hint: Any, value: Any, rule: Rule, place: Place, version: int, required: bool) -> Any:
    """Check a value of the document and convert it to the field's type."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        made = _list(inner, value, rule, place, version)
    elif origin is dict:
        made = _mapping(inner[1], value, rule, place, version)
    elif dataclasses.is_dataclass(hint):
        made = load(hint, value, place, version)
    elif hint is str:
        made = _text(value, rule, place, required)
    else:
        made = _number(hint, value, rule, place)
    if rule.check and (reason := rule.check(made)):
        place.refuse(reason)
    return made


def check_value(hint: Any, value: Any, rule: Rule, place: Place) -> Any:
    """Check a value that no dataclass has a field for, such as one in a ``dict[str, Any]``, by the same rules.

    Returns it converted to its type. Raises UserError with the place's code.
    """
    return _value(hint, value, rule, place, 0, required=True)


def _check_object(value: Any, place: Place) -> None:
    if not isinstance(value, Mapping):
        place.refuse(f"must be an object, but is {_shown(value)}")


def _mapping(inner: Any, value: Any, rule: Rule, place: Place, version: int) -> dict[str, Any]:
    _check_object(value, place)
    if inner is Any:
        _check_leaves(value, place)
        return dict(value)
    for name in value:
        if rule.keys and (reason := rule.keys(name)):
            place.inside(name).refuse(reason)
    if reason := repeated(value):
        place.refuse(reason)
    return {name: load(inner, item, place.inside(name), version) for name, item in value.items()}


def _list(inner: tuple, value: Any, rule: Rule, place: Place, version: int) -> tuple:
    least, most = (rule.least, rule.most) if inner[-1] is Ellipsis else (len(inner), len(inner))
    if isinstance(value, str) or not isinstance(value, Sequence) or not least <= len(value) <= most:
        length = f"{least}" if least == most else f"{least} to {most}"
        place.refuse(f"must be a list of {length} entries, but is {_shown(value)}")
    # The rule's check and lengths apply to the list, its range and choices to the entries.
    of_entry = dataclasses.replace(rule, check=None, least=1, most=100)
    # An invalid number or text is reported with the name of its list.
    is_scalar = inner[0] in (str, int, float)
    made = tuple(
        _value(inner[0], item, of_entry, place if is_scalar else place.inside(f"[{index}]"), version, False)
        for index, item in enumerate(value)
    )
    if rule.unique and (reason := repeated(made)):
        place.refuse(reason)
    return made


def _text(value: Any, rule: Rule, place: Place, required: bool) -> str:
    if rule.choices:
        if not isinstance(value, str) or value not in rule.choices:
            place.refuse(f"must be one of {', '.join(rule.choices)}, but is {_shown(value)}")
        return value
    _check_text(value, place)
    if required and not rule.blank and not value.strip():
        place.refuse("must not be empty")
    if rule.pattern and not re.fullmatch(rule.pattern, value):
        place.refuse(f"must {rule.shape}, but is {_shown(value)}")
    return value


def _number(kind: type, value: Any, rule: Rule, place: Place) -> float:
    # An integer too large for a float makes float() raise, so the range, which is finite, is checked before.
    numbers = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, numbers) or not rule.low <= value <= rule.high:
        what = "a whole number" if kind is int else "a number"
        place.refuse(f"must be {what} from {rule.low:.12g} to {rule.high:.12g}, but is {_shown(value)}")
    return kind(value)


def _check_text(value: Any, place: Place) -> None:
    if not isinstance(value, str):
        place.refuse(f"must be text in quotes, but is {_shown(value)}")
    if len(value) > LONGEST_TEXT:
        place.refuse(f"must be text of at most {LONGEST_TEXT} characters, but is {_shown(value)}")
    if _UNPRINTABLE.search(value):
        place.refuse(f"must be text without control characters, but is {_shown(ascii(value))}")


def _check_leaves(value: Any, place: Place) -> None:
    """Refuse numbers and texts anywhere in a value that JSON readers interpret differently."""
    if isinstance(value, float) and not math.isfinite(value):
        place.refuse("contains a number that is not finite")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        place.refuse("contains a number that is too large")
    if isinstance(value, str):
        _check_text(value, place)
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check_leaves(item, place)


_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def plain_name(name: str) -> str | None:
    """A valid file or folder name on every system, without a path, drive or device."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        signs = 'unaccented letters, digits, ".", "_" and "-"'
        wanted = f"must be a plain name of at most 100 {signs} that begins with a letter or digit"
        return f'{wanted}, but is "{str(name)[:80]}"'
    if name[-1] == "." or _DEVICES.fullmatch(name):
        return f'must be a plain name on every system, which "{name[:80]}" is not on Windows'
    return None


def repeated(names: Iterable[str]) -> str | None:
    """Return what is wrong with names that must differ, or None.

    Two names that differ only in case are the same file on some systems, and the same structure to a reader.
    """
    seen = set()
    for name in names:
        if name.casefold() in seen:
            return f'contains "{name[:80]}" twice'
        seen.add(name.casefold())
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


TOO_DEEP = "it is nested too deeply"


def load_json(text: bytes, source: str) -> dict[str, Any]:
    """Parse the bytes of a JSON file that must hold one object, or raise UserError ``package-json``.

    Stricter than ``json.loads``: text that is not UTF-8, a repeated key, NaN, Infinity and 1e400 are refused, because
    two readers could understand such a file differently.
    """
    try:
        document = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (ValueError, RecursionError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else TOO_DEEP
    else:
        if isinstance(document, dict):
            return document
        reason = "it does not contain a JSON object"
    raise UserError("package-json", file=source, reason=reason)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:80]}" occurs twice')
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"the number {digits[:LONGEST_INTEGER]}... is too large")
    return int(digits)


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits[:LONGEST_INTEGER]} is too large")
    return value
