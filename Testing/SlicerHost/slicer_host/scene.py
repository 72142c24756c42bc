"""The scene, the application logic and the module logics of slicer-core, set up as when Slicer starts."""

from __future__ import annotations

import os
from pathlib import Path

import slicer
import vtk
import vtkmodules.vtkInteractionStyle
import vtkmodules.vtkRenderingFreeType
import vtkmodules.vtkRenderingOpenGL2
import vtkmodules.vtkRenderingVolumeOpenGL2  # noqa: F401 - importing registers the factories that rendering needs

_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
}

_VIEW_CLASSES_2D = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)
_VIEW_CLASSES_3D = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLVolumeRenderingDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)


# Color tables that Slicer reads from its own files; matplotlib, a dependency of VTK, has them under these names.
_COLOR_FILES = ("Cividis", "Inferno", "Magma", "Plasma", "Viridis")


def start_scene(terminologies: Path, temporary: Path, home: Path) -> tuple[object, dict[str, object]]:
    """Create ``slicer.mrmlScene`` with its logics and default color tables.

    ``terminologies``: folder with the terminology files. ``temporary``: folder in which bundles are unpacked.
    ``home``: the application's folder.
    Returns the application logic and the module logics by module name.
    """
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    slicer.mrmlScene = scene
    application_logic.SetMRMLScene(scene)
    application_logic.SetHomeDirectory(os.fspath(home))
    application_logic.SetShareDirectory("share")
    _write_color_files(home / "share" / "ColorFiles")
    application_logic.SetSliceLogics(vtk.vtkCollection())
    application_logic.SetViewLogics(vtk.vtkCollection())
    for factory, classes in (
        (slicer.vtkMRMLSliceViewDisplayableManagerFactory, _VIEW_CLASSES_2D),
        (slicer.vtkMRMLThreeDViewDisplayableManagerFactory, _VIEW_CLASSES_3D),
    ):
        factory = factory.GetInstance()
        factory.SetMRMLApplicationLogic(application_logic)
        for name in classes:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
    logics = {}
    for name, class_name in _LOGICS.items():
        logic = getattr(slicer, class_name)()
        if name == "Terminologies":
            logic.SetModuleShareDirectory(os.fspath(terminologies))
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
        application_logic.SetModuleLogic(name, logic)
        logics[name] = logic
    logics["Colors"].AddDefaultColorNodes()
    logics["RemoteIO"] = _start_remote_io(scene, temporary)
    add_default_nodes(scene)
    return application_logic, logics


def _write_color_files(folder: Path) -> None:
    import matplotlib

    folder.mkdir(parents=True)
    for name in _COLOR_FILES:
        colors = matplotlib.colormaps[name.lower()].resampled(256)(range(256), bytes=True)
        lines = [f"{index} {index} {' '.join(map(str, color))}" for index, color in enumerate(colors)]
        (folder / f"{name}.txt").write_text("\n".join(["# 256 values", *lines, ""]), encoding="utf-8")


def _start_remote_io(scene: object, temporary: Path) -> object:
    """Give the scene its cache folder, without which bundles (.mrb) cannot be read."""
    cache, manager, logic = slicer.vtkCacheManager(), slicer.vtkDataIOManager(), slicer.vtkMRMLRemoteIOLogic()
    cache.SetRemoteCacheDirectory(os.fspath(temporary))
    manager.SetCacheManager(cache)
    logic.SetCacheManager(cache)
    logic.SetDataIOManager(manager)
    logic.SetMRMLScene(scene)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    return logic


def add_default_nodes(scene: object) -> None:
    """Add the nodes of every Slicer scene: crosshair, selection, interaction, subject hierarchy, orientations."""
    for class_name, tag in (
        ("vtkMRMLCrosshairNode", "default"),
        ("vtkMRMLSelectionNode", "Singleton"),
        ("vtkMRMLInteractionNode", "Singleton"),
    ):
        if scene.GetSingletonNode(tag, class_name) is None:
            node = getattr(slicer, class_name)()
            node.SetSingletonTag(tag)
            if class_name == "vtkMRMLCrosshairNode":
                node.SetCrosshairName("default")
            scene.AddNode(node)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
