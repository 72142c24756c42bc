"""The connected components of what was found. Torch-free."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk


def small_components(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The voxels of those components that are less than a share of the whole.

    Voxels that touch, be it by a corner, belong together (chosen). The largest component is never small, so that an
    object in many pieces does not vanish whole (chosen).

    Args:
        mask: bool, three axes.
        smallest: 0 to 1.

    Returns:
        bool of the same shape.
    """
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    by_size = sitk.RelabelComponentImageFilter()
    components = sitk.GetArrayFromImage(by_size.Execute(sitk.ConnectedComponent(image, True)))
    sizes = np.array(by_size.GetSizeOfObjectsInPixels())
    large = np.count_nonzero(sizes >= smallest * sizes.sum())
    return components > max(1, large)
