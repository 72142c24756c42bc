"""The region's selector: placing a new region, and advising one where the image is large and the structure small."""

import contextlib
from collections.abc import Callable

from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import RegionPlacement


class RegionPanel:
    """The widgets of the region; the region itself is a parameter of the module.

    Args:
        ui: the module's widgets by name.
        current: returns the description of the chosen model and the first chosen volume; either may be None.
    """

    def __init__(self, ui, current: Callable[[], tuple[object, object]]):
        self._ui, self._current = ui, current
        ui.regionSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onAdded)

    def update(self) -> None:
        """Advise a region, or not."""
        description, volumeNode = self._whenComplete()
        isAdvised = False
        if description is not None and self._ui.regionSelector.currentNode() is None:
            # A volume that cannot be segmented at all is refused with its sentence when it is to be.
            with contextlib.suppress(UserError):
                isAdvised = RegionPlacement.isAdvised(description, volumeNode)
        hint = _(
            "The image is much larger than what this model looks at: create a region and move it to the structure."
        )
        self._ui.regionHintLabel.text = hint if isAdvised else ""
        self._ui.regionHintLabel.visible = isAdvised

    def _onAdded(self, roiNode) -> None:
        description, volumeNode = self._whenComplete()
        if description is not None:
            with contextlib.suppress(UserError):
                RegionPlacement.place(roiNode, description, volumeNode)

    def _whenComplete(self) -> tuple[object, object]:
        description, volumeNode = self._current()
        isComplete = description is not None and volumeNode is not None and volumeNode.GetImageData() is not None
        return (description, volumeNode) if isComplete else (None, None)
