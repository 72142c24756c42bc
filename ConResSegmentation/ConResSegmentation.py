"""ConRes Segmentation: segments images with ConResNet models and shows the network's residual and attention maps."""

from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from conresnet.errors import UserError
from conresnet.package.store import digest_with_locator
from ConResSegmentationLib import (
    ConResSegmentationSubjectHierarchyPlugin,
    Diagnostics,
    Gallery,
    Loading,
    ResultOrigin,
    ResultParts,
    ResultSegmentation,
    SceneInputs,
)
from ConResSegmentationLib.BatchPanel import BatchPanel
from ConResSegmentationLib.CheckpointImport import CheckpointImport
from ConResSegmentationLib.EnginePanel import EnginePanel
from ConResSegmentationLib.EngineProcess import EngineProcess
from ConResSegmentationLib.EnginePython import EnginePython
from ConResSegmentationLib.Map3DPanel import Map3DPanel
from ConResSegmentationLib.MapOverlay import ComparisonButton, MapChooser, OverlayPanel
from ConResSegmentationLib.Models import ModelPanel, installAsking, rememberSeconds
from ConResSegmentationLib.ReviewPanel import ReviewPanel
from ConResSegmentationLib.RunPanel import RunPanel
from ConResSegmentationLib.SegmentationRun import (
    RunListener,
    RunWaiter,
    SegmentationOutcome,
    SegmentationRun,
    SegmentationTask,
)
from ConResSegmentationLib.Widgets import (
    WorkInSteps,
    addShortcuts,
    describeModule,
    editSegmentation,
    forgetModules,
    hint,
    nameOf,
    sayResearchUse,
    singleShotTimer,
    stayNarrow,
    whenStarted,
)

_INPUTS = (slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLSequenceNode)


class ConResSegmentation(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        text = _(
            "Segments volumes with ConResNet models and shows the network's context residual and attention maps over "
            "the slices. For research use only, not for diagnosis. See the {documentation}."
        )
        describeModule(self.parent, _("ConRes Segmentation"), text)
        ResultSegmentation.keepRemovedDisplays()
        whenStarted(Loading.registerSampleData)
        whenStarted(ConResSegmentationSubjectHierarchyPlugin.register)


class ConResSegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: connects the parameter node, the logic and the parts of the panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self._parameterNode = self._parameterNodeGuiTag = self._nodesTimer = None
        self._namesSegmented, self._wantsMap = set(), True

    def setup(self) -> None:
        """Build the panel. Slicer calls this when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ConResSegmentation.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ConResSegmentationLogic()
        inputs = ui.inputsCollapsibleButton
        self.modelPanel = ModelPanel(inputs, self._onModelChosen, self._onCheckpoint)
        self.channels = SceneInputs.ChannelSelectors(inputs.layout(), 4, ui.exampleButton, self._onChannelsChosen)
        self.loadPanel = Loading.LoadPanel(
            uiWidget, ui.loadButton, ui.exampleButton, self._onLoaded, self.modelPanel.install
        )
        self.mapChooser = MapChooser(ui.mapsButton, self._onMapsChosen)
        self.roiPanel = SceneInputs.ROIPanel(
            ui.regionSelector, ui.regionHintLabel, lambda: (self.modelPanel.description, self.channels.firstNode)
        )
        stayNarrow(ui.segmentationSelector)
        SceneInputs.rememberChoices(ui, self.mapChooser.boxes)
        self.enginePanel = EnginePanel(
            ui.advancedCollapsibleButton,
            self.logic.enginePython,
            self.logic.engine,
            self._onDeviceChosen,
            self._onInstalling,
            lambda line: self.runPanel.onInstallationLine(line),
        )
        self.runPanel = RunPanel(ui, self.enginePanel, self._task, self.logic.segment, self._onFinished, self._onIdle)
        self.batchPanel = BatchPanel(ui.batchCollapsibleButton, self.modelPanel, self.runPanel, self._batchTask)
        self.overlayPanel = OverlayPanel(ui.overlayCollapsibleButton)
        self.map3DPanel = Map3DPanel(ui.overlayCollapsibleButton)
        self.comparisonButton = ComparisonButton(ui.compareMapsButton, ui.mapOpacitySlider, ui.mapSelector)
        self.reviewPanel = ReviewPanel(ui.reviewCollapsibleButton)
        self.partRemover = ResultParts.PartRemover(uiWidget, self.reviewPanel.refresh, self.map3DPanel.refresh)
        self._smoothing = WorkInSteps(uiWidget)
        ui.editButton.connect("clicked(bool)", self._onEdit)
        ui.smoothingSlider.connect("valueChanged(double)", self._onSmoothingChanged)
        ui.copyDiagnosticsButton.connect("clicked(bool)", self._onCopyDiagnostics)
        sayResearchUse(ui.researchUseLabel)
        actions = {"Ctrl+Return": ui.applyButton.click, "Ctrl+Backspace": ui.cancelButton.click}
        self._shortcuts = addShortcuts(uiWidget, actions | {"Ctrl+Shift+M": self.overlayPanel.toggle})
        ui.galleryButton.connect("clicked(bool)", self._onGallery)
        self._nodesTimer = singleShotTimer(uiWidget, self._onNodesAdded)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.modelPanel.refresh()
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Slicer quits, or the module is reloaded."""
        if self._nodesTimer is None:  # the panel could not be built
            return
        self._nodesTimer.stop()
        self._smoothing.stop()
        self.runPanel.cancel()
        for part in (self.map3DPanel, self.reviewPanel, self.partRemover, self.comparisonButton, self.enginePanel):
            part.close()
        self.logic.engine.stop(wait=True)
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """The user opens the module."""
        # Models are also installed and removed outside Slicer: from the command line, or on a shared folder.
        self.modelPanel.refresh()
        self.initializeParameterNode()
        self._setShortcutsEnabled(True)
        self.enginePanel.start()

    def exit(self) -> None:
        """The user goes to another module; a running segmentation continues."""
        self._setShortcutsEnabled(False)
        self.setParameterNode(None)
        self.enginePanel.leave()

    def onReload(self) -> None:
        """Reload the library together with the module file, which would otherwise import the old one."""
        forgetModules("ConResSegmentationLib", "conresnet")
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event) -> None:
        """A run must not reach into the next scene, and the parameter node is about to be reset."""
        self.runPanel.onSceneClosing()
        for part in (self.map3DPanel, self.partRemover, self.comparisonButton, self.reviewPanel):
            part.forget()
        self._smoothing.stop()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """If the module is open, it needs a parameter node at once."""
        self.logic.sceneChoices.forget(isNewScene=True)
        self.batchPanel.forgetScene()
        self._initializeIfEntered()

    def onSceneStartImport(self, caller, event) -> None:
        """Selectors that are filled during the import must not change the choices that are imported."""
        self.setParameterNode(None)

    def onSceneEndImport(self, caller, event) -> None:
        """Show the imported choices once the rest of Slicer knows the new nodes too."""
        self.logic.sceneChoices.forget()
        self._nodesTimer.start()

    def _initializeIfEntered(self) -> None:
        if self.parent.isEntered and self._parameterNode is None:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A volume may be a missing channel. Its name and image may be set only after it was added."""
        if isinstance(node, _INPUTS) and not slicer.mrmlScene.IsImporting():
            self._nodesTimer.start()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node) -> None:
        """Removed nodes can no longer be segmented. If the parameter node is removed, so are all choices."""
        if isinstance(node, _INPUTS) and not self.ui.batchCollapsibleButton.collapsed:
            self.batchPanel.refreshSoon()
        if self._parameterNode and node is self._parameterNode.parameterNode:
            self.setParameterNode(None)
            self.logic.sceneChoices.forget()
            self._nodesTimer.start()

    def _onNodesAdded(self) -> None:
        self._initializeIfEntered()
        self._fillInputs()

    def initializeParameterNode(self) -> None:
        """Show the parameter node, with the model and the volumes that the user most likely wants."""
        node = self.logic.getParameterNode()
        # Slicer's wrapper keeps what it has read: while a scene is loaded, None for nodes that are not there yet.
        node.parameterNode.Modified()
        self.setParameterNode(node)

    def setParameterNode(self, parameterNode: SceneInputs.ConResSegmentationParameterNode | None) -> None:
        """Show and observe the choices of a parameter node; None for none."""
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

    # Choices that Slicer cannot connect to a widget by itself

    def _onModelChosen(self, name: str) -> None:
        # If it is the scene's model that was just installed, it gets the volumes that were saved with it.
        isSame = self._parameterNode is not None and self._parameterNode.model == name
        self._chooseModel(self.modelPanel.select(name), list(self._parameterNode.channels) if isSame else [])

    def _onCheckpoint(self, path: str) -> None:
        """Import a checkpoint by the paper's authors: read it, and ask for what it does not contain."""
        if self.runPanel.isFree():
            arguments = path, None, self.runPanel, self.modelPanel.install
            self.runPanel.launch(lambda: lambda: self.logic.importCheckpoint(*arguments), usesScene=False)

    def _chooseModel(self, name: str, volumeNodes: list) -> None:
        self.channels.setInputs(self.modelPanel.description.inputs if self.modelPanel.description else ())
        self.mapChooser.setProvided(self.modelPanel.maps)
        self.loadPanel.setModel(name)
        if volumeNodes:
            self.channels.setNodes(volumeNodes)
        if self._parameterNode:
            self._parameterNode.model = name
        self._fillInputs()

    def _fillInputs(self) -> None:
        """Fill empty channels and the batch list; a collapsed list is filled when it is expanded."""
        if not self.ui.batchCollapsibleButton.collapsed:
            self.batchPanel.refresh()
        if self._parameterNode:
            self.channels.fillEmpty()
            self._onChannelsChosen()

    def _onLoaded(self, volumeNodes: list) -> None:
        """Volumes that the user has just loaded or named replace the chosen ones."""
        if self._parameterNode and volumeNodes:
            isOneForOne = len(volumeNodes) == len(self.channels.nodes) == 1
            self.channels.setNodes(volumeNodes if isOneForOne else [None] * len(self.channels.nodes))
            self.channels.fillEmpty(volumeNodes)
            self._onChannelsChosen()

    def _onChannelsChosen(self) -> None:
        if self._parameterNode:
            # A model that cannot be used has no channels to choose; those of the scene are kept for it.
            if self.modelPanel.description and list(self._parameterNode.channels) != self.channels.nodes:
                self._parameterNode.channels = self.channels.nodes
            self._onParameterNodeModified()

    def _onDeviceChosen(self, name: str) -> None:
        if self._parameterNode:
            self._parameterNode.device = name

    def _onSmoothingChanged(self, smoothing: float) -> None:
        """Surfaces that are shown follow the slider; those of the next result will, too."""
        segmentationNode = self._parameterNode.segmentation if self._parameterNode else None
        if segmentationNode is not None and segmentationNode.GetAttribute(ResultOrigin.MODEL_ATTRIBUTE):
            self._smoothing.start(ResultSegmentation.smoothSurfaces(segmentationNode, smoothing))

    def _onMapsChosen(self, kinds: list[str]) -> None:
        if self._parameterNode:
            self._parameterNode.maps = " ".join(kinds)

    def _onInstalling(self, isInstalling: bool) -> None:
        for section in (self.ui.inputsCollapsibleButton, self.ui.outputsCollapsibleButton):
            section.enabled = not isInstalling

    def _onParameterNodeModified(self, caller=None, event=None) -> None:
        self.enginePanel.selectDevice(self._parameterNode.device)
        self.mapChooser.choose(self._parameterNode.maps.split())
        hint(self.ui.channelsHintLabel, self.channels.hint())
        self.ui.editButton.enabled = self._parameterNode.segmentation is not None
        self.runPanel.setProblem(self.modelPanel.problem or self.channels.problem())
        self.roiPanel.update()
        self._showResult(self._parameterNode.segmentation)

    def _showResult(self, segmentationNode) -> None:
        self.comparisonButton.update(segmentationNode)
        self.reviewPanel.show(segmentationNode)

    def _setShortcutsEnabled(self, isEnabled: bool) -> None:
        for shortcut in self._shortcuts:
            shortcut.enabled = isEnabled
        self.reviewPanel.setShortcutsEnabled(isEnabled)

    # Running

    def _task(self) -> SegmentationTask:
        node = self.logic.getParameterNode()
        # A user who has chosen no map although there were some does not want one over the next result either.
        self._wantsMap = bool(node.shownMap or not node.segmentation or not ResultParts.mapNodes(node.segmentation))
        return self._taskOf(tuple(self.channels.nodes), node.segmentation)

    def _batchTask(self, titles: list[str]) -> SegmentationTask:
        """The same for cases with these titles, without volumes."""
        self._namesSegmented.update(titles)
        return self._taskOf((), None)

    def _taskOf(self, volumeNodes: tuple, segmentationNode) -> SegmentationTask:
        node, choice = self.logic.getParameterNode(), self.modelPanel.choice
        if self.modelPanel.isReplaced():
            raise UserError("model-changed", model=choice.title)
        # The log names them even after their scene was closed.
        self._namesSegmented.update(map(nameOf, filter(None, (*volumeNodes, node.region, segmentationNode))))
        self.runPanel.log(f"{self.modelPanel.nameAndVersion}: {', '.join(map(nameOf, volumeNodes))}")
        return SegmentationTask(
            model=str(choice.path),
            volumeNodes=volumeNodes,
            roi=SceneInputs.roiInput(node.region) if node.region else None,
            segmentationNode=segmentationNode,
            options=SceneInputs.engineOptions(node, self.modelPanel.maps),
            show3D=node.show3D,
            smoothing=node.smoothing,
            digest=digest_with_locator(choice.path),
        )

    def segmentVolume(self, volumeNode, model: str) -> None:
        """Choose a model and a volume, and segment if nothing else has to be chosen."""
        if self.runPanel.isFree():
            self._chooseModel(self.modelPanel.select(model), [])
            self._onLoaded([volumeNode])
            if self.ui.applyButton.enabled:
                self.runPanel.start()

    def _onFinished(self, outcome: SegmentationOutcome) -> None:
        """Choose the result, so that it is replaced next time, and show a map over the slices."""
        rememberSeconds(outcome.report["model"]["name"], outcome.seconds)
        node = self._parameterNode or self.logic.getParameterNode()
        isNew = node.segmentation is not outcome.segmentationNode
        node.segmentation = outcome.segmentationNode
        # The same node may have new lists and maps.
        self._showResult(outcome.segmentationNode)
        if self._wantsMap and outcome.mapNodes and node.shownMap not in outcome.mapNodes:
            node.shownMap = outcome.mapNodes[0]
            # The selector shows it only while the module is open.
            self.overlayPanel.show(node.shownMap)
        # Slicer without a main window has no views.
        if isNew and node.show3D and slicer.app.layoutManager() is not None:
            slicer.util.resetThreeDViews()

    def _onIdle(self) -> None:
        if self.batchPanel.isRunning:
            self.batchPanel.end()
        self.modelPanel.isReplaced()

    def _onGallery(self, _checked: bool) -> None:
        Gallery.chooseModel(self.logic.enginePython, self.modelPanel, self.runPanel, self.ui.exampleButton.click)

    def _onEdit(self, _checked: bool) -> None:
        editSegmentation(self._parameterNode.segmentation, self.channels.firstNode)

    def _onCopyDiagnostics(self, _checked: bool) -> None:
        text = Diagnostics.report(
            self.logic.engine,
            self.modelPanel.nameAndVersion or self.modelPanel.problem,
            vars(SceneInputs.engineOptions(self.logic.getParameterNode(), self.modelPanel.maps)),
            self.ui.logTextEdit.toPlainText(),
            self._namesSegmented,
        )
        Diagnostics.copyReport(text)


class ConResSegmentationLogic(ScriptedLoadableModuleLogic):
    """Segmentation for the panel, and for scripts without it:

    logic = slicer.modules.ConResSegmentationWidget.logic   # or ConResSegmentationLogic()
    outcome = logic.segmentAndWait(SegmentationTask(modelPath, (volumeNode,)))
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.enginePython = EnginePython()
        self.engine = EngineProcess(self.enginePython.launch)
        self.sceneChoices = SceneInputs.SceneChoices()

    def getParameterNode(self) -> SceneInputs.ConResSegmentationParameterNode:
        return self.sceneChoices.of(super().getParameterNode())

    def install(self, package: str) -> str:
        """As `Models.installAsking`, and choose the model in the scene."""
        name = installAsking(package)
        if name:
            choices = self.getParameterNode()
            choices.model, choices.channels = name, []
        return name

    def importCheckpoint(self, checkpoint: str, settings: dict | None, listener, install=None) -> CheckpointImport:
        """Convert a checkpoint by the paper's authors without waiting, then `install` it; see `CheckpointImport`."""
        return CheckpointImport(self.enginePython, Path(checkpoint), settings, listener, install or self.install)

    def segment(self, task: SegmentationTask, listener: RunListener) -> SegmentationRun:
        """Start a segmentation and return at once; the listener is called from Slicer's event loop.

        Raises:
            UserError: the inputs cannot be segmented; nothing is started then.
        """
        return SegmentationRun(task, self.engine, listener)

    def segmentAndWait(self, task: SegmentationTask) -> SegmentationOutcome:
        """Segment and return the result, while Slicer stays responsive.

        Raises:
            UserError: the inputs cannot be segmented.
            RuntimeError: the segmentation failed or was canceled; with the sentence for the user.
        """
        waiter = RunWaiter()
        self.segment(task, waiter)
        return waiter.wait()


class ConResSegmentationTest(Diagnostics.SelfTest):
    """The module's self-test in a user's Slicer (Developer tools: Reload and Test)."""

    Logic = ConResSegmentationLogic
