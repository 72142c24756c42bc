"""Adds explanations to pictures of the views: segments with colors and volumes, a color scale, a caption."""

from __future__ import annotations

import numpy as np
import qt
import slicer

HEIGHT = 46
_GAP = 4
ROW_HEIGHT, PER_ROW = 30, 4
# A brain has more segments than a legend has room for.
MOST_SEGMENTS = 12


def with_legend(picture: np.ndarray, segmentation_node: object, map_node: object) -> np.ndarray:
    """Return ``picture``, (height, width, 3) uint8, with the legend below it."""
    width = picture.shape[1]
    segmentation = segmentation_node.GetSegmentation()
    ids = segmentation.GetSegmentIDs()
    entries = [
        (segment, f"{segment.GetName()}  {_milliliters(segmentation_node, name):.2f} mL")
        for name in ids[:MOST_SEGMENTS]
        for segment in [segmentation.GetSegment(name)]
    ]
    rows = -(-len(entries) // PER_ROW) + (len(ids) > len(entries))
    strip = qt.QImage(width, 16 + ROW_HEIGHT * rows, qt.QImage.Format_RGB888)
    strip.fill(qt.QColor(24, 24, 28))
    painter = qt.QPainter(strip)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    painter.setFont(qt.QFont("DejaVu Sans", 10))
    for number, (segment, text) in enumerate(entries):
        row, column = divmod(number, PER_ROW)
        left, top = 14 + column * (width // PER_ROW), 15 + row * ROW_HEIGHT
        painter.fillRect(left, top, 16, 16, qt.QColor.fromRgbF(*segment.GetColor()))
        _write(painter, left + 24, text, top + 13)
    if len(ids) > len(entries):
        _write(painter, 14, f"and {len(ids) - len(entries)} more segments", 28 + (rows - 1) * ROW_HEIGHT)
    if map_node is not None:
        _draw_scale(painter, width, map_node)
    painter.end()
    return np.vstack([picture, _pixels(strip)])


def side_by_side(pictures: dict[str, np.ndarray], caption: str) -> np.ndarray:
    """Pictures of the same height next to each other, each with its title above it, and a caption below."""
    width = sum(picture.shape[1] for picture in pictures.values()) + _GAP * (len(pictures) - 1)
    height = next(iter(pictures.values())).shape[0]
    frame = qt.QImage(width, height + 2 * HEIGHT, qt.QImage.Format_RGB888)
    frame.fill(qt.QColor(24, 24, 28))
    painter = qt.QPainter(frame)
    painter.setFont(qt.QFont("DejaVu Sans", 11))
    left = 0
    for title, picture in pictures.items():
        _write(painter, left + 14, title)
        rows = np.ascontiguousarray(picture)
        shown = qt.QImage(rows.data, rows.shape[1], height, 3 * rows.shape[1], qt.QImage.Format_RGB888)
        painter.drawImage(left, HEIGHT, shown)
        left += picture.shape[1] + _GAP
    painter.setPen(qt.QColor(235, 235, 235))
    painter.drawText(14, height + HEIGHT + 28, caption)
    painter.end()
    return _pixels(frame)


def _write(painter: object, left: int, text: str, baseline: int = 28) -> None:
    painter.setPen(qt.QColor(235, 235, 235))
    painter.drawText(left, baseline, text)


def _draw_scale(painter: object, width: int, map_node: object) -> None:
    display = map_node.GetDisplayNode()
    colors = display.GetColorNode().GetLookupTable()
    low, high = colors.GetRange()
    left, length = width - 14 - 34 - 160, 160
    for column in range(length):
        rgb = [0.0] * 3
        colors.GetColor(low + (high - low) * column / (length - 1), rgb)
        painter.fillRect(left + column, 15, 1, 16, qt.QColor.fromRgbF(*rgb))
    _write(painter, left + length + 8, f"{display.GetWindowLevelMax():.2g}")
    name = map_node.GetName()
    _write(
        painter, left - 26 - painter.fontMetrics().horizontalAdvance(name), f"{name}  {display.GetWindowLevelMin():.2g}"
    )


def _milliliters(segmentation_node: object, segment_id: str) -> float:
    role = segmentation_node.GetReferenceImageGeometryReferenceRole()
    volume = segmentation_node.GetNodeReference(role)
    voxels = int(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, segment_id, volume).sum())
    return voxels * float(np.prod(volume.GetSpacing())) / 1000


def _pixels(image: object) -> np.ndarray:
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()
