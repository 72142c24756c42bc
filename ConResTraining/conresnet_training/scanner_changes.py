"""Changes that make one scanner's images look like another's, or like images that were processed before."""

import torch
from monai.transforms import RandBiasField
from torch import Tensor
from torch.nn.functional import max_pool3d

FIELD_DEGREE = 3
# A window with fewer voxels of labels has too few to measure intensities by.
SMALLEST_SHARE = 0.02


class RandCoilField(RandBiasField):
    """A smooth brightening and darkening, as by a receiving coil. The darkest value, air, stays as it is.

    MONAI's own multiplies the values as they are, which after a z-score would turn dark tissue darker where the coil is
    near.
    """

    def __init__(self, largest: float):
        super().__init__(degree=FIELD_DEGREE, coeff_range=(-largest, largest), prob=0.5)

    def __call__(self, image: Tensor) -> Tensor:
        """An image (C, S, H, W) with the field."""
        air = image.amin((1, 2, 3), keepdim=True)
        return super().__call__(image - air) + air


def isolated(image: Tensor, label: Tensor, margin: int) -> Tensor:
    """An image with air around the labels, and what is left normalized anew, as skull stripping leaves a head.

    Args:
        image: (C, S, H, W).
        label: (S, H, W), 0 where nothing is labelled.
        margin: voxels around the labels that stay.

    Returns:
        (C, S, H, W); ``image`` itself where hardly anything of it is labelled.
    """
    kept = (label > 0).float()[None]
    if margin:
        kept = max_pool3d(kept, 2 * margin + 1, stride=1, padding=margin)
    kept = kept[0] > 0
    if kept.float().mean() < SMALLEST_SHARE:
        return image
    inside = image[:, kept]
    deviation, mean = torch.std_mean(inside, dim=1)
    stripped = torch.where(kept, image, image.amin((1, 2, 3), keepdim=True))
    return (stripped - mean.view(-1, 1, 1, 1)) / deviation.clamp(min=1e-3).view(-1, 1, 1, 1)
