"""Coarse to fine: Zhu et al., "A 3D Coarse-to-Fine Framework for Volumetric Medical Image Segmentation", 3DV 2018.

One network looks through the whole case with few windows and finds about where the segments are (section 3.1); another
one looks at the box around them with many (section 3.2); its answer takes the place of the first one's in that box
(section 3.3). The paper's networks are two ResDSN, but any two may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from conresnet.images.grid import Box, bounding_box
from conresnet.images.preparation import PreparedCase
from conresnet.inference.devices import Backend
from conresnet.inference.results import FoundSegments
from conresnet.inference.sliding import Accumulator, Passes
from conresnet.inference.windows import Tiling
from conresnet.package import ModelPackage
from conresnet.systems.one_pass import SingleNetwork

COARSE_SHARE = 111 / 245
"""Of the time that both passes take together, by the paper's Table 5."""


class CoarseToFine:
    """The two networks of a package, coarse and fine, and the way from one to the other.

    Its arguments in the package:
        margin: m of eq. 4 in voxels of the model; the paper found it by experiment and does not state it.
        coarse_windows, fine_windows: n of section 4.1, by which windows overlap: 6 and 12 in the paper.
        smallest_component: share of a segment below which a component of it is thrown away, 0.2 for an organ (section
            4.2) and 0.05 for one with lesions (section 4.3); 0 keeps all. Both passes' answers are freed of them, as
            the paper does not tell one from the other.

    Where the package's tiling is "authors", windows are laid and averaged as the paper has it (``counted_windows``,
    section 4.2): in a scan not much larger than a window, one at nearly every voxel, which takes a GPU. Fitted ones
    take a fraction of the time. The package's ``mirror_axes`` serve the fine pass alone, since the coarse one is there
    to be quick.

    Outside the box there is nothing: labels and every map are 0 there, as they are outside an ROI. P^C of eq. 5 is 0
    there too, and to show the coarse network's probability beside the fine one's would show what was thrown away.

    Attributes:
        See ``conresnet.systems.one_pass.System``; the maps are the fine network's.

    Args:
        package: read for the description and the weights; not kept.

    Raises:
        UserError: what loading a network raises.
    """

    def __init__(self, package: ModelPackage):
        description, arguments = package.description, package.description.system.arguments
        inference = description.inference
        self._coarse = SingleNetwork(package, 0, mirror_axes=())
        self._fine = SingleNetwork(package, 1)
        self._output = description.output
        self._margin = arguments["margin"]
        self._coarse_windows, self._fine_windows = arguments["coarse_windows"], arguments["fine_windows"]
        self._smallest = arguments["smallest_component"]
        self._nothing = (
            f"The coarse pass of {description.title} found nothing in this case, so the result is empty; check that "
            "the image shows what the model segments, or draw an ROI around it."
        )
        self.predictors = [self._coarse, self._fine]
        self.networks = [network for predictor in self.predictors for network in predictor.networks]
        self.maps = self._fine.maps
        self.tiling = Tiling(inference.tiling, inference.window, inference.overlap, inference.blending)

    def place(self, backend: Backend) -> None:
        """Move to a device, for its precision."""
        for predictor in self.predictors:
            predictor.place(backend)

    def segment(self, case: PreparedCase, passes: Passes) -> None:
        """P^C2F of a case: see ``System.segment``."""
        found = FoundSegments(case, self._output)
        windows = _windows(passes.tiling, self._coarse_windows)
        passes.make("coarse", self._coarse, case, case.box(), windows, found, share=(0, COARSE_SHARE))
        found.drop_small_components(self._smallest)
        box = crop(found.labels, self._margin)
        if box is None:
            passes.warn(self._nothing)
            return
        into_box = DeCrop(passes.results, box)
        windows = _windows(passes.tiling, self._fine_windows)
        passes.make("fine", self._fine, case, box, windows, into_box, passes.maps, share=(COARSE_SHARE, 1))
        passes.results.drop_components_under(self._smallest)


def crop(found: np.ndarray, margin: int) -> Box | None:
    """Where X^F = Crop[X^C (x) P^C; P^C, m] lies in X^C (eq. 4).

    The box is all that is cut out: X^F stays a part of X^C in memory, and keeps its voxels outside P^C. (To set those
    to 0, as the product says when taken at its word, would leave the margin nothing to show.)

    Args:
        found: P^C, not 0 where any segment is; (S, H, W).
        margin: m in voxels, along all three axes.

    Returns:
        The box that covers what was found and the margin as far as the image goes; None where nothing was found.
    """
    box = bounding_box(found)
    if box is None:
        return None
    return tuple(
        slice(max(0, part.start - margin), min(side, part.stop + margin))
        for part, side in zip(box, found.shape, strict=True)
    )


class DeCrop:
    """P^C2F = DeCrop[P^F (.) P^C; X^F, X^C] (eq. 5): the box inside the whole is replaced, and nothing but it.

    Args:
        whole: takes slabs of X^C, where P^C outside the box is 0 from the start.
        box: X^F as ``crop`` has it.
    """

    def __init__(self, whole: Accumulator, box: Box):
        self._whole = whole
        self._box = box

    def restart(self) -> None:
        """Forget all slabs."""
        self._whole.restart()

    def finish(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        """Take a finished slab of windows that cover the box and may reach beyond it; pass on what lies inside."""
        inside = tuple(
            slice(max(part.start, limit.start), min(part.stop, limit.stop))
            for part, limit in zip(where, self._box, strict=True)
        )
        if any(part.start >= part.stop for part in inside):
            return
        cut = tuple(
            slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(inside, where, strict=True)
        )
        self._whole.finish(inside, {name: value[(slice(None), *cut)] for name, value in values.items()})


def _windows(tiling: Tiling, more: int) -> Tiling:
    """The authors' are floor(W / w) + n windows an axis."""
    return replace(tiling, kind="counted", more=more) if tiling.kind == "authors" else tiling
