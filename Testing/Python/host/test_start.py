"""The stand-in application starts and provides the objects that modules use first."""

import qt
import slicer


def test_application_has_a_scene_logics_and_views(slicer_app):
    assert slicer.app is slicer_app and slicer_app.mrmlScene() is slicer.mrmlScene
    assert slicer.modules.segmentations.logic() and slicer.modules.volumes.logic()
    # Layouts of modules may have added more in the same process.
    assert slicer_app.layoutManager().sliceViewNames()[:3] == ["Red", "Yellow", "Green"]
    assert slicer.util.mainWindow().objectName == "qSlicerMainWindow"


def test_settings_are_separate_from_the_users(slicer_app):
    assert qt.QSettings().fileName().startswith(slicer_app._folder)
