"""What a system asks of the images: how a plan's inputs, spacing and window change for it.

Each function changes the ``model`` of a plan in place.
"""

from typing import Any

from conresnet.errors import UserError

# The ResDSN paper's range for abdominal CT, in HU (4.1).
ABDOMEN = (-100, 240)
# Windows of a pyramid of two levels: the first level sees half as many voxels a side, in multiples of 8.
PYRAMID_STEP, PYRAMID_SMALLEST = 16, 32

_SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "keep"}


def as_planned(model: dict[str, Any]) -> None:
    """Take the images as the data alone decide."""


def slices_and_copies(model: dict[str, Any]) -> None:
    """Each slice normalized by itself, and beside each image a copy with its contrast evened out (VoxResNet, 3.1).

    The copy: the Gaussian-smoothed image subtracted, then contrast-limited adaptive histogram equalization. How wide
    the Gaussian is and how much contrast is allowed, the paper leaves open: chosen.
    """
    for item in model["inputs"]:
        clips = [step for step in item["intensity"] if step["step"] not in ("z_score", "rescale")]
        item["intensity"] = [*clips, dict(_SLICES)]
        smoothed = {"step": "subtract_gaussian", "sigma_mm": 5.0}
        equalized = {"step": "equalize", "clip_limit": 0.01, "tiles": 8}
        item["copies"] = [[smoothed, equalized, dict(_SLICES)]]


def abdomen_of_ct(model: dict[str, Any]) -> None:
    """CT is clipped to the range of the abdomen, then its z-score taken (ResDSN, 4.1); MR is left as it is.

    So is CT whose planned range, that of the values inside of labels, does not lie in the paper's: bone, lung or a
    vessel with contrast medium would be clipped away.
    """
    low, high = ABDOMEN
    for item in model["inputs"]:
        planned = next((step for step in item["intensity"] if step["step"] == "clip"), None)
        if item["modality"] == "CT" and planned and low <= planned["low"] and planned["high"] <= high:
            clip = {"step": "clip", "low": low, "high": high}
            item["intensity"] = [clip, {"step": "z_score", "over": "all", "outside": "keep"}]


def half_resolution(model: dict[str, Any]) -> None:
    """Voxels of twice the size, in a window of as many of them: a pyramid's last level works at 1/2 (2.2, S = 2).

    In training that level sees the half of the window in its middle, which spans what the whole window of another
    system spans; so both are trained on as much of a case, and the first level sees twice as far.

    Raises:
        UserError: ``spacing-unknown`` where images keep their own.
    """
    preparation, inference = model["preparation"], model["inference"]
    if preparation["spacing"] is None:
        sentence = "The plan leaves every image its own spacing, of which there is no double; plan with a spacing."
        raise UserError("spacing-unknown", sentence)
    preparation["spacing"] = [round(2 * mm, 4) for mm in preparation["spacing"]]
    sides = (-(-side // PYRAMID_STEP) * PYRAMID_STEP for side in inference["window"])
    inference["window"] = [max(side, PYRAMID_SMALLEST) for side in sides]
