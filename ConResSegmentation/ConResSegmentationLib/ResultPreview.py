"""A result while it computes: a segmentation of its own that fills in, and goes when the run ends."""

import time

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from . import SegmentationInScene

MILLISECONDS_BETWEEN_LOOKS = 1000
# A large image takes longer to look at; Slicer shall have nine tenths of its time for the user.
_SHARE_OF_TIME = 0.1


class ResultPreview:
    """Shows the labels that the engine has so far, in a node that no selector offers and no file keeps.

    While there is nothing to show, as when the whole image is one window, nothing is put into the scene.

    Args:
        labels: uint8 [k, j, i] on the voxels of the volume, which the engine fills.
        segments: the model's.
        volumeNode: the input.
    """

    def __init__(self, labels: np.ndarray, segments, volumeNode):
        self._labels, self._segments, self._volumeNode = labels, segments, volumeNode
        self._shownVoxels = 0
        self._node = None
        self._image = None
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._look)
        self._timer.start(MILLISECONDS_BETWEEN_LOOKS)

    def remove(self) -> None:
        """Stop looking, and leave the scene as it was before."""
        self._timer.stop()
        # What a signal calls PythonQt keeps as long as the sender lives, and Python's collector does not see that ring:
        # the input would stay in memory until Slicer quits.
        self._timer.disconnect("timeout()", self._look)
        self._labels = self._image = self._volumeNode = None
        if self._node is not None:
            for node in (self._node.GetDisplayNode(), self._node):
                slicer.mrmlScene.RemoveNode(node)
            self._node = None

    def _look(self) -> None:
        begun = time.monotonic()
        voxels = np.count_nonzero(self._labels)
        if voxels != self._shownVoxels:
            self._shownVoxels = voxels
            self._show()
        spent = time.monotonic() - begun
        self._timer.start(max(MILLISECONDS_BETWEEN_LOOKS, round(1000 * spent / _SHARE_OF_TIME)))

    def _show(self) -> None:
        image = SegmentationInScene.labelImage(self._labels, self._volumeNode)
        if self._node is None:
            self._image = image
            self._node = self._makeNode()
        else:
            # All segments share this labelmap, and the views follow it.
            self._image.DeepCopy(image)

    def _makeNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName(_("{volume}, being segmented").format(volume=self._volumeNode.GetName()))
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        slicer.mrmlScene.AddNode(node)
        SegmentationInScene.setSegments(
            node, SegmentationInScene.withLabelmap(self._image, self._segments), self._volumeNode
        )
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetVisibility3D(False)
        return node
