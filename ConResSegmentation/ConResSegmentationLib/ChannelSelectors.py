"""One volume selector per channel of a model, with volumes chosen by their names."""

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.images.channels import Candidate, match_channels

from . import MapVolumes
from .Widgets import plain, stayNarrow


class ChannelSelectors:
    """The selectors, as rows of a form.

    Args:
        form: the QFormLayout that contains them.
        firstRow: the row of the first selector; existing rows move down.
        onChanged: called when the user, or the scene, has changed a selection.
    """

    def __init__(self, form, firstRow: int, onChanged: Callable[[], None]):
        self._form, self._firstRow, self._onChanged = form, firstRow, onChanged
        self._inputs: tuple = ()
        # Rows that a model does not need are hidden, and reused by one that does.
        self._rows: list[tuple] = []
        self._quiet = False

    @property
    def combos(self) -> list:
        """The selectors in use."""
        return [combo for _label, combo in self._rows[: len(self._inputs)]]

    @property
    def nodes(self) -> list:
        """The chosen volumes; None for a channel without one."""
        return [combo.currentNode() for combo in self.combos]

    @property
    def firstNode(self):
        """The first channel's volume, whose grid the result has; None if none is chosen."""
        return next(iter(self.nodes), None)

    def setInputs(self, inputs) -> None:
        """Show one selector per input of a model; an input that existed before keeps its volume."""
        earlier = {item.name: node for item, node in zip(self._inputs, self.nodes, strict=True)}
        self._inputs = tuple(inputs)
        while len(self._rows) < len(self._inputs):
            self._rows.append(self._newRow())
        for number, (label, combo) in enumerate(self._rows):
            label.visible = combo.visible = number < len(self._inputs)
        for item, (label, combo) in zip(self._inputs, self._rows, strict=False):
            label.text = f"{item.name}:"
            tip = _("The {modality} volume for this channel. It is recognized by these words in its name: {words}.")
            combo.toolTip = plain(tip.format(modality=item.modality, words=", ".join(item.keywords) or item.name))
        self.setNodes([earlier.get(item.name) for item in self._inputs])

    def setNodes(self, nodes) -> None:
        """Choose volumes without calling `onChanged`; those without a selector are ignored."""
        self._quiet = True
        for combo, node in zip(self.combos, nodes, strict=False):
            combo.setCurrentNode(node)
        self._quiet = False

    def fillEmpty(self, among: list | None = None) -> bool:
        """Choose volumes by their names for empty channels; returns whether any was found."""
        chosen = self.nodes
        empty = [number for number, node in enumerate(chosen) if node is None]
        nodes = [node for node in (candidates() if among is None else among) if node not in chosen]
        groups = {group(node) for node in chosen if node is not None}
        if groups:
            nodes = [node for node in nodes if group(node) in groups]
        named = [Candidate(node.GetName(), group(node)) for node in nodes]
        found = match_channels([self._inputs[number] for number in empty], named)
        for number, place in zip(empty, found, strict=True):
            chosen[number] = None if place is None else nodes[place]
        self.setNodes(chosen)
        return any(place is not None for place in found)

    def problem(self) -> str:
        """What still has to be chosen, as a sentence; empty if nothing."""
        nodes = self.nodes
        for item, node in zip(self._inputs, nodes, strict=True):
            if node is None:
                return _("Choose the volume for {channel}.").format(channel=item.name)
            # If a volume is removed, the selector chooses its next entry, which may be a map.
            if node.GetAttribute(MapVolumes.MAP_ATTRIBUTE):
                return _("{volume} is a map; choose an image for {channel}.").format(
                    volume=node.GetName(), channel=item.name
                )
        for number, node in enumerate(nodes):
            if node in nodes[:number]:
                first, second = self._inputs[nodes.index(node)].name, self._inputs[number].name
                return _("{volume} is chosen for both {first} and {second}.").format(
                    volume=node.GetName(), first=first, second=second
                )
        return ""

    def hint(self) -> str:
        """A warning that the chosen volumes belong to different patients; empty if nothing indicates that."""
        patients = {}
        for node in filter(None, self.nodes):
            patients.setdefault(_patient(node), node)
        patients.pop(0, None)
        if len(patients) < 2:
            return ""
        one, other = list(patients)[:2]
        return _(
            "{first} belongs to patient {patient}, but {second} belongs to {other}. Choose images of one patient."
        ).format(
            first=patients[one].GetName(),
            patient=_hierarchy().GetItemName(one),
            second=patients[other].GetName(),
            other=_hierarchy().GetItemName(other),
        )

    def _newRow(self) -> tuple:
        label, combo = qt.QLabel(), slicer.qMRMLNodeComboBox()
        # The name comes from the model package, and is not markup.
        label.textFormat = qt.Qt.PlainText
        stayNarrow(combo)
        combo.objectName = f"channelSelector{len(self._rows)}"
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.showChildNodeTypes = False
        combo.addEnabled = combo.removeEnabled = False
        combo.noneEnabled = True
        combo.noneDisplay = _("Choose a volume")
        self._form.insertRow(self._firstRow + len(self._rows), label, combo)
        combo.setMRMLScene(slicer.mrmlScene)
        combo.connect("currentNodeChanged(vtkMRMLNode*)", self._onCurrentNodeChanged)
        return label, combo

    def _onCurrentNodeChanged(self, node) -> None:
        if not self._quiet:
            self._onChanged()


def candidates() -> list:
    """The volumes of the scene that can be a channel; those shown in the slice views come first."""
    nodes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node.GetClassName() == "vtkMRMLScalarVolumeNode"
        and not node.GetHideFromEditors()
        and not node.GetAttribute(MapVolumes.MAP_ATTRIBUTE)
    ]
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {composite.GetBackgroundVolumeID() for composite in composites}
    return sorted(nodes, key=lambda node: node.GetID() not in shown)


def group(node) -> int:
    """What volumes of one patient have in common: the subject hierarchy item that contains them."""
    return _hierarchy().GetItemParent(_hierarchy().GetItemByDataNode(node))


def _patient(node) -> int:
    """The subject hierarchy item of a volume's patient; 0 if unknown, as for a volume from a NIfTI file."""
    item = _hierarchy().GetItemByDataNode(node)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    return _hierarchy().GetItemAncestorAtLevel(item, level) if item else 0


def _hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
