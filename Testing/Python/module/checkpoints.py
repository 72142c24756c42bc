"""A checkpoint in the format of the paper's authors, and answers for the import dialog."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PySide6 import QtWidgets

from engine import authors_network


@pytest.fixture
def checkpoint(data_folder: Path, tmp_path: Path) -> Path:
    """A narrow version of the authors' network, with the tensor names that training on several GPUs produces."""
    tensors = authors_network.state_dict(data_folder, base_width=8)
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "BraTS final.pth")
    return tmp_path / "BraTS final.pth"


def answers(result: int = 1, **texts: str) -> object:
    """Return a function that fills in the dialog's fields and closes it with ``result``."""

    def fill(dialog: QtWidgets.QDialog) -> int:
        for name, text in texts.items():
            dialog.findChild(QtWidgets.QLineEdit, name).setText(text)
        return result

    return fill
