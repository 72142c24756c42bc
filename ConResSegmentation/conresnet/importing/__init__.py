"""Checkpoints of the paper's authors, converted to model packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conresnet.package import ModelPackage

CHECKPOINT_SUFFIXES = (".pth", ".pt")


def import_checkpoint(
    checkpoint: Path, settings: Mapping[str, Any], output: Path, overwrite: bool = False
) -> tuple[ModelPackage, str]:
    """Write a model package from a checkpoint by the paper's authors.

    Args:
        settings: see ``conresnet.importing.brats.describe``.
        output: the package: a .zip file if its name ends so, else a folder.
        overwrite: whether it may replace an existing package.

    Returns:
        The package; and where in the checkpoint a running average of the weights was found, which was taken, or "".

    Raises:
        UserError: the checkpoint or the settings cannot be used, or the package cannot be written.
    """
    import safetensors.torch

    from conresnet.importing.brats import WEIGHTS_FILE, describe
    from conresnet.importing.checkpoint import convert, read_checkpoint
    from conresnet.package import write_package

    read = read_checkpoint(checkpoint)
    arguments, weights = convert(read.tensors, checkpoint)
    description = describe(arguments, settings, str(checkpoint))
    package = write_package(description, {WEIGHTS_FILE: safetensors.torch.save(weights)}, output, overwrite)
    return package, read.average or ""


def model_name(text: str) -> str:
    """The closest text that is a valid model name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "imported"
