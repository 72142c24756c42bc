"""How the windows of a pass are laid and blended. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from conresnet.boxes import Box
from conresnet.errors import UserError
from conresnet.inference.windows import WindowPlan, authors_windows, counted_windows, fitted_windows
from conresnet.package.description import TILINGS

_BLENDING = {"fitted": "gaussian", "authors": "uniform"}
"""What goes with a tiling that the user chooses."""


@dataclass(frozen=True)
class Tiling:
    """How windows are laid and blended, whatever the case.

    Args:
        kind: "fitted", "authors" or "counted", see ``conresnet.inference.windows``.
        window: the model's (S, H, W).
        overlap: of fitted windows.
        blending: "gaussian" or "uniform".
        more: of counted windows, those beyond what the box holds side by side.
    """

    kind: str
    window: tuple[int, int, int]
    overlap: float
    blending: str
    more: int = 0

    def plan(self, box: Box, shape: Sequence[int]) -> WindowPlan:
        """The windows over a box of a case's array of ``shape``."""
        if self.kind == "authors":
            return authors_windows(shape, self.window)
        if self.kind == "counted":
            return counted_windows(box, shape, self.window, self.more)
        return fitted_windows(box, shape, self.window, self.overlap)

    def chosen(self, kind: str | None) -> Tiling:
        """That which the user chose instead; this one for None.

        Raises:
            UserError: "tiling-unknown".
        """
        if kind and kind not in TILINGS:
            raise UserError(
                "tiling-unknown", f"There is no tiling {kind!r}; choose one of {', '.join(TILINGS)}.", tiling=kind
            )
        return replace(self, kind=kind, blending=_BLENDING[kind]) if kind else self

    def smaller(self, window: tuple[int, int, int]) -> Tiling:
        """Fitted windows of another size, blended as these."""
        return replace(self, kind="fitted", window=window)
