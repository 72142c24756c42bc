"""Stand-in for Slicer's core I/O manager, which ``slicer.util.loadVolume``, ``saveNode`` and ``saveScene`` call."""

from __future__ import annotations

import os

import slicer

_TYPES = (
    ((".mrb", ".mrml"), "SceneFile"),
    ((".seg.nrrd", ".seg.nhdr", ".seg.vtm"), "SegmentationFile"),
    ((".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd", ".img", ".hdr", ".dcm"), "VolumeFile"),
    ((".vtp", ".vtk", ".stl", ".ply", ".obj"), "ModelFile"),
    ((".mrk.json", ".fcsv"), "MarkupsFile"),
    ((".h5", ".tfm", ".mat"), "TransformFile"),
    ((".csv", ".tsv"), "TableFile"),
)


class CoreIOManager:
    """Reads and writes nodes and scenes with slicer-core's storage nodes."""

    def __init__(self, logics: dict[str, object], application_logic: object) -> None:
        self._logics, self._application_logic = logics, application_logic

    def fileType(self, path: str) -> str:
        """Return the reader for a file; "NoFile" if there is none."""
        return next((kind for endings, kind in _TYPES if str(path).lower().endswith(endings)), "NoFile")

    def fileWriterFileType(self, node: object) -> str:
        """Return the writer for a node."""
        return {"vtkMRMLSegmentationNode": "SegmentationFile"}.get(node.GetClassName(), "NodeFile")

    def loadNodes(self, kind: str, properties: dict, loaded: object = None, messages: object = None) -> bool:
        """Read a file into the scene; add its nodes to the collection ``loaded``."""
        path = str(properties["fileName"])
        reader = getattr(self, "_read_" + kind, None)
        if reader is None or not os.path.exists(path):
            return False
        node = reader(path, properties)
        if node is None:
            return False
        if properties.get("name"):
            node.SetName(properties["name"])
        if loaded is not None and node is not slicer.mrmlScene:
            loaded.AddItem(node)
        return True

    def loadScene(self, path: str, clear: bool = True) -> bool:
        """Read a scene, by default in place of the current one."""
        return self.loadNodes("SceneFile", {"fileName": path, "clear": clear})

    def saveScene(self, path: str, image: object = None) -> bool:
        """Write the scene."""
        return self.saveNodes("SceneFile", {"fileName": path})

    def saveNodes(self, kind: str, properties: dict, messages: object = None) -> bool:
        """Write the scene, or the node that ``properties`` names."""
        path, scene = str(properties["fileName"]), slicer.mrmlScene
        if kind == "SceneFile":
            if path.endswith(".mrb"):
                return bool(scene.WriteToMRB(path))
            if path.endswith(".mrml"):
                return bool(scene.Commit(path))
            os.makedirs(path, exist_ok=True)
            return bool(self._application_logic.SaveSceneToSlicerDataBundleDirectory(path))
        node = scene.GetNodeByID(properties["nodeID"])
        if not node.GetStorageNode():
            node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(int(properties["useCompression"]))
        return bool(storage.WriteData(node))

    def _read_SceneFile(self, path: str, properties: dict) -> object:
        scene = slicer.mrmlScene
        clear = bool(properties.get("clear", False))
        if path.endswith(".mrb"):
            ok = scene.ReadFromMRB(path, clear)
        else:
            scene.SetURL(path)
            ok = scene.Connect() if clear else scene.Import()
        return scene if ok else None

    def _read_VolumeFile(self, path: str, properties: dict) -> object:
        options = int(bool(properties.get("labelmap"))) + 2 * int(bool(properties.get("singleFile")))
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        node = self._logics["Volumes"].AddArchetypeVolume(path, name, options)
        if node is not None and properties.get("show", True):
            selection = self._application_logic.GetSelectionNode()
            if properties.get("labelmap"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            self._application_logic.PropagateVolumeSelection()
        return node

    def _read_SegmentationFile(self, path: str, properties: dict) -> object:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", os.path.basename(path).split(".")[0])
        node.AddDefaultStorageNode(path)
        node.GetStorageNode().SetFileName(path)
        if not node.GetStorageNode().ReadData(node):
            slicer.mrmlScene.RemoveNode(node)
            return None
        node.CreateDefaultDisplayNodes()
        return node

    def _read_ModelFile(self, path: str, properties: dict) -> object:
        return self._logics["Models"].AddModel(path)

    def _read_MarkupsFile(self, path: str, properties: dict) -> object:
        identifier = self._logics["Markups"].LoadMarkups(path)
        return slicer.mrmlScene.GetNodeByID(identifier) if identifier else None

    def _read_TransformFile(self, path: str, properties: dict) -> object:
        return self._logics["Transforms"].AddTransform(path, slicer.mrmlScene)

    def _read_TableFile(self, path: str, properties: dict) -> object:
        return self._logics["Tables"].AddTable(path)
