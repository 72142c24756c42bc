"""How the parameter node wrapper stores typed values in a vtkMRMLScriptedModuleNode, under the same names as Slicer.

A node stores strings and node references. A value of a simple type is one string. A list is stored as ``<name>.len``
and ``<name>.<index>``, and a union as ``<name>.<index of the alternative>``. Slicer can read the saved scenes, too.
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing

import slicer

from .parameter_checks import IsInstance, NotNone, Validator
from .stored_list import StoredList

_PATHS = (pathlib.Path, pathlib.PurePath, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)


def split_annotated(kind: object) -> tuple[object, list]:
    """Return the bare type of ``Annotated[type, ...]`` and its annotations; a bare type has none."""
    if typing.get_origin(kind) is typing.Annotated:
        return kind.__origin__, list(kind.__metadata__)
    return kind, []


def codec_for(kind: object) -> Codec:
    """Return the codec for a type; TypeError for a type that Slicer or this stand-in does not support."""
    kind, annotations = split_annotated(kind)
    codec = _bare_codec(kind)
    codec.checks = codec.checks + [a() if isinstance(a, type) else a for a in annotations if _is_check(a)]
    return codec


def _is_check(annotation: object) -> bool:
    return isinstance(annotation, Validator) or (isinstance(annotation, type) and issubclass(annotation, Validator))


def _bare_codec(kind: object) -> Codec:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return Scalar(bool, False, lambda v: "True" if v else "False", lambda t: t == "True")
    if kind in (int, float):
        return Scalar((int, float) if kind is float else int, kind(0), str, kind)
    if kind is str:
        return Scalar(str, "", str, str)
    if kind in _PATHS:
        return Scalar(kind, kind(), str, kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Scalar(kind, next(iter(kind)), lambda v: v.name, lambda t: kind[t])
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return Node(kind)
    if kind is type(None):
        return Nothing()
    if origin in (typing.Union, types.UnionType):
        return Union([codec_for(argument) for argument in arguments])
    if origin is list and len(arguments) == 1:
        return List(codec_for(arguments[0]))
    if origin is tuple and arguments:
        return Tuple([codec_for(argument) for argument in arguments])
    raise TypeError(f"The parameter node wrapper does not store values of type {kind}")


class Codec:
    """Stores values of one type in a parameter node."""

    checks: typing.ClassVar[list[Validator]] = []

    def check(self, value: object) -> None:
        """Raise ValueError or TypeError for a value that is not allowed."""
        for check in self.checks:
            check.validate(value)

    def default(self) -> object:
        raise NotImplementedError

    def holds(self, node: object, name: str) -> bool:
        return node.HasParameter(name)

    def write(self, node: object, name: str, value: object) -> None:
        raise NotImplementedError

    def read(self, node: object, name: str) -> object:
        raise NotImplementedError

    def remove(self, node: object, name: str) -> None:
        node.UnsetParameter(name)


class Scalar(Codec):
    """A value stored as one string."""

    def __init__(self, kinds: object, default: object, to_text: typing.Callable, from_text: typing.Callable) -> None:
        self.kinds, self._default, self._to_text, self._from_text = kinds, default, to_text, from_text
        self.checks = [NotNone(), IsInstance(kinds)]

    def default(self) -> object:
        return self._default

    def write(self, node: object, name: str, value: object) -> None:
        self.check(value)
        node.SetParameter(name, self._to_text(value))

    def read(self, node: object, name: str) -> object:
        return self._from_text(node.GetParameter(name))


class Nothing(Codec):
    """None, as one alternative of a union."""

    def default(self) -> None:
        return None

    def check(self, value: object) -> None:
        if value is not None:
            raise TypeError(f"The value must be None, not {value!r}")

    def write(self, node: object, name: str, value: object) -> None:
        self.check(value)
        node.SetParameter(name, "None")

    def read(self, node: object, name: str) -> None:
        return None


class Node(Codec):
    """A MRML node or None, stored as a node reference, which is saved with the scene."""

    def __init__(self, kind: type) -> None:
        self.checks = [IsInstance(kind)]

    def default(self) -> None:
        return None

    def write(self, node: object, name: str, value: object) -> None:
        self.check(value)
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: object, name: str) -> object:
        return node.GetNodeReference(name)

    def remove(self, node: object, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class Union(Codec):
    """One of several types; ``Optional`` starts as None."""

    def __init__(self, alternatives: list[Codec]) -> None:
        self._alternatives = alternatives

    def default(self) -> object:
        optional = len(self._alternatives) == 2 and isinstance(self._alternatives[1], Nothing)
        return None if optional else self._alternatives[0].default()

    def holds(self, node: object, name: str) -> bool:
        return any(codec.holds(node, f"{name}.{i}") for i, codec in enumerate(self._alternatives))

    def check(self, value: object) -> None:
        super().check(value)
        self._chosen(value)

    def _chosen(self, value: object) -> int:
        refusal = TypeError(f"{value!r} has none of the parameter's types")
        for index, codec in enumerate(self._alternatives):
            if isinstance(value, bool) and isinstance(codec, Scalar) and codec.kinds is not bool:
                continue  # a bool is an int in Python, but not in Slicer's unions
            try:
                codec.check(value)
                return index
            except TypeError:
                continue
            except ValueError as error:
                refusal = error
        raise refusal

    def write(self, node: object, name: str, value: object) -> None:
        self.check(value)
        index = self._chosen(value)
        self.remove(node, name)
        self._alternatives[index].write(node, f"{name}.{index}", value)

    def read(self, node: object, name: str) -> object:
        for index, codec in enumerate(self._alternatives):
            if codec.holds(node, f"{name}.{index}"):
                return codec.read(node, f"{name}.{index}")
        raise KeyError(name)

    def remove(self, node: object, name: str) -> None:
        for index, codec in enumerate(self._alternatives):
            if codec.holds(node, f"{name}.{index}"):
                codec.remove(node, f"{name}.{index}")


class Tuple(Codec):
    """A fixed number of values."""

    def __init__(self, elements: list[Codec]) -> None:
        self._elements = elements

    def default(self) -> tuple:
        return tuple(codec.default() for codec in self._elements)

    def holds(self, node: object, name: str) -> bool:
        return self._elements[0].holds(node, f"{name}.0")

    def check(self, value: object) -> None:
        super().check(value)
        if not isinstance(value, tuple) or len(value) != len(self._elements):
            raise TypeError(f"The value must be a tuple of {len(self._elements)} elements, not {value!r}")
        for codec, element in zip(self._elements, value, strict=True):
            codec.check(element)

    def write(self, node: object, name: str, value: object) -> None:
        self.check(tuple(value))
        for index, (codec, element) in enumerate(zip(self._elements, value, strict=True)):
            codec.write(node, f"{name}.{index}", element)

    def read(self, node: object, name: str) -> tuple:
        return tuple(codec.read(node, f"{name}.{index}") for index, codec in enumerate(self._elements))

    def remove(self, node: object, name: str) -> None:
        for index, codec in enumerate(self._elements):
            codec.remove(node, f"{name}.{index}")


class List(Codec):
    """Any number of values of one type."""

    def __init__(self, element: Codec) -> None:
        self._element = element

    def default(self) -> list:
        return []

    def holds(self, node: object, name: str) -> bool:
        return node.HasParameter(f"{name}.len")

    def _length(self, node: object, name: str) -> int:
        return int(node.GetParameter(f"{name}.len")) if self.holds(node, name) else 0

    def check(self, value: object) -> None:
        super().check(value)
        for element in value:
            self._element.check(element)

    def write(self, node: object, name: str, value: object) -> None:
        values = list(value)
        self.check(values)
        before = self._length(node, name)
        for index, element in enumerate(values):
            self._element.write(node, f"{name}.{index}", element)
        node.SetParameter(f"{name}.len", str(len(values)))
        for index in range(len(values), before):
            self._element.remove(node, f"{name}.{index}")

    def read(self, node: object, name: str) -> StoredList:
        values = [self._element.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return StoredList(node, name, self, values)

    def remove(self, node: object, name: str) -> None:
        for index in range(self._length(node, name)):
            self._element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")
