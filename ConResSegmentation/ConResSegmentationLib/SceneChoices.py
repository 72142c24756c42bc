"""The choices of the current scene, and those that the application's settings remember for new scenes."""

import contextlib
import json

import slicer

from .SceneInputs import ConResSegmentationParameterNode
from .Widgets import textSetting

_SETTING = "ConResSegmentation/Choices"
# The choices that are remembered. Those that change a result are not among them, because they may suit only one image,
# nor is the device, which may suit only one computer.
_KINDS = {"maps": str, "show3D": bool, "review": bool}


def rememberChoices(ui, mapBoxes: dict) -> None:
    """From now on, remember the user's choices in the panel for new scenes.

    Args:
        mapBoxes: the check boxes of `MapChooser`, by map.
    """
    for name, box in {"show3D": ui.show3DCheckBox, "review": ui.reviewCheckBox}.items():
        box.connect("clicked(bool)", lambda isWanted, name=name: _remember(name, isWanted))

    def onMapClicked(_checked: bool) -> None:
        _remember("maps", " ".join(kind for kind, box in mapBoxes.items() if box.checked))

    for box in mapBoxes.values():
        box.connect("clicked(bool)", onMapClicked)


def _remember(name: str, value: str | bool) -> None:
    slicer.app.userSettings().setValue(_SETTING, json.dumps(_remembered() | {name: value}))


def _remembered() -> dict:
    # A user may have edited the settings.
    with contextlib.suppress(ValueError):
        kept = json.loads(textSetting(_SETTING))
        return kept if isinstance(kept, dict) else {}
    return {}


class SceneChoices:
    """The choices of the current scene."""

    def __init__(self):
        self._wrapper: ConResSegmentationParameterNode | None = None
        self._isNewScene = False

    def of(self, node) -> ConResSegmentationParameterNode:
        # Each wrapper adds observers to the node that stay, so there is one per scene. A closed scene empties the node.
        isCurrent = self._wrapper is not None and self._wrapper.parameterNode is node
        # The node may be new even if it has values: an earlier wrapper may have filled it with defaults.
        isNew = self._isNewScene or not node.GetParameterNamesAsCommaSeparatedList()
        if not isCurrent or isNew:
            self._wrapper = ConResSegmentationParameterNode(node)
        self._isNewScene = False
        for name, value in _remembered().items() if isNew else ():
            with contextlib.suppress(KeyError, ValueError):
                setattr(self._wrapper, name, _KINDS[name](value))
        return self._wrapper

    def forget(self, isNewScene: bool = False) -> None:
        """Read the choices again, after a scene was closed (``isNewScene``) or imported.

        Slicer's wrapper caches nodes; those of a scene that is being imported do not exist yet.
        """
        self._wrapper, self._isNewScene = None, isNewScene
