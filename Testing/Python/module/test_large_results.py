"""Large results are added to the scene piece by piece, and Slicer handles events in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import qt
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from conresnet.package.reader import read_package
from conresnet.package.store import find_model
from ConResSegmentationLib import SegmentationRun  # noqa: F401, loaded for `module`
from module.panel_driver import PanelDriver, result_nodes
from module.result_cases import put_maps
from slicer_host import slot_errors

CLOSED_SURFACE = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()


class Engine:
    """Accepts a request; the test decides its outcome."""

    observer: object = None

    def segment(self, request: object, observer: object) -> int:
        self.observer = observer
        return 1

    def cancel(self, number: int) -> None:
        pass


class Listener:
    """Records the events of a run."""

    def __init__(self) -> None:
        self.ends: list[object] = []

    def onProgress(self, text: str, fraction: float) -> None:
        pass

    def onFinished(self, outcome: object) -> None:
        self.ends.append(outcome)

    def onFailed(self, sentence: str, details: str) -> None:
        self.ends.append(sentence)

    def onCancelled(self) -> None:
        self.ends.append("canceled")


class Ticks:
    """Records a value at each tick of another timer."""

    def __init__(self, read: Callable[[], object]) -> None:
        self._read, self.seen = read, []
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._tick)
        self._timer.start(0)

    def _tick(self) -> None:
        self.seen.append(self._read())

    def stop(self) -> list:
        self._timer.stop()
        self._timer.disconnect("timeout()", self._tick)
        return self.seen


def module(name: str) -> object:
    """A submodule as currently loaded, because the panel's fixture reloads the module."""
    return sys.modules[f"ConResSegmentationLib.{name}"]


@pytest.fixture(autouse=True)
def created(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The surfaces created so far; all of them are added to the scene together."""
    results, created = module("ResultSegmentation"), []
    plain = results._makeSurface
    monkeypatch.setattr(results, "_makeSurface", lambda *arguments: created.append(plain(*arguments)) or created[-1])
    return created


@pytest.fixture
def labels(head: object) -> np.ndarray:
    """A box for each segment of *brain-structures*, except for one that was not found."""
    labels = np.zeros(slicer.util.arrayFromVolume(head).shape, np.uint8)
    for number, segment in enumerate(model_segments()[1:]):
        place = np.array(np.unravel_index(number, (2, 4, 4))) * (40, 28, 28) + 4
        labels[tuple(slice(start, start + 20) for start in place)] = segment.label
    return labels


def model_segments() -> tuple:
    return read_package(find_model("brain-structures"), verify=False).description.output.segments


def surfaces() -> list[object]:
    """The surfaces of all segments in the scene."""
    contents = [node.GetSegmentation() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    segments = [content.GetNthSegment(n) for content in contents for n in range(content.GetNumberOfSegments())]
    return [surface for segment in segments if (surface := segment.GetRepresentation(CLOSED_SURFACE)) is not None]


class Run:
    """A run whose engine has just delivered a result, by default with one map per segment."""

    def __init__(self, head: object, labels: np.ndarray, segmentation: object = None, has_maps: bool = True) -> None:
        runs, engine, self.listener = module("SegmentationRun"), Engine(), Listener()
        task = runs.SegmentationTask(str(find_model("brain-structures")), (head,), segmentationNode=segmentation)
        self.run = runs.SegmentationRun(task, engine, self.listener)
        *_, checksum = module("ResultOrigin").checksumInPieces(slicer.util.arrayFromVolume(head))
        engine.observer.onSent((checksum,))
        masks = [labels == segment.label for segment in model_segments()]
        self.maps = {"probability": np.stack(masks).astype(np.float16)} if has_maps else {}
        result = module("EngineConnection").EngineResult(labels, self.maps, {"volumes_ml": {}})
        engine.observer.onDone(result)


@pytest.fixture
def process_events(slicer_app: object) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Let Slicer handle events until a condition is met."""

    def process(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "the condition was never met"
            slicer_app.processEvents()

    yield process
    assert not slot_errors


def largest_step(numbers: list[int]) -> int:
    return max(np.diff(numbers))


def test_surfaces_and_maps_are_added_one_at_a_time(
    head: object, labels: np.ndarray, created: list, process_events: Callable
) -> None:
    ticks = Ticks(lambda: (len(created), len(result_nodes())))
    run = Run(head, labels)
    process_events(lambda: run.listener.ends)
    counts, nodes = zip(*ticks.stop(), strict=True)
    count = len(model_segments())
    assert (counts[0], counts[-1], nodes[-1]) == (0, count, 1 + count) and count == 32
    assert largest_step(counts) == 1, "surfaces between two ticks"
    assert largest_step(nodes) == 1, "nodes between two ticks"
    (outcome,) = run.listener.ends
    assert outcome.mapNodes == result_nodes()[1:]
    for node, values in zip(outcome.mapNodes, run.maps["probability"], strict=True):
        assert slicer.util.arrayFromVolume(node).sum() == values.sum(dtype=int)
    node = outcome.segmentationNode
    assert node.GetDisplayNode().GetVisibility3D()
    one_by_one = surfaces()
    node.RemoveClosedSurfaceRepresentation()
    node.CreateClosedSurfaceRepresentation()
    assert one_by_one[0].GetNumberOfPoints() == surfaces()[0].GetNumberOfPoints() == 0
    for surface, expected in zip(one_by_one[1:], surfaces()[1:], strict=True):
        assert surface.GetNumberOfPoints() > 1000 and surface.GetPointData().GetNormals()
        pair = (surface, expected)
        np.testing.assert_array_equal(*(vtk_to_numpy(one.GetPoints().GetData()) for one in pair))
        np.testing.assert_array_equal(*(vtk_to_numpy(one.GetPolys().GetConnectivityArray()) for one in pair))


@pytest.mark.parametrize("when", ["maps", "surfaces"])
def test_segments_are_kept_when_the_rest_of_the_result_is_canceled(
    head: object, labels: np.ndarray, created: list, process_events: Callable, when: str
) -> None:
    earlier = Run(head, labels)
    process_events(lambda: earlier.listener.ends)
    node = earlier.listener.ends[0].segmentationNode
    later = Run(head, labels[::-1], node)
    nodes_before = set(result_nodes())
    created.clear()
    process_events(lambda: not surfaces() and len(created) == (0 if when == "maps" else 5))
    later.run.cancel()
    (outcome,) = later.listener.ends
    assert outcome.segmentationNode is node and not node.GetDisplayNode().GetVisibility3D()
    assert set(outcome.mapNodes) == set(result_nodes()[1:]) <= nodes_before, "no map of the earlier result remains"
    assert len(outcome.mapNodes) == 32 if when == "surfaces" else len(outcome.mapNodes) < 32
    before = len(surfaces())
    for _turn in range(20):
        slicer.app.processEvents()
    assert len(surfaces()) == before and len(later.listener.ends) == 1


def test_closing_scene_ends_a_run_that_adds_its_result(
    head: object, labels: np.ndarray, created: list, process_events: Callable
) -> None:
    run = Run(head, labels, has_maps=False)
    created.clear()
    process_events(lambda: len(created) == 3)
    slicer.mrmlScene.Clear(0)
    for _turn in range(20):
        slicer.app.processEvents()
    assert run.listener.ends == ["canceled"] and result_nodes() == []


def test_run_ends_when_its_result_is_removed_or_replaced(
    head: object, labels: np.ndarray, created: list, process_events: Callable
) -> None:
    first = Run(head, labels, has_maps=False)
    created.clear()
    process_events(lambda: len(created) == 3)
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    second = Run(head, labels, node)
    process_events(lambda: first.listener.ends)
    assert "removed or replaced" in first.listener.ends[0]
    process_events(lambda: second.listener.ends)
    assert second.listener.ends[0].mapNodes == result_nodes()[1:] and len(surfaces()) == 32
    third = Run(head, labels, node, has_maps=False)
    created.clear()
    process_events(lambda: len(created) == 3)
    slicer.mrmlScene.RemoveNode(node)
    process_events(lambda: third.listener.ends)
    assert "removed or replaced" in third.listener.ends[0]


@pytest.fixture
def shown(panel: PanelDriver, head: object, labels: np.ndarray, process_events: Callable) -> object:
    """A result with its surfaces, chosen in the panel."""
    run = Run(head, labels, has_maps=False)
    process_events(lambda: run.listener.ends)
    panel.choices.segmentation = run.listener.ends[0].segmentationNode
    panel.settle()
    return panel.choices.segmentation


def test_smoothing_slider_updates_surfaces_one_at_a_time(
    panel: PanelDriver, shown: object, process_events: Callable
) -> None:
    before = [surface for surface in surfaces() if surface.GetNumberOfPoints()]
    panel.ui.smoothingSlider.value = 0.0
    process_events(lambda: not any(surface in before for surface in surfaces()))
    assert len(surfaces()) == 32 and shown.GetDisplayNode().GetVisibility3D()


def test_surfaces_are_painted_one_at_a_time_even_if_the_map_is_toggled(
    panel: PanelDriver, shown: object, head: object, labels: np.ndarray, created: list, process_events: Callable
) -> None:
    (attention,) = put_maps({"attention": np.ones((1, *labels.shape), np.float16)}, shown, head)
    map3D, painter = module("Map3D"), panel.widget.map3DPanel
    panel.choices.shownMap = attention
    ticks = Ticks(lambda: len(map3D.nodes(shown)))
    panel.choose(panel.ui.map3DSelector, "On surfaces")
    process_events(lambda: len(map3D.nodes(shown)) >= 5)
    assert len(map3D.nodes(shown)) < 20
    panel.widget.overlayPanel.toggle()
    slicer.app.processEvents()
    panel.widget.overlayPanel.toggle()
    process_events(lambda: not painter.isBusy)
    painted = ticks.stop()
    assert largest_step([0, *painted]) == 1 and len(map3D.nodes(shown)) == 31


def test_map_and_isosurface_are_created_in_slabs(
    panel: PanelDriver,
    shown: object,
    head: object,
    labels: np.ndarray,
    process_events: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps, map3D = module("ResultParts"), module("Map3D")
    turn, slabs, plain = [0], [], maps.slabs

    def recorded(*arguments: object) -> Iterator[slice]:
        for slab in plain(*arguments):
            slabs.append((turn[0], slab.stop - slab.start))
            yield slab

    def tick() -> None:
        turn[0] += 1

    monkeypatch.setattr(maps, "_VOXELS_AT_ONCE", 2 * 120 * 120)
    monkeypatch.setattr(maps, "slabs", recorded)
    ticks = Ticks(tick)
    uncertainty = np.zeros((1, *labels.shape), np.float16)
    uncertainty[0, 5:-5, 5:-5, 5:-5] = 0.9
    (node,) = put_maps({"uncertainty": uncertainty}, shown, head)
    assert [size for _turn, size in slabs] == [2] * 40, "cropped by 5 voxels"
    slabs.clear()
    panel.choices.shownMap = node
    panel.choose(panel.ui.map3DSelector, "Isosurface")
    process_events(lambda: not panel.widget.map3DPanel.isBusy)
    ticks.stop()
    (model,) = map3D.nodes(shown)
    assert model.GetPolyData().GetNumberOfPoints() > 1000 and len(slabs) >= 80
    assert len({number for number, _size in slabs}) == len(slabs), "one per turn"
