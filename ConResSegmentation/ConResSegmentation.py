"""ConRes Segmentation: segment images with ConResNet models, and see what the network saw between the slices."""

import importlib
import logging
import sys

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from conresnet.package.maps import MAPS, provided_maps
from ConResSegmentationLib import Diagnostics, MapVolumes, SelfTest
from ConResSegmentationLib.ChannelSelectors import ChannelSelectors
from ConResSegmentationLib.EnginePanel import EnginePanel
from ConResSegmentationLib.EngineProcess import EngineProcess
from ConResSegmentationLib.EnginePython import EnginePython
from ConResSegmentationLib.MapOverlay import OverlayPanel
from ConResSegmentationLib.Models import ModelPanel
from ConResSegmentationLib.ParameterNode import ConResSegmentationParameterNode, chosenMaps
from ConResSegmentationLib.RunPanel import RunControl, RunPanel
from ConResSegmentationLib.SceneInputs import RegionPanel
from ConResSegmentationLib.SegmentationRun import (
    RunListener,
    RunWaiter,
    SegmentationOutcome,
    SegmentationRun,
    SegmentationTask,
)


class ConResSegmentation(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("ConRes Segmentation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["ConResNet for 3D Slicer contributors"]
        self.parent.helpText = _(
            "Segments volumes with ConResNet models, and shows the context residual and attention maps of the network "
            "over the slices. For research use only, not for diagnosis. See the {documentation}."
        ).format(
            documentation='<a href="https://github.com/ConResNet/SlicerConResNet">{}</a>'.format(_("documentation"))
        )
        self.parent.acknowledgementText = _(
            "The network is that of J. Zhang, Y. Xie, Y. Wang and Y. Xia, Inter-Slice Context Residual Learning for 3D "
            "Medical Image Segmentation, IEEE Transactions on Medical Imaging 40(2), 2021."
        )


class ConResSegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: choices go to the parameter node, clicks to the logic, and what happens to the panel's parts."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._namesSegmented: set[str] = set()
        self._wantsMap = True

    def setup(self) -> None:
        """Build the panel; Slicer calls this when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ConResSegmentation.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ConResSegmentationLogic()
        self.modelPanel = ModelPanel(self.ui, self._onModelChosen)
        self.channels = ChannelSelectors(self.ui.inputsCollapsibleButton.layout(), 3, self._onChannelsChosen)
        self.regionPanel = RegionPanel(self.ui, lambda: (self._description, self.channels.firstNode))
        self.enginePanel = EnginePanel(self.ui, self.logic.enginePython, self.logic.engine, self._onDeviceChosen)
        self.runPanel = RunPanel(self.ui)
        self.runControl = RunControl(
            self.ui, self.runPanel, self.enginePanel, self._task, self.logic.segment, self._onFinished
        )
        self.overlayPanel = OverlayPanel(self.ui)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.ui.copyDiagnosticsButton.connect("clicked(bool)", self.onCopyDiagnostics)
        self.modelPanel.refresh()
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Slicer ends, or the module is reloaded."""
        self.runControl.cancel()
        self.enginePanel.close()
        self.logic.engine.stop(wait=True)
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """The user opens the module."""
        # Models come and go beside Slicer too: by the command line, or from a share.
        self.modelPanel.refresh()
        self.initializeParameterNode()

    def exit(self) -> None:
        """The user goes to another module; a segmentation that runs goes on."""
        self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library with the module file, whose imports would otherwise find the old one."""
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.split(".")[0] in ("ConResSegmentationLib", "conresnet")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event) -> None:
        """What runs must not reach into the next scene, and the parameter node is about to be reset."""
        self.runControl.cancel()
        self.runPanel.clear()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """A module that is shown needs a parameter node at once."""
        self._initializeIfEntered()

    def onSceneStartImport(self, caller, event) -> None:
        """Selectors that fill while a scene is loaded must not change the choices that are loaded with it."""
        self.setParameterNode(None)

    def onSceneEndImport(self, caller, event) -> None:
        """Show the choices that were loaded, once everything else in Slicer knows the new nodes too."""
        qt.QTimer.singleShot(0, self._initializeIfEntered)

    def _initializeIfEntered(self) -> None:
        if self.parent.isEntered and self._parameterNode is None:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A volume may be the channel that is still missing; its name and image may come only after it was added."""
        if isinstance(node, slicer.vtkMRMLScalarVolumeNode) and not slicer.mrmlScene.IsImporting():
            qt.QTimer.singleShot(0, self._fillChannels)

    def initializeParameterNode(self) -> None:
        """Have a parameter node, observed and with the model and the volumes that the user most likely wants."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode: ConResSegmentationParameterNode | None) -> None:
        """Show the choices of a parameter node, and follow it; None to follow none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameterNodeModified)
        self._parameterNode = parameterNode
        if not parameterNode:
            return
        self._chooseModel(self.modelPanel.select(parameterNode.model), list(parameterNode.channels))
        self.overlayPanel.adopt(parameterNode.shownMap)
        self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
        self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameterNodeModified)
        self._onParameterNodeModified()

    @property
    def _description(self):
        """The chosen model's description, None while there is no usable one."""
        choice = self.modelPanel.choice
        return choice.description if choice else None

    @property
    def _providedMaps(self) -> set[str]:
        """The maps that the chosen model can make."""
        return provided_maps(self._description) if self._description else set()

    # Choices that no connector of Slicer's binds to a widget

    def _onModelChosen(self, name: str) -> None:
        # A scene's model that was just installed takes the volumes that were saved with it.
        isSame = self._parameterNode is not None and self._parameterNode.model == name
        self._chooseModel(self.modelPanel.select(name), list(self._parameterNode.channels) if isSame else [])

    def _chooseModel(self, name: str, volumeNodes: list) -> None:
        self.channels.setInputs(self._description.inputs if self._description else ())
        for kind in MAPS:
            # A map that is wanted stays so, for the next model that has it.
            getattr(self.ui, f"{kind}CheckBox").enabled = kind in self._providedMaps
        if volumeNodes:
            self.channels.setNodes(volumeNodes)
        if self._parameterNode:
            self._parameterNode.model = name
        self._fillChannels()

    def _fillChannels(self) -> None:
        if self._parameterNode:
            self.channels.fillEmpty()
            self._onChannelsChosen()

    def _onChannelsChosen(self) -> None:
        if self._parameterNode:
            # Of a model that cannot be used there are no channels to choose; those of the scene are kept for it.
            if self._description and list(self._parameterNode.channels) != self.channels.nodes:
                self._parameterNode.channels = self.channels.nodes
            self._onParameterNodeModified()

    def _onDeviceChosen(self, name: str) -> None:
        if self._parameterNode:
            self._parameterNode.device = name

    def _onParameterNodeModified(self, caller=None, event=None) -> None:
        self.enginePanel.selectDevice(self._parameterNode.device)
        hint = self.channels.hint()
        self.ui.channelsHintLabel.text, self.ui.channelsHintLabel.visible = hint, bool(hint)
        self.regionPanel.update()
        self._checkCanApply()

    def _checkCanApply(self) -> None:
        self.runPanel.setProblem(self.modelPanel.problem or self.channels.problem())

    # Running

    def _task(self) -> SegmentationTask:
        node, volumeNodes = self.logic.getParameterNode(), tuple(self.channels.nodes)
        # The log keeps them beyond the scene that they are in.
        self._namesSegmented |= {used.GetName() for used in (*volumeNodes, node.region, node.segmentation) if used}
        # Who has chosen no map while there were some wants none over the next result either.
        self._wantsMap = node.shownMap is not None or not (node.segmentation and MapVolumes.mapNodes(node.segmentation))
        names = ", ".join(volume.GetName() for volume in volumeNodes)
        self.runPanel.addToLog(f"{self._description.name} {self._description.version}: {names}")
        return SegmentationTask(
            model=str(self.modelPanel.choice.path),
            volumeNodes=volumeNodes,
            roiNode=node.region,
            segmentationNode=node.segmentation,
            maps=chosenMaps(node, self._providedMaps),
            device=node.device,
            precision=node.precision.value,
            show3D=node.show3D,
        )

    def _onFinished(self, outcome: SegmentationOutcome) -> None:
        """Choose the result, so that it is replaced next time, and lay a map over the slices."""
        node = self._parameterNode or self.logic.getParameterNode()
        isNew = node.segmentation is not outcome.segmentationNode
        node.segmentation = outcome.segmentationNode
        if self._wantsMap and outcome.mapNodes and node.shownMap not in outcome.mapNodes:
            node.shownMap = outcome.mapNodes[0]
            # The selector tells it only while the module is open.
            self.overlayPanel.show(node.shownMap)
        # A Slicer without a main window has no views.
        if isNew and node.show3D and slicer.app.layoutManager() is not None:
            slicer.util.resetThreeDViews()

    def onCopyDiagnostics(self) -> None:
        """Put a report on the clipboard that holds no name of an image."""
        node = self.logic.getParameterNode()
        description, maps = self._description, chosenMaps(node, self._providedMaps)
        text = Diagnostics.report(
            self.logic.engine,
            f"{description.name} {description.version}" if description else self.modelPanel.problem,
            {"Device": node.device, "Precision": node.precision.value, "Maps": ", ".join(maps)},
            self.runPanel.log,
            self._namesSegmented,
        )
        slicer.app.clipboard().setText(text)
        slicer.util.showStatusMessage(_("The diagnostics are on the clipboard."), 3000)


class ConResSegmentationLogic(ScriptedLoadableModuleLogic):
    """Segmentation without a panel, for this module's own and for scripts:

    logic = slicer.modules.ConResSegmentationWidget.logic   # or ConResSegmentationLogic()
    outcome = logic.segmentAndWait(SegmentationTask(modelPath, (volumeNode,), maps=("residual",)))
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.enginePython = EnginePython()
        self.engine = EngineProcess(self.enginePython.launch)

    def getParameterNode(self) -> ConResSegmentationParameterNode:
        """The choices of this scene."""
        return ConResSegmentationParameterNode(super().getParameterNode())

    def segment(self, task: SegmentationTask, listener: RunListener) -> SegmentationRun:
        """Start a segmentation and return at once; the listener hears of it from Slicer's event loop.

        Raises:
            UserError: when the inputs cannot be segmented; nothing has been started then.
        """
        return SegmentationRun(task, self.engine, listener)

    def segmentAndWait(self, task: SegmentationTask) -> SegmentationOutcome:
        """Segment and return the result, while Slicer stays responsive.

        Raises:
            UserError: when the inputs cannot be segmented.
            RuntimeError: when it has failed or was cancelled; with the sentence for the user.
        """
        waiter = RunWaiter()
        self.segment(task, waiter)
        return waiter.wait()


class ConResSegmentationTest(ScriptedLoadableModuleTest):
    """The module's test in a user's own Slicer (Developer tools: Reload and Test)."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """All there is to test; what this Slicer cannot run is said aloud."""
        self.setUp()
        self.test_modelsComeAlong()
        self.setUp()
        self.test_segmentation()

    def test_modelsComeAlong(self):
        """The packages of the shipped models are whole."""
        self.delayDisplay("Looking for models")
        SelfTest.checkModels()

    def test_segmentation(self):
        """From a volume through the engine to segments and maps, and the care for edited results."""
        logic = ConResSegmentationLogic()
        problem = SelfTest.engineProblem(logic.enginePython)
        if problem:
            logging.warning("NOT TESTED: segmentation. %s", problem)
            self.delayDisplay(f"Not tested: segmentation. {problem}", 3000)
            return
        self.delayDisplay("Segmenting")
        try:
            SelfTest.checkSegmentation(logic, SelfTest.checkModels())
        finally:
            logic.engine.stop(wait=True)
        self.delayDisplay("Test passed")
