"""The group Add a case from the scene: volumes and their segmentation become a case of the data set."""

from collections.abc import Callable
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from ConResSegmentationLib import Messages
from ConResSegmentationLib.ChannelSelectors import ChannelSelectors
from ConResSegmentationLib.Widgets import plain, say, singleShotTimer, stayNarrow

from . import SceneCase
from .DataSetPanel import DataSetPanel


@dataclass(frozen=True)
class _Channel:
    """A channel of a data set, in the form of a model's input that the volume selectors need."""

    name: str
    keywords: tuple[str, ...] = ()
    exclude_keywords: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        return self.name


class SceneCasePanel:
    """The widgets that choose volumes, a segmentation and a name, and write the case.

    Args:
        section: the collapsible button that contains the widgets.
        dataSetPanel: the data set.
        onAdded: called when a case was written.
    """

    def __init__(self, section, dataSetPanel: DataSetPanel, onAdded: Callable[[], None]):
        self._section, self._ui = section, slicer.util.childWidgetVariables(section)
        self._dataSetPanel, self._onAdded = dataSetPanel, onAdded
        ui = self._ui
        self._timer = singleShotTimer(section, self.fill)
        self._problem = ""
        self._proposed = ""
        self._names: list[str] = []
        self._channels = ChannelSelectors(section.layout(), 1, self.update)
        ui.newChannelsEdit.connect("editingFinished()", self.refresh)
        stayNarrow(ui.sceneLabelsSelector)
        ui.sceneLabelsSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.update)
        ui.caseNameEdit.connect("textChanged(QString)", self._checkCanAdd)
        ui.addCaseButton.connect("clicked(bool)", self._onAdd)
        section.connect("contentsCollapsed(bool)", self._onCollapsed)

    @property
    def combos(self) -> list:
        """The volume selectors of the channels."""
        return self._channels.combos

    def refresh(self) -> None:
        """Another folder was chosen, or its contents have changed."""
        self._problem, description, folder = "", None, self._dataSetPanel.folder
        if folder is None:
            self._problem = _("Choose the folder of a data set, or a new one, above.")
        else:
            try:
                description = SceneCase.describe(folder)
            except UserError as error:
                self._problem = Messages.sentence(error)
        isNew = description is None and not self._problem
        self._ui.newChannelsLabel.visible = self._ui.newChannelsEdit.visible = isNew
        names = description.channels if description else self._ui.newChannelsEdit.text.split(",")
        self._names = list(dict.fromkeys(name.strip() for name in names if name.strip())) if not self._problem else []
        self._channels.setInputs(tuple(map(_Channel, self._names)))
        self.fill()

    def fill(self) -> None:
        """Choose volumes by their names for empty channels, and a segmentation if there is only one."""
        if self._section.collapsed:
            return
        self._channels.fillEmpty()
        selector = self._ui.sceneLabelsSelector
        if selector.currentNode() is None and selector.nodeCount() == 1:
            selector.setCurrentNodeIndex(0)
        self.update()

    def fillLater(self) -> None:
        """As `fill`, when nodes that were just added have got their names and images."""
        if not self._section.collapsed:
            self._timer.start()

    def close(self) -> None:
        """The panel is about to be deleted."""
        self._timer.stop()

    def update(self, _node=None) -> None:
        """Propose a name, unless the user has entered one, and check whether the case can be added."""
        first = self._channels.firstNode
        if first is not None and self._ui.caseNameEdit.text in ("", self._proposed):
            self._proposed = SceneCase.proposedName(self._dataSetPanel.dataSet, first.GetName())
            self._ui.caseNameEdit.text = self._proposed
        self._checkCanAdd()

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed:
            self.refresh()

    def _checkCanAdd(self, _text: str = "") -> None:
        # Until then the channels are those of the previous folder.
        problem = "" if self._dataSetPanel.isSettled else self._dataSetPanel.problem
        problem = problem or self._problem or self._channels.problem()
        if not problem and not self._names:
            problem = _("Enter the names of the channels of the new data set.")
        if not problem and self._ui.sceneLabelsSelector.currentNode() is None:
            problem = _("Choose the segmentation of these volumes.")
        if not problem and not self._ui.caseNameEdit.text.strip():
            problem = _("Enter a name for the case.")
        self._ui.addCaseButton.enabled = not problem
        tip = _("Save the volumes and segments as a case of the data set, on the voxel grid of the first volume.")
        self._ui.addCaseButton.toolTip = plain(problem or self._channels.hint() or tip)

    def _onAdd(self) -> None:
        folder, name = self._dataSetPanel.folder, self._ui.caseNameEdit.text.strip()
        labelsNode = self._ui.sceneLabelsSelector.currentNode()
        nodes = dict(zip(self._names, self._channels.nodes, strict=True))
        try:
            with slicer.util.WaitCursor():
                arrays, grid = SceneCase.channelArrays(nodes)
                masks = SceneCase.segmentMasks(labelsNode, self._channels.firstNode)
                SceneCase.addCase(folder, name, arrays, masks, grid)
        except UserError as error:
            say(self._ui.sceneCaseStatusLabel, Messages.sentence(error), isError=True)
            return
        self._proposed = self._ui.caseNameEdit.text
        self._dataSetPanel.namesSeen.add(name)
        self._onAdded()
        sentence = _("Added the case {name}: {segments}.").format(name=name, segments=", ".join(masks))
        say(self._ui.sceneCaseStatusLabel, sentence)
