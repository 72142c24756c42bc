"""The panel's list of places worth checking, and its buttons for the statistics and the report of a result."""

import logging
from collections.abc import Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from .ResultParts import REVIEW, SEEN
from .Review import NOTE_ATTRIBUTE, STATISTICS, exportCsv, goTo, hasReport, rowsOf, showTable, tableOf, writeReport
from .Widgets import WorkInSteps, addShortcuts, nameOf, openFile, plain, say, textItem

# As the engine names all segments together.
_ALL = "all"
# The columns that tell a place from the others.
_PLACE = ("rank", "kind", "segment", "slice")
# The least in pixels, of the columns before the reason.
_COLUMN_WIDTHS = (46, 78, 48, 38)


class ReviewPanel:
    """The widgets of the review list, and the buttons for the statistics and the report of a result.

    The list shows each slice once, for all segments together, and every spot; the table in the scene has all rows.
    """

    def __init__(self, section):
        self._section = section
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._segmentationNode = self._tableNode = None
        self._rows: list[dict] = []
        self._shortcutsWanted = False
        self._work = WorkInSteps(section)
        header = ui.reviewTable.horizontalHeader()
        for column, width in enumerate(_COLUMN_WIDTHS):
            header.resizeSection(column, max(width, header.sectionSizeHint(column)))
        ui.reviewTable.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.reviewTable.connect("cellClicked(int,int)", lambda row, _column: self.go(row))
        # By the keyboard: Return.
        ui.reviewTable.connect("cellActivated(int,int)", lambda row, _column: self.go(row))
        ui.reviewTable.connect("itemChanged(QTableWidgetItem*)", self._onChecked)
        ui.previousPlaceButton.connect("clicked(bool)", lambda _checked: self.step(-1))
        ui.nextPlaceButton.connect("clicked(bool)", lambda _checked: self.step(1))
        ui.exportReviewButton.connect("clicked(bool)", lambda _checked: self._export(self._tableNode))
        ui.statisticsButton.connect("clicked(bool)", lambda _checked: self._onStatistics())
        ui.reportButton.connect("clicked(bool)", lambda _checked: self._onReport())
        actions = {"P": lambda: self.step(-1), "N": lambda: self.step(1)}
        self._shortcuts = addShortcuts(section, actions)
        self.setShortcutsEnabled(False)

    @property
    def isBusy(self) -> bool:
        """Whether a report is being written."""
        return self._work.isBusy

    def close(self) -> None:
        """Stop writing a report, because the scene is closed or Slicer quits."""
        self._work.stop()

    def setShortcutsEnabled(self, isEnabled: bool) -> None:
        """Whether N and P go to the next and the previous place; they do nothing without a list."""
        self._shortcutsWanted = isEnabled
        for shortcut in self._shortcuts:
            shortcut.enabled = isEnabled and bool(self._rows)

    def show(self, segmentationNode) -> None:
        """Show the list of a result; None for no result."""
        tableNode = tableOf(segmentationNode, REVIEW)
        self._segmentationNode = segmentationNode
        self._ui.statisticsButton.enabled = tableOf(segmentationNode, STATISTICS) is not None
        self._ui.reportButton.enabled = hasReport(segmentationNode) and not self.isBusy
        if tableNode is self._tableNode:
            return
        self._tableNode = tableNode
        rows = rowsOf(tableNode) if tableNode else ()
        self._rows = [row for row in rows if row["kind"] != "slice" or row["segment"] == _ALL]
        # Unfolding shows all widgets again, hidden ones too.
        self._section.collapsed = not self._rows
        self._fill()
        self._count()
        for widget in (self._ui.previousPlaceButton, self._ui.nextPlaceButton, self._ui.exportReviewButton):
            widget.enabled = bool(self._rows)
        self.setShortcutsEnabled(self._shortcutsWanted)

    def refresh(self) -> None:
        """Show the result again after a table was removed."""
        node = self._segmentationNode
        self.show(node if node is not None and node.GetScene() is not None else None)

    def step(self, by: int) -> None:
        """Go to the next (1) or the previous (-1) place of the list."""
        if self._rows:
            row = self._ui.reviewTable.currentRow() + by
            self.go(min(max(row, 0), len(self._rows) - 1))

    def go(self, row: int) -> None:
        """Go to a place of the list by its row, from 0."""
        self._ui.reviewTable.setCurrentCell(row, 0)
        goTo(self._rows[row], self._segmentationNode)

    def _fill(self) -> None:
        table = self._ui.reviewTable
        table.blockSignals(True)
        table.rowCount = 0
        table.rowCount = len(self._rows)
        for number, row in enumerate(self._rows):
            where = _("Slice {slice}") if row["kind"] == "slice" else _("Spot: {segment}")
            dice = "" if row["expected_dice"] is None else f"{row['expected_dice']:.2f}"
            texts = [
                str(row["rank"]),
                where.format(slice=row["slice"], segment=row["segment"]),
                f"{row['expected_wrong_voxels']:.0f}",
                dice,
                row["reason"],
            ]
            for column, text in enumerate(texts):
                item = textItem(text)
                if column == 0:
                    item.setCheckState(qt.Qt.Checked if row[SEEN] else qt.Qt.Unchecked)
                table.setItem(number, column, item)
        table.blockSignals(False)

    def _onChecked(self, item) -> None:
        if item.column() != 0:
            return
        row = self._rows[item.row()]
        row[SEEN] = item.checkState() == qt.Qt.Checked
        # The user may have removed columns, and removed or moved rows, in the Tables module.
        column = self._tableNode.GetTable().GetColumnByName(SEEN)
        for index, other in enumerate(rowsOf(self._tableNode) if column is not None else ()):
            if all(other.get(name) == row[name] for name in _PLACE):
                column.SetValue(index, int(row[SEEN]))
        # So that the scene asks to be saved.
        self._tableNode.Modified()
        self._tableNode.StorableModified()
        self._count()

    def _count(self) -> None:
        """Show in the title how many places were checked."""
        title, text, note = _("Review"), _("Segment with “Review list” checked to list the places worth checking."), ""
        if self._rows:
            seen, text = sum(row[SEEN] for row in self._rows), ""
            title = _("Review: {seen} of {count} places seen").format(seen=seen, count=len(self._rows))
            note = self._tableNode.GetAttribute(NOTE_ATTRIBUTE) or ""
        self._section.text = title
        say(self._ui.reviewLabel, text)
        explained = _("Places worth checking, most expected errors first. Click one to go there.")
        self._ui.reviewTable.toolTip = plain(f"{explained} {note}".strip())

    def _onStatistics(self) -> None:
        """Show the statistics in Slicer's table view, and offer to save them."""
        tableNode = tableOf(self._segmentationNode, STATISTICS)
        if tableNode is None:
            self.refresh()
            return
        manager = slicer.app.layoutManager()
        if manager is not None:
            manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)
            showTable(tableNode)
        self._export(tableNode)

    def _onReport(self) -> None:
        """Write the report, and open it in the browser."""
        node = self._segmentationNode
        if not hasReport(node):
            self.refresh()
            return
        path = _askPath(_("Save the report"), f"{nameOf(node)} report", ".html", _("Web pages"))
        if path is not None:
            self._ui.reportButton.enabled = False
            say(self._ui.reviewLabel, _("Writing the report"))
            self._work.start(self._report(node, path))

    def _report(self, node, path: Path) -> Iterator[None]:
        try:
            yield from writeReport(node, path)
        except UserError as error:
            say(self._ui.reviewLabel, error)
        except Exception:
            # For example, the user has changed the statistics in the Tables module.
            logging.exception("The report could not be written")
            say(self._ui.reviewLabel, _("The report could not be written; see the log."), isError=True)
        else:
            say(self._ui.reviewLabel, _("Saved as {path}.").format(path=path))
            openFile(path, self._ui.reviewLabel)
        finally:
            self._ui.reportButton.enabled = hasReport(self._segmentationNode)

    def _export(self, tableNode) -> None:
        title = _("Save {table}").format(table=nameOf(tableNode))
        path = _askPath(title, nameOf(tableNode), ".csv", _("Tables"))
        if path is None:
            return
        try:
            exportCsv(tableNode, path)
        except UserError as error:
            say(self._ui.reviewLabel, error)
        else:
            say(self._ui.reviewLabel, _("Saved as {path}.").format(path=path))


def _askPath(title: str, name: str, ending: str, kind: str) -> Path | None:
    path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, f"{name}{ending}", f"{kind} (*{ending})")
    if not path:
        return None
    return Path(path if path.lower().endswith(ending) else f"{path}{ending}")
