"""Loading images: files, DICOM folders, dropped files, sequences, whole folders, and an example per shipped model."""

import gzip
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from .Models import isPackage
from .Widgets import DroppedFiles, nameOf, showError

_MODULE_RESOURCES = Path(__file__).resolve().parents[1] / "Resources"
EXAMPLES_FOLDER = _MODULE_RESOURCES / "Examples"
_CT, _HEAD = "head_neck_ct.nii.gz", "head.nii.gz"
# The example images by the name of their model.
EXAMPLES = {
    # A whole head shows more of this model than the crop: its automatic ROI, and both sides.
    "hippocampus": EXAMPLES_FOLDER / _HEAD,
    "brain-structures": EXAMPLES_FOLDER / _HEAD,
    "brain-tissue": EXAMPLES_FOLDER / _HEAD,
    "head-neck-organs": EXAMPLES_FOLDER / _CT,
}
_NIFTI = (".nii", ".nii.gz")
_ENDINGS = (*_NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
_SERIES = (".seq.nrrd", ".seq.nhdr")
_FILE_ATTRIBUTE = "ConResNet.File"


def registerSampleData() -> None:
    """Add the examples to Slicer's Sample Data module; for the model hippocampus, a crop around one hippocampus."""
    try:
        import SampleData
    except ImportError:
        return
    for model, path in (EXAMPLES | {"hippocampus": EXAMPLES_FOLDER / "hippocampus.nii.gz"}).items():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="ConResNet",
            sampleName=f"ConResNet {model}",
            uris=path.as_uri(),
            fileNames=path.name,
            nodeNames=model,
            thumbnailFileName=str(_MODULE_RESOURCES / "Icons" / "ConResSegmentation.png"),
            checksums=f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        )


def loadImages(paths: Sequence[str]) -> list:
    """Load image files and DICOM folders as volume nodes.

    Raises:
        RuntimeError: something cannot be loaded; what was loaded before stays in the scene.
    """
    nodes = []
    for path in paths:
        properties = {}
        if Path(path).parent == EXAMPLES_FOLDER:
            # Not the file's name, which would be repeated in the names of the results.
            properties["name"] = _("Synthetic CT example") if Path(path).name == _CT else _("T1 example")
        nodes += _loadDICOM(path) if Path(path).is_dir() else [slicer.util.loadVolume(path, properties)]
    return nodes


def _loadDICOM(folder: str) -> list:
    from DICOMLib import DICOMUtils

    before = set(_volumes())
    with DICOMUtils.TemporaryDICOMDatabase() as database:
        DICOMUtils.importDicom(folder, database)
        for patient in database.patients():
            DICOMUtils.loadPatientByUID(patient)
    nodes = [node for node in _volumes() if node not in before]
    if not nodes:
        sentence = _(
            "The folder {folder} contains no DICOM images. If it contains images in other formats, load or drop the "
            "files themselves, or add the folder under Many cases."
        )
        raise RuntimeError(sentence.format(folder=folder))
    return nodes


def _volumes() -> list:
    return slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def askForImages() -> list[str]:
    """Ask for image files; empty if the user chooses none."""
    patterns = " ".join(f"*{ending}" for ending in _ENDINGS)
    title, kinds = _("Load images"), _("Images ({patterns})").format(patterns=patterns)
    return list(qt.QFileDialog.getOpenFileNames(slicer.util.mainWindow(), title, "", kinds))


def imagesIn(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Each image file and each DICOM folder in a folder and those below it, and whether it is a sequence."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        shown = [name for name in sorted(names) if not name.startswith(".")]
        images = [Path(place, name) for name in shown if name.casefold().endswith(_ENDINGS)]
        yield from ((path, isSeries(path)) for path in images)
        if any(name.casefold().endswith(".dcm") for name in shown):
            yield Path(place), False


def isSeries(path: Path) -> bool:
    """Whether a file has several frames, by its header or name."""
    name = path.name.casefold()
    if name.endswith(_SERIES):
        return True
    if not name.endswith(_NIFTI):
        return False
    try:
        with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(348)
        # Field "dim" of a NIfTI-1 header in the computer's order, or the other one.
        order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
        count, *sides = struct.unpack_from(f"{order}8h", header, 40)
    except (OSError, EOFError, struct.error):
        # It fails when it is loaded, with a sentence.
        return False
    return count >= 4 and sides[3] > 1


def withoutEnding(name: str) -> str:
    """The name of an image file without its format extension."""
    endings = sorted([*_SERIES, *_ENDINGS], key=len, reverse=True)
    ending = next((one for one in endings if name.casefold().endswith(one)), "")
    return name[: len(name) - len(ending)]


def readSeries(path: Path):
    """Load a 4D file as a sequence node with a browser; if it was loaded before, return that node.

    Raises:
        UserError: ``series-unreadable``.
    """
    for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode"):
        if node.GetAttribute(_FILE_ATTRIBUTE) == str(path):
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", withoutEnding(path.name))
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(path))
    isRead = storage.ReadData(node) and hasVolumes(node)
    slicer.mrmlScene.RemoveNode(storage)
    if not isRead:
        slicer.mrmlScene.RemoveNode(node)
        raise UserError("series-unreadable", path=str(path))
    node.SetAttribute(_FILE_ATTRIBUTE, str(path))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{nameOf(node)} browser")
    browser.SetAndObserveMasterSequenceNodeID(node.GetID())
    return node


def hasVolumes(sequenceNode) -> bool:
    """Whether the frames of a sequence are images; label maps are not."""
    first = sequenceNode.GetNthDataNode(0) if sequenceNode.GetNumberOfDataNodes() > 0 else None
    return first is not None and first.IsA("vtkMRMLScalarVolumeNode") and not first.IsA("vtkMRMLLabelMapVolumeNode")


class LoadPanel:
    """The buttons that load images, and files dropped on the panel.

    Args:
        panel: the widget that takes dropped files.
        onLoaded: called with the volume nodes that were loaded.
        onPackage: called with the path of a model package that was dropped.
    """

    def __init__(
        self, panel, loadButton, exampleButton, onLoaded: Callable[[list], None], onPackage: Callable[[str], None]
    ):
        self._exampleButton, self._onLoaded, self._onPackage = exampleButton, onLoaded, onPackage
        self._example: Path | None = None
        menu = qt.QMenu(loadButton)
        for title, ask in ((_("Image files..."), askForImages), (_("DICOM folder..."), self._askForFolder)):
            action = menu.addAction(title)
            action.connect("triggered(bool)", lambda _checked, ask=ask: self._load(ask()))
        loadButton.setMenu(menu)
        exampleButton.connect("clicked(bool)", self._onExample)
        self._drops = DroppedFiles(panel, self.drop)

    def setModel(self, name: str) -> None:
        """Offer the example of a model, if there is one."""
        self._example = EXAMPLES.get(name)
        self._exampleButton.enabled = self._example is not None
        self._exampleButton.toolTip = (
            _("Load an image that this model can segment.") if self._example else _("This model has no example image.")
        )

    def drop(self, paths: Sequence[str]) -> None:
        """Load dropped files and folders; model packages and checkpoints are installed."""
        packages = [path for path in paths if isPackage(path)]
        for package in packages:
            self._onPackage(package)
        self._load([path for path in paths if path not in packages])

    def _askForFolder(self) -> list[str]:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Load a DICOM folder"))
        return [folder] if folder else []

    def _onExample(self) -> None:
        node = _unchanged(self._example)
        if node is None:
            self._load([str(self._example)])
        else:
            self._show([node])

    def _load(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        try:
            with slicer.util.WaitCursor():
                nodes = loadImages(paths)
        except RuntimeError as error:
            showError(str(error))
            return
        self._show(nodes)

    def _show(self, nodes: list) -> None:
        slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
        # No selector offers images with colors.
        colored = {node: count for node in nodes if (count := _components(node)) > 1}
        for node, count in colored.items():
            showError(UserError("volume-color", name=nameOf(node), count=count))
        self._onLoaded([node for node in nodes if node not in colored])


def _unchanged(path: Path):
    """The volume that was loaded from a file and is still as it was; None if there is none."""
    for node in _volumes():
        storage = node.GetStorageNode()
        isFrom = storage is not None and storage.GetFileName() and Path(storage.GetFileName()) == path
        if isFrom and not node.GetModifiedSinceRead() and node.GetParentTransformNode() is None:
            return node
    return None


def _components(volumeNode) -> int:
    image = volumeNode.GetImageData()
    return image.GetNumberOfScalarComponents() if image is not None else 1
