"""Intensity steps: what is done to a channel's values before the network sees them, as a model package describes it.

Steps are data. Filters use a voxel's neighbors and come first in a list:
    ``{"step": "subtract_gaussian", "sigma_mm": 5.0}``; the image minus a smoothed copy, which leaves local contrast
    ``{"step": "equalize", "clip_limit": 0.01, "tiles": 8}``; contrast-limited adaptive histogram equalization (CLAHE)
        of each slice of the model's S axis, with so many tiles along H and W; values become 0 to 1

The others are functions of one voxel's value:
    ``{"step": "clip", "low": -100, "high": 240}``
    ``{"step": "clip_percentiles", "low": 0.5, "high": 99.5}`` of the foreground
    ``{"step": "z_score", "over": "foreground" | "all", "outside": "zero" | "keep"}``; voxels outside the foreground
        become 0, or are shifted and scaled like the others
    ``{"step": "z_score_slices", "over": ..., "outside": ...}``; the same for each slice of the model's S axis, whose
        deviation is at least 5 % of the whole channel's
    ``{"step": "rescale", "from": [-100, 240], "to": [0, 1]}``
    ``{"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50}``; the paper authors' step for BraTS: of a
        histogram of int(maximum) bins, values above the last bin with ``min_count`` voxels become that bin's index

VoxResNet (Chen et al., section 3.1) takes two channels per image: the image, every slice of which is normalized to zero
mean and unit variance, and a copy that is normalized the same way after subtract_gaussian and equalize.

`filters` computes a new float32 array of a whole channel. `fitting` measures a channel (cut to the ROI) once for the
other steps and then applies them to any block of it, so that without filters no float copy of a volume is needed.
"""

from conresnet.intensity.steps import check_steps, split_steps

__all__ = ["check_steps", "split_steps"]
