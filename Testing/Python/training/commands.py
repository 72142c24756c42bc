"""Commands of the training backend as a terminal gives them, but in the tests' own process, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conresnet.errors import UserError
from conresnet_training.cli.main import main


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of ``python -m conresnet_training`` with these arguments."""
    monkeypatch.setattr("sys.argv", ["conresnet_training", *map(str, arguments)])
    return main()


def sentence_of(code: str, **values: object) -> str:
    """What a command says when it is refused with this error."""
    return UserError(
        code, **{name: value if isinstance(value, int | float) else str(value) for name, value in values.items()}
    ).message


@contextmanager
def refused(code: str, **values: object) -> Iterator[None]:
    """The block must raise a UserError of this code, with these values among its own."""
    with pytest.raises(UserError) as raised:
        yield
    assert raised.value.code == code
    assert {name: raised.value.values.get(name) for name in values} == values
