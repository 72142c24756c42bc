"""Commands of the training backend as a terminal gives them, but in the tests' own process."""

import pytest
import torch

from conresnet_training.command_line import main


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of ``python -m conresnet_training`` with these arguments, on one thread."""
    monkeypatch.setattr("sys.argv", ["conresnet_training", *map(str, arguments)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main()
    finally:
        torch.set_num_threads(threads)
