"""One volume selector for every channel of the chosen model, filled in by name."""

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.images.channels import Candidate, match_channels

from . import MapVolumes


class ChannelSelectors:
    """The selectors, as rows of a form.

    Args:
        form: the QFormLayout in which they stand.
        firstRow: the row of the first one; the rows that are there move down.
        onChanged: called when the user, or the scene, has changed a selection.
    """

    def __init__(self, form, firstRow: int, onChanged: Callable[[], None]):
        self._form, self._firstRow, self._onChanged = form, firstRow, onChanged
        self._inputs: tuple = ()
        # Rows that a model does not need are hidden, and used again by one that does.
        self._rows: list[tuple] = []
        self._quiet = False

    @property
    def combos(self) -> list:
        """The selectors in use."""
        return [combo for _label, combo in self._rows[: len(self._inputs)]]

    @property
    def nodes(self) -> list:
        """The chosen volumes, None where none is chosen."""
        return [combo.currentNode() for combo in self.combos]

    @property
    def firstNode(self):
        """The volume whose grid the result has; None where none is chosen."""
        return next(iter(self.nodes), None)

    def setInputs(self, inputs) -> None:
        """Show a selector for every input of a model; an input that was there before keeps its volume."""
        earlier = {item.name: node for item, node in zip(self._inputs, self.nodes, strict=True)}
        self._inputs = tuple(inputs)
        while len(self._rows) < len(self._inputs):
            self._rows.append(self._newRow())
        for number, (label, combo) in enumerate(self._rows):
            label.visible = combo.visible = number < len(self._inputs)
        for item, (label, combo) in zip(self._inputs, self._rows, strict=False):
            label.text = f"{item.name}:"
            combo.toolTip = _("The {modality} volume of this channel. Known by: {words}.").format(
                modality=item.modality, words=", ".join(item.keywords) or item.name
            )
        self.setNodes([earlier.get(item.name) for item in self._inputs])

    def setNodes(self, nodes) -> None:
        """Choose volumes, without telling anybody; those that there is no selector for are passed over."""
        self._quiet = True
        for combo, node in zip(self.combos, nodes, strict=False):
            combo.setCurrentNode(node)
        self._quiet = False

    def fillEmpty(self) -> bool:
        """Choose volumes by their names where none is chosen; returns whether there were any."""
        chosen = self.nodes
        empty = [number for number, node in enumerate(chosen) if node is None]
        nodes = [node for node in _candidates() if node not in chosen]
        groups = {_group(node) for node in chosen if node is not None}
        if groups:
            nodes = [node for node in nodes if _group(node) in groups]
        candidates = [Candidate(node.GetName(), _group(node)) for node in nodes]
        found = match_channels([self._inputs[number] for number in empty], candidates)
        for number, place in zip(empty, found, strict=True):
            chosen[number] = None if place is None else nodes[place]
        self.setNodes(chosen)
        return any(place is not None for place in found)

    def problem(self) -> str:
        """What is still to be chosen, as a sentence; empty when all is there."""
        nodes = self.nodes
        for item, node in zip(self._inputs, nodes, strict=True):
            if node is None:
                return _("Choose the volume for {channel}.").format(channel=item.name)
            # Of a volume that is removed, the selector's next entry takes the place.
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
        """That the chosen volumes are not of one patient; empty where they are, or where nothing says so."""
        patients = {}
        for node in filter(None, self.nodes):
            patients.setdefault(_patient(node), node)
        patients.pop(0, None)
        if len(patients) < 2:
            return ""
        one, other = list(patients)[:2]
        return _(
            "{first} is of the patient {patient}, but {second} is of {other}: choose images of one patient."
        ).format(
            first=patients[one].GetName(),
            patient=_hierarchy().GetItemName(one),
            second=patients[other].GetName(),
            other=_hierarchy().GetItemName(other),
        )

    def _newRow(self) -> tuple:
        label, combo = qt.QLabel(), slicer.qMRMLNodeComboBox()
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


def _candidates() -> list:
    """The scene's volumes that may be a channel; the one in the slice views first."""
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


def _group(node) -> int:
    return _hierarchy().GetItemParent(_hierarchy().GetItemByDataNode(node))


def _patient(node) -> int:
    """The item of the patient that a volume is of; 0 where nothing says so, as of what comes from a file."""
    item = _hierarchy().GetItemByDataNode(node)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    return _hierarchy().GetItemAncestorAtLevel(item, level) if item else 0


def _hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
