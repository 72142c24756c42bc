"""The annotations of a parameter node's fields: default and allowed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


class Default:
    """The value of a parameter that has not been set; ``generator`` creates a new one each time."""

    def __init__(self, value: object = None, *, generator: Callable | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> object:
        return self._generator() if self._generator is not None else self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Default) and (self._value, self._generator) == (other._value, other._generator)

    __hash__ = None


class Validator:
    """A condition for values: ``validate`` raises ValueError or TypeError."""

    def validate(self, value: object) -> None:
        raise NotImplementedError


class NotNone(Validator):
    """The value must not be None."""

    def validate(self, value: object) -> None:
        if value is None:
            raise ValueError("The value must not be None")


class IsInstance(Validator):
    """The value must be an instance of a type, or None."""

    def __init__(self, classtype: object) -> None:
        self.classtype = classtype

    def validate(self, value: object) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"The value must be of type {self.classtype}, not {type(value)}: {value!r}")


@dataclasses.dataclass(eq=False)  # hashable, as typing requires of annotations
class WithinRange(Validator):
    """minimum <= value <= maximum."""

    minimum: float
    maximum: float

    def validate(self, value: float) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"The value must be within [{self.minimum}, {self.maximum}], not {value}")


@dataclasses.dataclass(eq=False)
class Minimum(Validator):
    """value >= minimum."""

    minimum: float

    def validate(self, value: float) -> None:
        if value < self.minimum:
            raise ValueError(f"The value must be at least {self.minimum}, not {value}")


@dataclasses.dataclass(eq=False)
class Maximum(Validator):
    """value <= maximum."""

    maximum: float

    def validate(self, value: float) -> None:
        if value > self.maximum:
            raise ValueError(f"The value must be at most {self.maximum}, not {value}")


@dataclasses.dataclass(eq=False)
class Choice(Validator):
    """The value must be one of these."""

    choices: list

    def validate(self, value: object) -> None:
        if value not in self.choices:
            raise ValueError(f"The value must be one of {self.choices}, not {value!r}")


@dataclasses.dataclass(eq=False)
class Exclude(Validator):
    """The value must be none of these."""

    excludedValues: list

    def validate(self, value: object) -> None:
        if value in self.excludedValues:
            raise ValueError(f"The value must not be one of {self.excludedValues}")


@dataclasses.dataclass
class Decimals:
    """Number of decimals that a connected widget shows."""

    value: int


@dataclasses.dataclass
class SingleStep:
    """Size of a single step of a connected widget."""

    value: float
