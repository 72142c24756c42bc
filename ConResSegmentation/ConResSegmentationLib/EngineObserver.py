"""What becomes of a request to the engine, told to whoever asked."""

from dataclasses import dataclass

import numpy as np

from .EngineError import EngineError


@dataclass(frozen=True)
class EngineResult:
    """A finished segmentation.

    Args:
        labels: uint8 [k, j, i], the model's label values.
        maps: by name, float16 [c, k, j, i].
        report: seconds by phase, device, precision, volumes, warnings.
        regions: uint8 [b, k, j, i] where the model's segments overlap, for `conresnet.inference.painting.region_mask`;
            else None.
    """

    labels: np.ndarray
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None


class EngineObserver:
    """Hears of a request; every method does nothing until it is overridden."""

    def onStarting(self) -> None:
        """The engine's process is being started, which may take a few seconds."""

    def onProgress(self, phase: str, fraction: float, secondsLeft: float | None) -> None:
        """The work has come to ``fraction``, 0 to 1 over all phases; ``secondsLeft`` is None while nobody knows."""

    def onArray(self, name: str, array: np.ndarray) -> None:
        """The result ``name`` ("labels", "regions", a map) is there and fills from now on; zero where it is not yet."""

    def onDone(self, result: EngineResult) -> None:
        """The segmentation is finished."""

    def onDevices(self, devices: list[dict]) -> None:
        """The devices the engine can compute on: each a dict with ``name`` and ``title``."""

    def onError(self, error: EngineError) -> None:
        """The request has failed."""

    def onCancelled(self) -> None:
        """The request was cancelled."""
