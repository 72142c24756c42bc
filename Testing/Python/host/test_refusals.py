"""The stand-in refuses what Slicer would refuse: otherwise, the tests of the modules would prove nothing."""

import ctk
import pytest
import qt
import slicer


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("tekst", "x", AttributeError),  # misspelt
        ("isChecked", True, AttributeError),  # a method
        ("clicked", print, AttributeError),  # a signal
        ("text", None, AttributeError),
        ("iconSize", 3, TypeError),
    ],
)
def test_qt_object_accepts_only_its_properties(slicer_app, name, value, error):
    with pytest.raises(error):
        setattr(qt.QPushButton(), name, value)


def test_properties_are_attributes_and_not_methods(slicer_app):
    box = qt.QCheckBox("x")
    box.checked = True
    assert (box.text, box.checked, box.isChecked()) == ("x", True, True)
    with pytest.raises(TypeError):
        box.text()


@pytest.mark.parametrize(
    "signature", ["clicked", "clickd()", "clicked(int)", "setText(QString)", "checkStateChanged(Qt::CheckState)"]
)
def test_signal_must_exist_with_exact_signature(slicer_app, signature):
    with pytest.raises(ValueError, match="signal"):
        qt.QCheckBox().connect(signature, print)


def test_slots_get_as_many_arguments_as_they_accept(slicer_app):
    received = []
    button = qt.QPushButton()
    button.connect("clicked(bool)", lambda: received.append("none"))
    button.connect("clicked(bool)", lambda checked: received.append(checked))
    button.connect("clicked()", lambda checked="default": received.append(checked))
    button.click()
    assert received == ["none", False, "default"]


@pytest.mark.parametrize("name", ["Slot", "Property", "QWidgets", "QPushBtn"])
def test_qt_contains_only_names_of_pythonqt(slicer_app, name):
    with pytest.raises(AttributeError):
        getattr(qt, name)


def test_stand_in_widgets_are_equally_strict(slicer_app):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    with pytest.raises(AttributeError):
        selector.nodeType = "vtkMRMLScalarVolumeNode"
    with pytest.raises(ValueError, match="signal"):
        selector.connect("nodeChanged(vtkMRMLNode*)", print)
    with pytest.raises(ValueError, match="MRML node"):
        selector.setCurrentNode("vtkMRMLScalarVolumeNode1")
    with pytest.raises(AttributeError, match="double"):
        ctk.ctkSliderWidget().value = "1"
    with pytest.raises(AttributeError):
        qt.QTimer().singleShot = True  # PythonQt has a static function of that name


UI = """<ui version="4.0"><class>P</class><widget class="qMRMLWidget" name="P"><layout class="QVBoxLayout" name="l">
<item><widget class="{cls}" name="w"><property name="{prop}"><bool>true</bool></property></widget></item>
</layout></widget>
<connections><connection><sender>P</sender><signal>{signal}</signal><receiver>w</receiver>
<slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
RIGHT = {"cls": "qMRMLNodeComboBox", "prop": "noneEnabled", "signal": "mrmlSceneChanged(vtkMRMLScene*)"}


@pytest.mark.parametrize("wrong", [{"cls": "qMRMLNodeBox"}, {"prop": "nonEnabled"}, {"signal": "sceneChanged()"}])
def test_ui_file_is_checked(slicer_app, tmp_path, wrong):
    path = tmp_path / "P.ui"
    path.write_text(UI.format(**RIGHT), encoding="utf-8")
    widget = slicer.util.loadUI(str(path))
    selector = slicer.util.childWidgetVariables(widget).w
    widget.setMRMLScene(slicer.mrmlScene)
    assert selector.noneEnabled and selector.mrmlScene() is slicer.mrmlScene
    path.write_text(UI.format(**RIGHT | wrong), encoding="utf-8")
    with pytest.raises(RuntimeError, match="ui file"):
        slicer.util.loadUI(str(path))


def test_exception_in_a_slot_is_not_lost(slicer_app):
    from slicer_host import slot_errors

    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert len(slot_errors) == 2 and "ZeroDivisionError" in slot_errors[0]
    slot_errors.clear()
