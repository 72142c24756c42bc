"""Commands of the training backend as a terminal gives them, but in the tests' own process."""

import pytest

from conresnet_training.cli.main import main


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of ``python -m conresnet_training`` with these arguments."""
    monkeypatch.setattr("sys.argv", ["conresnet_training", *map(str, arguments)])
    return main()
