"""Write docs/model.schema.json, and the table of fields in docs/model-package.md, from the dataclasses of model.json.

Run it after a change of ``conresnet.package`` or its ``outputs``; a test checks that both files are current.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "ConResSegmentation"))

from conresnet.package import ModelDescription, System  # noqa: E402
from conresnet.package.schema import LONGEST_TEXT, Rule, rules  # noqa: E402
from conresnet.systems import declared_system, system_names  # noqa: E402

PAGE, SCHEMA = REPOSITORY / "docs" / "model-package.md", REPOSITORY / "docs" / "model.schema.json"
MARKED = re.compile(r"(<!-- begin generated -->\n).*?(<!-- end generated -->)", re.DOTALL)
DERIVED = (
    "`axial`, `coronal` or `sagittal`: the slices that are compared. It follows from the network and the orientation"
)


def table() -> str:
    """The fields as a Markdown table; a dot stands for a field of an object, ``[]`` for the entries of a list."""
    rows = [f"| {path} | {kind} | {meaning} |" for path, kind, meaning in _rows(ModelDescription, "", set())]
    rows.append(f"| `residual_axis` * | string | {DERIVED} |")
    return "\n".join(["| field | value | meaning |", "|---|---|---|", *rows]) + "\n"


def _rows(schema: type, above: str, seen: set[type]) -> Iterator[tuple[str, str, str]]:
    """A row for each field, and below it those of the objects that it holds, once for each kind of object."""
    for item, hint, rule in rules(schema):
        is_optional = item.default is not dataclasses.MISSING
        since = f" (from format version {rule.since})" if rule.since > 1 else ""
        path = above + item.name
        yield f"`{path}` *" if is_optional else f"`{path}`", _words(hint, rule), rule.note + since
        inner, mark = _inner(hint)
        if inner is not None and inner not in seen:
            seen.add(inner)
            yield from _rows(inner, f"{path}{mark}.", seen)
        if (schema, item.name) == (System, "arguments"):
            yield from _rows_of_systems(path)


def _rows_of_systems(above: str) -> Iterator[tuple[str, str, str]]:
    for name in system_names():
        if arguments := declared_system(name).Arguments:
            for path, kind, meaning in _rows(arguments, f"{above}.", set()):
                yield path, kind, f"for `{name}`: {meaning}"


def _inner(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a field holds, and how the path to its fields goes on."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    inner, mark = (arguments[0], "[]") if origin is tuple else (arguments[-1], ".*") if origin is dict else (hint, "")
    return (inner, mark) if dataclasses.is_dataclass(inner) else (None, "")


def _words(hint: Any, rule: Rule) -> str:
    """What a field's value is, in words."""
    if isinstance(hint, types.UnionType):
        return f"{_words(typing.get_args(hint)[0], rule)}, or null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        count = f"{len(arguments)} " if arguments[-1] is not Ellipsis else ""
        return f"list of {count}{_plural(_words(arguments[0], rule))}"
    if origin is dict:
        return "object" if arguments[1] is Any else "objects by file name"
    if hint is str:
        return " or ".join(f"`{choice}`" for choice in rule.choices) if rule.choices else "string"
    if hint in (int, float):
        limits = f"from {rule.low:g} to {rule.high:.10g}" if math.isfinite(rule.high) else f"of at least {rule.low:g}"
        return f"{'whole number' if hint is int else 'number'} {limits}"
    return "object"


def _plural(words: str) -> str:
    first, rest = re.fullmatch(r"(whole number|number|object|string|list)?(.*)", words).groups()
    return f"{first}s{rest}" if first else rest


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the newest format version, without conditions on several fields together."""
    schema = _object(ModelDescription)
    schema["properties"]["residual_axis"] = {"enum": ["axial", "coronal", "sagittal"], "description": DERIVED}
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ConResNet model package: model.json"}
    return {**title, **schema}


def _object(schema: type) -> dict[str, Any]:
    fields = rules(schema)
    return {
        "type": "object",
        "properties": {item.name: _field(item, hint, rule) for item, hint, rule in fields},
        "required": [item.name for item, _hint, _rule in fields if item.default is dataclasses.MISSING],
        "additionalProperties": False,
    }


def _field(item: dataclasses.Field, hint: Any, rule: Rule) -> dict[str, Any]:
    value = _value(hint, rule)
    if item.default is not dataclasses.MISSING:
        value = {"anyOf": [value, {"type": "null"}]}
    return {**value, "description": rule.note}


def _value(hint: Any, rule: Rule) -> dict[str, Any]:
    if isinstance(hint, types.UnionType):
        return {"anyOf": [_value(typing.get_args(hint)[0], rule), {"type": "null"}]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        least, most = (rule.least, rule.most) if arguments[-1] is Ellipsis else (len(arguments),) * 2
        entries = {"type": "array", "items": _value(arguments[0], rule), "minItems": least, "maxItems": most}
        return {**entries, "uniqueItems": True} if rule.unique else entries
    if origin is dict:
        return (
            {"type": "object"}
            if arguments[1] is Any
            else {"type": "object", "additionalProperties": _object(arguments[1])}
        )
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    if hint is str:
        if rule.choices:
            return {"enum": list(rule.choices)}
        pattern = {"pattern": f"^(?:{rule.pattern})$"} if rule.pattern else {}
        return {"type": "string", "maxLength": LONGEST_TEXT, **pattern}
    bounds = {"minimum": rule.low, "maximum": rule.high}
    kind = "integer" if hint is int else "number"
    return {"type": kind, **{name: bound for name, bound in bounds.items() if math.isfinite(bound)}}


def page(text: str) -> str:
    """docs/model-package.md with the current table."""
    return MARKED.sub(lambda found: found[1] + table() + found[2], text)


def schema_text() -> str:
    """The content of docs/model.schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    SCHEMA.write_text(schema_text(), encoding="utf-8", newline="\n")
