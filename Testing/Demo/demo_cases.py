"""Real cases through the module's own logic, on real MRML with a real engine process.

A crop around a hippocampus gives the segmentation, the residual and attention maps, one surface per segment, pictures
of the views, of maps in 3D and of the module's panel, and the files that the buttons below the review list export. A
whole head gives pictures of both hippocampi, the structures of its brain and its brain tissue, each with one click. A
synthetic CT of a head and neck gives one of five organs, as does your own CT if you name its file.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer

from slicer_host import dialogs, slot_errors, start_application
from slicer_host.panel import panel_image
from slicer_host.views import four_views, save_png

# Needs qt, which importing the stand-in application made importable.
from demo_picture import side_by_side, with_legend  # isort: skip

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "Testing" / "Data"
CASE = DATA / "MSD_Task04_Hippocampus" / "imagesTr" / "hippocampus_004.nii.gz"
HEAD = DATA / "IXI_T1_2mm" / "IXI034.nii.gz"
SYNTHETIC_CT = REPOSITORY / "ConResSegmentation" / "Resources" / "Examples" / "head_neck_ct.nii.gz"
SIZE_3D = (598, 460)
# Transparent in 3D, to show what they enclose.
OUTER_SEGMENTS = [
    "Gray matter",
    "Cerebrospinal fluid",
    *(f"{side} cerebral {part}" for side in ("Left", "Right") for part in ("cortex", "white matter")),
]
OUTPUT = REPOSITORY / "demo"


def main(output: Path = OUTPUT, ct: Path | None = None) -> None:
    """Create all files of the demo in ``output`` and print the results.

    Args:
        ct: an image of the head and neck.
    """
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    app = start_application()
    try:
        module = app.moduleManager().load(REPOSITORY / "ConResSegmentation" / "ConResSegmentation.py")
        segment_case(module, output)
        widget = module.widgetRepresentation().self()
        segment_whole(widget, HEAD, "hippocampus", output / "whole_head.png", "Left posterior hippocampus", 120)
        segment_whole(widget, HEAD, "brain-structures", output / "brain_structures.png", "Left putamen")
        segment_whole(widget, HEAD, "brain-tissue", output / "brain_tissue.png", "White matter")
        segment_whole(widget, SYNTHETIC_CT, "head-neck-organs", output / "synthetic_ct.png", "Mandible")
        if ct:
            segment_whole(widget, ct, "head-neck-organs", output / "ct.png", "Mandible")
        if slot_errors:
            raise RuntimeError("a slot or an observer raised an exception, see above")
    finally:
        app.quit_host()
    files = sorted(path.name for path in output.iterdir())
    print(f"The demo took {time.perf_counter() - started:.0f} s. The files are in {output.name}/: {', '.join(files)}")


def segment_case(module: object, output: Path) -> None:
    """Segment a crop around a hippocampus by clicks: load it, open the module, click Segment."""
    slicer.util.loadVolume(str(CASE))
    panel = module.widgetRepresentation()
    slicer.util.selectModule("ConResSegmentation")
    widget = panel.self()
    choose_model(widget, "hippocampus")
    widget.mapChooser.boxes["uncertainty"].click()
    outcome = click_segment(widget, CASE)
    slicer.util.saveNode(outcome.segmentation, str(output / "segmentation.seg.nrrd"))
    maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    for kind in ("residual", "attention"):
        of_kind = [node for node in maps if node.GetAttribute("ConResNet.Map") == kind]
        save_map(of_kind, output / f"{kind}.nrrd")
    save_surfaces(outcome.segmentation, output)
    show(outcome.segmentation, outcome.shownMap)
    save_png(with_legend(four_views(1200, 900), outcome.segmentation, outcome.shownMap), output / "views.png")
    widget.ui.modelDetailsButton.collapsed = True
    save_png(panel_image(panel), output / "panel.png")
    dialogs.answer(*(str(output / name) for name in ("review.csv", "statistics.csv", "report.html")))
    # The button exports the statistics while they are shown.
    for button in ("exportReview", "statistics", "exportReview", "statistics", "report"):
        getattr(widget.ui, f"{button}Button").click()
    while widget.reviewPanel.isBusy:
        slicer.app.processEvents()
    show_maps_in_3d(widget, outcome, output)


def show_maps_in_3d(widget: object, outcome: object, output: Path) -> None:
    """Pictures of the residual on the segments' surfaces and of the uncertainty as a rendered volume."""
    view = slicer.app.layoutManager().threeDWidget(0).threeDView()
    view.mrmlViewNode().SetOrientationMarkerType(slicer.vtkMRMLAbstractViewNode.OrientationMarkerTypeCube)
    view.look((-0.8, 0.5, 0.4), zoom=0.85)
    segments = view.image(*SIZE_3D)
    maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    widget.ui.mapOpacitySlider.value = 1.0
    for kind, how, title, caption, name in (
        (
            "residual",
            "On surfaces",
            "The same surfaces, painted with the residual",
            "Bright: the network expects the segment to begin or end between this axial slice and the one before. "
            "Dark: it expects no change.",
            "surfaces.png",
        ),
        (
            "uncertainty",
            "Volume rendering",
            "Uncertainty as a rendered volume",
            "Bright: the model is unsure, most of all where the two segments meet. Transparent: it is certain, inside "
            "and outside.",
            "volume_rendering.png",
        ),
    ):
        widget.ui.mapSelector.setCurrentNode(next(n for n in maps if n.GetAttribute("ConResNet.Map") == kind))
        selector = widget.ui.map3DSelector
        selector.setCurrentIndex(selector.findText(how))
        slicer.app.processEvents()
        while widget.map3DPanel.isBusy:
            slicer.app.processEvents()
        picture = side_by_side({"Segments": segments, title: view.image(*SIZE_3D)}, caption)
        save_png(with_legend(picture, outcome.segmentation, None), output / name)
    selector.setCurrentIndex(0)


def segment_whole(widget: object, image: Path, model: str, picture: Path, shown: str, field_mm: float = 0) -> None:
    """Segment a whole image by one click, without an ROI, and save a picture.

    Args:
        shown: the segment whose center the slices show.
        field_mm: height of the slices' field of view; 0 for the whole image.
    """
    slicer.mrmlScene.Clear(0)
    slicer.util.loadVolume(str(image))
    choose_model(widget, model)
    outcome = click_segment(widget, image)
    widget.ui.mapSelector.setCurrentNode(None)
    segmentation = outcome.segmentation.GetSegmentation()
    show(outcome.segmentation, None, segmentation.GetSegmentIdBySegmentName(shown))
    for name in OUTER_SEGMENTS:
        if segment_id := segmentation.GetSegmentIdBySegmentName(name):
            outcome.segmentation.GetDisplayNode().SetSegmentOpacity3D(segment_id, 0.15)
    if field_mm:
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            node.SetFieldOfView(1.33 * field_mm, field_mm, 1)
    save_png(with_legend(four_views(1200, 900), outcome.segmentation, None), picture)


def choose_model(widget: object, name: str) -> None:
    """Choose a model as a click on its entry does."""
    selector = widget.ui.modelSelector
    selector.setCurrentIndex(selector.findData(name))
    selector.activated.emit(selector.currentIndex)


def click_segment(widget: object, image: Path) -> object:
    """Click Segment, wait for the end, print the result, and return the parameter node, which holds it."""
    slicer.app.processEvents()  # lets the panel select the channels by name
    if not widget.ui.applyButton.enabled:
        raise RuntimeError(widget.ui.applyButton.toolTip)
    widget.ui.applyButton.click()
    while widget.runPanel.isRunning:
        slicer.app.processEvents()
        time.sleep(0.01)
    message = f"{widget.ui.statusLabel.text} {widget.ui.warningsLabel.text}"
    print(f"{image.name}, {widget.ui.modelSelector.currentText}. {message}")
    choices = widget.logic.getParameterNode()
    if choices.segmentation is None:
        raise RuntimeError(widget.ui.statusLabel.text)
    return choices


def save_map(nodes: list, path: Path) -> None:
    """Save the maps of all segments as one image on the grid of the case, with one component per segment."""
    image = sitk.GetImageFromArray(
        np.stack([slicer.util.arrayFromVolume(node) for node in nodes], axis=-1), isVector=True
    )
    image.CopyInformation(sitk.ReadImage(str(CASE)))
    sitk.WriteImage(image, str(path), useCompression=True)


def save_surfaces(segmentation_node: object, folder: Path) -> None:
    """Save one surface file per segment, named after it, in Slicer's coordinate system for files (LPS)."""
    slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
        str(folder), segmentation_node, None, "STL", True, 1.0, False
    )


def show(segmentation_node: object, map_node: object, segment_id: str = "") -> None:
    """Center the slices on the result, or on one of its segments, and fill its segments lightly.

    The module draws only outlines over a map.
    """
    display = segmentation_node.GetDisplayNode()
    display.SetOpacity2DFill(0.35)
    display.SetOpacity2DOutline(1.0)
    display.SetSliceIntersectionThickness(2)
    # The map shown belongs to the first segment.
    segment_id = segment_id or segmentation_node.GetSegmentation().GetNthSegmentID(0 if map_node else 1)
    center = segmentation_node.GetSegmentCenterRAS(segment_id)
    slicer.util.resetSliceViews()
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
    for node in slicer.util.getNodesByClass("vtkMRMLViewNode"):
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
    slicer.util.resetThreeDViews()
