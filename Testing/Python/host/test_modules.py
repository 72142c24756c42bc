"""A scripted module is loaded from its file, its panel is built from its .ui, used, closed, reloaded and unloaded."""

import gc
import weakref

import numpy as np
import pytest
import SampleData
import shiboken6
import slicer

from slicer_host.panel import panel_image

SOURCE = """
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from slicer.parameterNodeWrapper import parameterNodeWrapper

class Tiny(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Tiny")
        self.parent.categories = ["Segmentation"]
        slicer.app.connect("startupCompleted()", registerSampleData)

def registerSampleData():
    import SampleData
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        sampleName="TinyHead", uris="https://example.org/a", fileNames="a.nrrd", checksums="SHA256:" + "0" * 64)

@parameterNodeWrapper
class TinyParameterNode:
    input: slicer.vtkMRMLScalarVolumeNode

class TinyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.story, self.parameters = [], None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("Tiny.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = TinyLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, lambda *_: self.story.append("close"))
        self.ui.apply.connect("clicked(bool)", self.onApply)

    def enter(self):
        self.story.append("enter")
        self.parameters = TinyParameterNode(self.logic.getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)

    def exit(self):
        self.story.append("exit")

    def cleanup(self):
        # The parameter node stays, and would write to widgets that are gone.
        if self.parameters:
            self.parameters.disconnectGui(self.tag)
        self.removeObservers()
        self.story.append("cleanup")

    def onApply(self):
        with slicer.util.tryWithErrorDisplay("Failed."):
            self.story.append(self.parameters.input.GetName())

class TinyLogic(ScriptedLoadableModuleLogic):
    pass

class TinyTest(ScriptedLoadableModuleTest):
    def test_it(self):
        self.delayDisplay("tested")
        slicer.tinyTested = True
"""
PANEL = """<ui version="4.0"><class>Tiny</class><widget class="qMRMLWidget" name="Tiny">
<layout class="QVBoxLayout" name="v"><item><widget class="ctkCollapsibleButton" name="section">
<property name="text"><string>Inputs</string></property><layout class="QFormLayout" name="f"><item row="0" column="0">
<widget class="QLabel" name="label"><property name="text"><string>Volume:</string></property></widget></item>
<item row="0" column="1"><widget class="qMRMLNodeComboBox" name="selector"><property name="nodeTypes">
<stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="SlicerParameterName" stdset="0"><string>input</string></property></widget></item></layout>
</widget></item><item><widget class="QPushButton" name="apply"><property name="text"><string>Apply</string></property>
</widget></item></layout></widget><connections><connection><sender>Tiny</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture
def tiny(slicer_app, tmp_path):
    """The module above, loaded; unloaded at the end."""
    (tmp_path / "Resources").mkdir()
    (tmp_path / "Resources" / "Tiny.ui").write_text(PANEL, encoding="utf-8")
    (tmp_path / "Tiny.py").write_text(SOURCE, encoding="utf-8")
    yield slicer_app.moduleManager().load(tmp_path / "Tiny.py")
    slicer_app.moduleManager().unload("Tiny")


def test_module_life_cycle(tiny, slicer_app):
    slicer.util.selectModule("Tiny")
    widget = slicer.modules.TinyWidget
    assert tiny.widgetRepresentation().self() is widget and slicer.util.selectedModule() == "Tiny"
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "head")
    widget.ui.selector.setCurrentNode(volume)
    widget.ui.apply.click()
    slicer.mrmlScene.Clear(0)
    slicer.util.reloadScriptedModule("Tiny")
    assert widget.story == ["enter", "head", "close", "cleanup"]
    assert slicer.modules.TinyWidget is not widget and slicer.util.getModuleLogic("Tiny") is not widget.logic
    slicer.modules.TinyInstance.runTest(msec=1)
    assert slicer.tinyTested
    assert [source.sampleName for source in SampleData.sources].count("TinyHead") >= 1


def test_panel_is_gone_after_its_module_was_unloaded(tiny, slicer_app, tmp_path):
    """Otherwise, every later change of the scene would take longer in the tests of panels."""
    slicer.util.selectModule("Tiny")
    panel, selector = weakref.ref(slicer.modules.TinyWidget), slicer.modules.TinyWidget.ui.selector
    assert selector._scene_tags
    slicer_app.moduleManager().unload("Tiny")
    assert not shiboken6.isValid(selector) and not selector._scene_tags
    del selector
    gc.collect()
    assert panel() is None
    slicer_app.moduleManager().load(tmp_path / "Tiny.py")


def test_panel_can_be_rendered(tiny):
    picture = panel_image(tiny.widgetRepresentation())
    assert picture.shape[1:] == (420, 3) and picture.shape[0] > 80
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 30  # a panel without text has only a few colors
