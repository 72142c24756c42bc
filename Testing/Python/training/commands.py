"""Commands of the training backend, run in the tests' own process, and checks of their errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conresnet.errors import UserError
from conresnet_training.cli import main


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``python -m conresnet_training`` with these arguments; returns the exit status."""
    monkeypatch.setattr("sys.argv", ["conresnet_training", *map(str, arguments)])
    return main()


def message_of(code: str, **values: object) -> str:
    """Message with which a command reports this error."""
    return UserError(
        code, **{name: value if isinstance(value, int | float) else str(value) for name, value in values.items()}
    ).message


@contextmanager
def refused(code: str, **values: object) -> Iterator[None]:
    """Check that the block raises a UserError with this code, whose values include the given ones."""
    with pytest.raises(UserError) as raised:
        yield
    assert raised.value.code == code
    assert {name: raised.value.values.get(name) for name in values} == values
