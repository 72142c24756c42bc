"""Coarse to fine: Zhu et al., "A 3D Coarse-to-Fine Framework for Volumetric Medical Image Segmentation", 3DV 2018.

One network processes the whole case with few windows and locates the segments roughly (section 3.1). Another one
processes the box around them with many windows (section 3.2). Its result replaces the first one's in that box (section
3.3). The paper's networks are two ResDSN, but any two work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from conresnet.package.schema import dump, field
from conresnet.systems import PlannedArguments, Stage, System, register_system

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from conresnet.images import Box
    from conresnet.images.preparation import PreparedCase
    from conresnet.inference import Tiling
    from conresnet.inference.sliding import Accumulator, Passes
    from conresnet.package.reader import ModelPackage

COARSE_SHARE = 111 / 245
"""Share of the coarse pass in the time of both passes, from the paper's Table 5."""

# m in voxels. The paper found it by experiment but does not state it, so it was chosen here.
MARGIN = 20
# The paper's range for abdominal CT, in HU (4.1).
ABDOMEN = (-100, 240)
# The shares below which components are dropped: for an organ (4.2), and for one with lesions (4.3). Tissue, and organs
# that come in many pieces, keep all.
SHARES = (0.2, 0.05)
# How much of a segment's labeled voxels, over all cases looked at, a planned share may drop.
MOST_LOST = 0.01


@dataclass(frozen=True)
class Arguments:
    """Arguments of the system, with the defaults of the paper (4.1, 4.2) where it states them."""

    margin: int = field("voxels around what the coarse network found (m of eq. 4)", low=0, high=1000)
    coarse_windows: int = field(
        "n of section 4.1 for the coarse pass, which sets how much windows overlap", default=6, low=1, high=100
    )
    fine_windows: int = field("n of section 4.1 for the fine pass", default=12, low=1, high=100)
    smallest_component: float = field(
        "components smaller than this share of their segment are dropped; 0 keeps all", default=0.2, low=0, high=1
    )


@register_system("coarse_to_fine")
class CoarseToFine(System):
    """The two networks of a package, coarse and fine, and how they are combined.

    Small components are dropped from both results, as the paper does not distinguish them: 0.2 of a segment for an
    organ (section 4.2) and 0.05 for one with lesions (section 4.3).

    Where the package's tiling is "authors", windows are placed and averaged as in the paper (``counted_windows``,
    section 4.2). In a scan not much larger than a window that is one at nearly every voxel, which takes a GPU. Fitted
    windows take a fraction of the time. The package's ``mirror_axes`` apply to the fine pass only, because the coarse
    one is meant to be fast.

    Outside the box there is nothing: labels and every map are 0 there, as they are outside an ROI. P^C of eq. 5 is 0
    there, too, and showing the coarse network's probability next to the fine one's would show what was discarded.

    Training follows section 3: neither network sees what the other finds. The coarse one is trained on windows from the
    whole case, the fine one on windows around the segments, and validated in the boxes that the coarse one finds. True
    boxes would be optimistic: what the coarse network misses is lost, and its false positives enlarge the box.
    """

    Arguments = Arguments
    files = ("coarse", "fine")
    plans: ClassVar = {
        "coarse-to-fine": {
            "title": "ResDSN, coarse to fine",
            "sentence": "One ResDSN finds a small organ in the whole scan, and another segments it in the box around "
            "it. Trains for twice the steps.",
            "network": "resdsn",
        }
    }

    def __init__(self, package: ModelPackage):
        from conresnet.systems.predictors import Predictor

        self.predictors = [Predictor(package, [0], mirror_axes=()), Predictor(package, [1])]
        self._arguments = Arguments(**package.description.system.arguments)
        self._output = package.description.output

    @classmethod
    def shown(cls, networks: Sequence[Any]) -> Sequence[Any]:
        """The fine network makes the maps."""
        return networks[-1:]

    @classmethod
    def stages(cls, arguments: Mapping[str, Any]) -> Sequence[Stage]:
        """First the coarse network, then the fine one."""
        find_box = partial(box_around, margin=arguments["margin"], smallest=arguments["smallest_component"])
        return (Stage(), Stage(around_segments=True, find_box=find_box))

    @classmethod
    def plan_images(cls, model: dict[str, Any]) -> dict[str, str]:
        """Clip CT to the abdomen's range and take its z-score (4.1); leave MR unchanged.

        CT whose planned range, that of the values inside labels, exceeds the paper's keeps its own: bone, lung or a
        vessel with contrast medium would be clipped away.
        """
        low, high = ABDOMEN
        remarks = {}
        for item in model["inputs"]:
            planned = next((step for step in item["intensity"] if step["step"] == "clip"), None)
            if item["modality"] != "CT" or planned is None:
                continue
            if low <= planned["low"] and planned["high"] <= high:
                clip = {"step": "clip", "low": low, "high": high}
                item["intensity"] = [clip, {"step": "z_score", "over": "all", "outside": "keep"}]
                remark = "replaced by the paper's range for organs of the abdomen, which contains it"
            else:
                remark = f"which the paper's range ({low} ... {high}) does not contain"
            remarks[f"intensity {item['name']}"] = remark
        return remarks

    @classmethod
    def plan_arguments(cls, segments: Callable[[], Iterable[Sequence[np.ndarray]]] | None) -> PlannedArguments:
        """A margin, and the largest of the paper's shares of components to drop that the labels allow."""
        share = spared_share(segments()) if segments else SHARES[0]
        dropped = f"under {share:.0%} of a segment" if share else "none"
        return PlannedArguments(
            dump(Arguments(margin=MARGIN, smallest_component=share)),
            [
                ("margin", f"{MARGIN} voxels", "around what the coarse pass finds; the paper does not state it"),
                ("dropped components", dropped, "the larger of the paper's 20% and 5% that loses no labeled voxels"),
            ],
        )

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """P^C2F of a case: see ``System.segment``."""
        from conresnet.inference.labels import FoundSegments

        (coarse, fine), wanted = self.predictors, self._arguments
        found = FoundSegments(case, self._output)
        windows = _windows(passes.tiling, wanted.coarse_windows)
        passes.make("coarse", coarse, case, case.box(), windows, found, share=(0, COARSE_SHARE))
        found.drop_small_components(wanted.smallest_component)
        box = crop(found.labels, wanted.margin)
        if box is None:
            return
        into_box = DeCrop(passes.results, box)
        windows = _windows(passes.tiling, wanted.fine_windows)
        passes.make("fine", fine, case, box, windows, into_box, passes.maps, share=(COARSE_SHARE, 1))
        passes.results.drop_components_under(wanted.smallest_component)


def crop(found: np.ndarray, margin: int) -> Box | None:
    """Where X^F = Crop[X^C (x) P^C; P^C, m] lies in X^C (eq. 4).

    Only the box is cut out: X^F stays a part of X^C in memory and keeps its voxels outside P^C. (Setting those to 0, as
    the product reads literally, would leave nothing in the margin.)

    Args:
        found: P^C, nonzero where any segment is; (S, H, W).
        margin: m in voxels, along all three axes.

    Returns:
        The box that covers what was found plus the margin, within the image; None where nothing was found.
    """
    from conresnet.images import bounding_box, grown

    box = bounding_box(found)
    return None if box is None else grown(box, [margin] * 3, found.shape)


def box_around(masks: Iterable[np.ndarray], margin: int, smallest: float) -> Box | None:
    """The box (S, H, W) around what a coarse network found, one mask per segment, without small components."""
    import numpy as np

    from conresnet.inference.labels import small_components

    kept = None
    for mask in masks:
        kept = np.zeros(mask.shape, bool) if kept is None else kept
        if mask.any():
            kept |= mask & ~small_components(mask, smallest)
    return None if kept is None else crop(kept, margin)


def spared_share(segments: Iterable[Sequence[np.ndarray]]) -> float:
    """The largest of ``SHARES`` by which the labels of no segment lose more than ``MOST_LOST``; 0 where there is none.

    Args:
        segments: for each its masks, one per case.
    """
    masks = [_cut(of_segment) for of_segment in segments]
    return next((share for share in SHARES if max(_lost(one, share) for one in masks) <= MOST_LOST), 0.0)


def _cut(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks cropped to their bounding boxes, without empty ones."""
    from conresnet.images import bounding_box

    return [mask[box] for mask in masks if (box := bounding_box(mask)) is not None]


def _lost(masks: Sequence[np.ndarray], share: float) -> float:
    """Share of a segment's labeled voxels that is dropped."""
    import numpy as np

    from conresnet.inference.labels import small_components

    voxels = sum(np.count_nonzero(mask) for mask in masks)
    return sum(np.count_nonzero(small_components(mask, share)) for mask in masks) / max(voxels, 1)


class DeCrop:
    """P^C2F = DeCrop[P^F (.) P^C; X^F, X^C] (eq. 5): only the box inside the whole is replaced.

    ``whole`` takes slabs of X^C, where P^C outside the ``box``, X^F as ``crop`` has it, is 0 from the start.
    """

    def __init__(self, whole: Accumulator, box: Box):
        self._whole = whole
        self._box = box

    def restart(self) -> None:
        self._whole.restart()

    def finish(self, where: Box, values: Mapping[str, Tensor]) -> None:
        """Receive a finished slab of windows, which may extend beyond the box, and pass on the part inside the box."""
        from conresnet.images import overlap_of

        inside, cut = overlap_of(where, self._box)
        if any(part.start == part.stop for part in cut):
            return
        inside = tuple(slice(a.start + b.start, a.stop + b.start) for a, b in zip(inside, self._box, strict=True))
        self._whole.finish(inside, {name: value[(slice(None), *cut)] for name, value in values.items()})


def _windows(tiling: Tiling, more: int) -> Tiling:
    """The authors place floor(W / w) + n windows per axis."""
    return replace(tiling, kind="counted", more=more) if tiling.kind == "authors" else tiling
