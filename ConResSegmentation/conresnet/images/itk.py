"""What readers of images have in common: what they give, where ITK's images lie, and ITK kept quiet meanwhile."""

from __future__ import annotations

import contextlib
import locale
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from conresnet.images.grid import LPS_TO_RAS, Grid

if os.name == "nt":
    # ITK's readers open a path, which comes as UTF-8, by the code page of the C library. Without this they do not find
    # a file whose path has other letters than English ones, such as a user's name.
    with contextlib.suppress(locale.Error):  # Windows before version 1803 of 10
        locale.setlocale(locale.LC_CTYPE, ".UTF8")


@dataclass
class ImageFile:
    """What a file holds: one or several 3-D images on one grid.

    Args:
        components: (c, k, j, i).
        grid: of each component.
    """

    components: np.ndarray
    grid: Grid


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of a SimpleITK image or reader of three or more dimensions."""
    dimensions = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (direction * np.array(image.GetSpacing()[:3]))
    affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()[:3]
    return Grid(tuple(reversed(image.GetSize()[:3])), affine)


@contextlib.contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep what ITK and the libraries in it print off stderr, where the command line prints one sentence of its own.

    Some write to file descriptor 2 themselves, so that is what is turned away for the while.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a program without a console has no descriptor 2
            _turn_away_stderr(stack)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _turn_away_stderr(stack: contextlib.ExitStack) -> None:
    kept = os.dup(2)
    stack.callback(os.close, kept)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, nowhere)
    os.dup2(nowhere, 2)
    stack.callback(os.dup2, kept, 2)
