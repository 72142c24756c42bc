"""The value of a parameter of a list type."""

from __future__ import annotations

import collections.abc

import slicer


class StoredList(collections.abc.MutableSequence):
    """A list whose changes are written to the parameter node immediately."""

    def __init__(self, node: object, name: str, codec: object, values: list) -> None:
        self._node, self._name, self._codec, self._values = node, name, codec, values

    def _store(self, values: list) -> None:
        with slicer.util.NodeModify(self._node):
            self._codec.write(self._node, self._name, values)
            self._values = self._codec.read(self._node, self._name)._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: object) -> object:
        return self._values[index]

    def __setitem__(self, index: object, value: object) -> None:
        values = list(self._values)
        values[index] = value
        self._store(values)

    def __delitem__(self, index: object) -> None:
        values = list(self._values)
        del values[index]
        self._store(values)

    def insert(self, index: int, value: object) -> None:
        values = list(self._values)
        values.insert(index, value)
        self._store(values)

    def __iadd__(self, other: object) -> StoredList:
        self._store(self._values + list(other))
        return self

    def __imul__(self, times: int) -> StoredList:
        self._store(self._values * times)
        return self

    def _no_copy(self, other: object) -> StoredList:
        """Refuse + and *, as Slicer does, because they would create a list that is not connected to the node."""
        raise NotImplementedError("Lists of a parameter node can be changed in place only, by += and *=")

    __add__ = __radd__ = __mul__ = __rmul__ = _no_copy

    def sort(self, **how: object) -> None:
        self._store(sorted(self._values, **how))

    def __eq__(self, other: object) -> bool:
        return self._values == (other._values if isinstance(other, StoredList) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"StoredList({self._values})"
