"""Parameter nodes: typed, checked, connected to widgets, and restored after the scene is saved and loaded."""

from typing import Annotated

import ctk
import pytest
import qt
import slicer
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class Parameters:
    volume: slicer.vtkMRMLScalarVolumeNode
    roi: slicer.vtkMRMLMarkupsROINode | None
    device: Annotated[str, Choice(["auto", "cpu"]), Default("auto")]
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    maps: bool
    names: list[str]


def new_node():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "Parameters")


def test_values_are_typed_and_checked(slicer_app):
    parameters = Parameters(new_node())
    assert (parameters.volume, parameters.roi, parameters.device, parameters.opacity) == (None, None, "auto", 0.5)
    with pytest.raises(ValueError, match="one of"):
        parameters.device = "tpu"
    with pytest.raises(ValueError, match="within"):
        parameters.opacity = 1.5
    with pytest.raises(TypeError):
        parameters.maps = "yes"
    with pytest.raises(TypeError):
        parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    parameters.names.append("T1")
    assert parameters.names == ["T1"] and parameters.parameterNode.GetParameter("names.0") == "T1"


def test_widgets_and_parameters_are_synchronized(slicer_app):
    parameters = Parameters(new_node())
    widgets = {"opacity": ctk.ctkSliderWidget(), "maps": qt.QCheckBox(), "device": qt.QComboBox()}
    widgets["volume"] = slicer.qMRMLNodeComboBox()
    widgets["volume"].setMRMLScene(slicer.mrmlScene)
    tag = parameters.connectParametersToGui(widgets)
    parameters.opacity = 0.25
    assert widgets["opacity"].value == 0.25
    widgets["maps"].click()
    widgets["device"].currentIndex = 1
    assert parameters.maps and parameters.device == "cpu"
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "head")
    widgets["volume"].setCurrentNode(volume)
    assert parameters.volume is volume
    slicer.mrmlScene.RemoveNode(volume)
    assert parameters.volume is None and widgets["volume"].currentNode() is None
    parameters.disconnectGui(tag)
    widgets["maps"].click()
    assert parameters.maps
    with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
        parameters.connectParametersToGui({"opacity": qt.QLineEdit()})


@pytest.mark.parametrize("name", ["scene.mrb", "a scene"])
def test_choices_are_restored_after_save_and_load(slicer_app, tmp_path, head_image, name):
    parameters = Parameters(new_node())
    parameters.volume = slicer.util.loadVolume(str(head_image))
    parameters.device, parameters.names = "cpu", ["a", "b"]
    assert slicer.util.saveScene(str(tmp_path / name))
    slicer.mrmlScene.Clear(0)
    file = tmp_path / name
    slicer.util.loadScene(str(file if file.is_file() else next(file.glob("*.mrml"))))
    node = slicer.util.getNode("Parameters")
    again = Parameters(node)
    assert (again.device, again.opacity, again.names) == ("cpu", 0.5, ["a", "b"])
    assert slicer.util.arrayFromVolume(again.volume).shape
