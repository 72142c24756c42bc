"""A checkpoint in the format of the paper's authors, and a user who answers the questions about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PySide6 import QtWidgets

from engine import authors_network


@pytest.fixture
def checkpoint(data_folder: Path, tmp_path: Path) -> Path:
    """A narrow version of the authors' network, with tensor names as after training on several GPUs."""
    tensors = authors_network.state_dict(data_folder, base_width=8)
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "BraTS final.pth")
    return tmp_path / "BraTS final.pth"


def answers(result: int = 1, **texts: str) -> object:
    """Fills in the dialog and closes it."""

    def fill(dialog: QtWidgets.QDialog) -> int:
        for name, text in texts.items():
            dialog.findChild(QtWidgets.QLineEdit, name).setText(text)
        return result

    return fill
