"""When a model needs an ROI to be of use. Torch-free, and without ITK, so that Slicer asks the same."""

from __future__ import annotations

import numpy as np

from conresnet.grid import Grid
from conresnet.package.description import ModelDescription

# A whole head has about seventy times the volume of the window of a model for the hippocampus.
_MUCH_LARGER = 27


def seen_at_once(description: ModelDescription, grid: Grid) -> np.ndarray:
    """(3,) mm along the model's S, H and W that it looks at in one window of an image on ``grid``."""
    spacing = description.preparation.spacing or [grid.spacing.min()] * 3
    return np.multiply(description.inference.window, spacing)


def wants_roi(description: ModelDescription, grid: Grid) -> bool:
    """Whether an image is so much larger than the crops that a model learned from that only an ROI makes it of use."""
    if description.preparation.roi == "limit":
        return False
    volume = grid.voxel_volume * np.prod(grid.shape, dtype=float)
    return bool(volume > _MUCH_LARGER * seen_at_once(description, grid).prod())
