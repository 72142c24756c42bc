"""Views show what a user would see: the volume, translucent segments over it, and surfaces in 3D."""

import numpy as np
import pytest
import slicer

from slicer_host.views import four_views, save_png


@pytest.fixture
def head(slicer_app, head_image, head_label):
    """A head with a segmentation of its tissues that has surfaces."""
    volume, segmentation = add_segmentation(head_image, head_label)
    segmentation.GetSegmentation().GetNthSegment(2).SetColor(0, 1, 0)
    return volume, segmentation


def add_segmentation(image, label):
    volume = slicer.util.loadVolume(str(image))
    labels = slicer.util.loadVolume(str(label), {"labelmap": True, "show": False})
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Tissues")
    segmentation.CreateDefaultDisplayNodes()
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
    slicer.mrmlScene.RemoveNode(labels)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume, segmentation


def test_segments_are_translucent_over_the_volume(head):
    _, segmentation = head
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    segmentation.GetDisplayNode().SetVisibility(False)
    plain = view.image(300, 300).astype(int)
    assert plain.std() > 30 and np.ptp(plain, axis=2).max() == 0  # gray
    segmentation.GetDisplayNode().SetVisibility(True)
    segmentation.GetDisplayNode().SetOpacity2DFill(0.3)
    segmentation.GetDisplayNode().SetVisibility2DOutline(False)
    shown = view.image(300, 300).astype(int)
    green = (shown[:, :, 1] - shown[:, :, 0]) > 40
    assert green.mean() > 0.02
    # Bright and dark tissue can still be distinguished under the fill.
    assert np.corrcoef(plain[green][:, 0], shown[green][:, 0])[0, 1] > 0.9


def test_surfaces_are_shown_in_3d_and_rendering_is_stable(head, tmp_path):
    _, segmentation = head
    empty = slicer.app.layoutManager().threeDWidget(0).threeDView().image(200, 200)
    segmentation.CreateClosedSurfaceRepresentation()
    first = four_views(600, 450, direction=(0.6, 0.7, 0.35))
    surfaces = slicer.app.layoutManager().threeDWidget(0).threeDView().image(200, 200)
    assert (np.abs(surfaces.astype(int) - empty).sum(axis=2) > 30).mean() > 0.1
    assert np.array_equal(first, four_views(600, 450, direction=(0.6, 0.7, 0.35)))
    save_png(first, tmp_path / "views.png")
    assert (tmp_path / "views.png").stat().st_size > 20_000


def test_nodes_have_subject_hierarchy_items(head):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volume, segmentation = head
    items = [hierarchy.GetItemByDataNode(node) for node in (volume, segmentation)]
    assert all(items)
    slicer.mrmlScene.RemoveNode(segmentation)
    assert not hierarchy.GetItemByDataNode(segmentation)


def test_segments_are_shown_in_slices_after_save_and_load(slicer_app, hippocampus_image, hippocampus_label, tmp_path):
    add_segmentation(hippocampus_image, hippocampus_label)
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()

    def colored():
        return np.count_nonzero(np.ptp(view.image(300, 300).astype(int), axis=2) > 40)

    before = colored()
    path = str(tmp_path / "scene.mrb")
    slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    assert colored() == before > 0
