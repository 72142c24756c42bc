"""The panel's list of places worth checking, and its buttons for the statistics and the report of a result."""

import logging
from collections.abc import Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate

from conresnet.errors import UserError
from conresnet.messages import reason

from .ResultParts import REVIEW, SEEN
from .Review import NOTE_ATTRIBUTE, STATISTICS, exportCsv, goTo, hasReport, rowsOf, showTable, tableOf, writeReport
from .Widgets import ViewLayout, WorkInSteps, addShortcuts, hint, nameOf, openFile, plain, say, textItem

# As the engine names all segments together.
_ALL = "all"
# The columns that tell a place from the others.
_PLACE = ("rank", "kind", "segment", "slice")
# The least in pixels, of the columns before the reason.
_COLUMN_WIDTHS = (46, 86, 48, 48)
_SEEN_COLUMN, _PLACE_COLUMN, _ERRORS_COLUMN, _DICE_COLUMN, _REASON_COLUMN = range(5)
# As conresnet.results.review.BAD_DICE, whose module takes time to import.
_BAD_DICE = 0.8
# A large slice has many voxels that may be wrong, and a typical one nothing to look for.
_NO_REASONS = ("reason-large", "reason-typical")
# Slicer's own, which is described already.
_withTable = ViewLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView, str)


class ReviewPanel:
    """The widgets of the review list, and the buttons for the statistics and the report of a result.

    The list has one row per spot, and one per run of adjacent slices (for all segments together) with the same reason
    and a Dice on the same side of 0.8. The table in the scene has all rows.
    """

    def __init__(self, section):
        self._section = section
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._segmentationNode = self._tableNode = self._statisticsNode = None
        # What each row of the list shows: a spot, or the slices of a run, most expected errors first.
        self._places: list[list[dict]] = []
        self._sorting = (_ERRORS_COLUMN, False)
        self._shortcutsWanted = False
        self._work = WorkInSteps(section)
        header = ui.reviewTable.horizontalHeader()
        header.connect("sectionClicked(int)", self._onHeaderClicked)
        self._titles = [ui.reviewTable.horizontalHeaderItem(column).text() for column in range(header.count())]
        for column, width in enumerate(_COLUMN_WIDTHS):
            header.resizeSection(column, width)
        self._sort()
        ui.reviewTable.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.reviewTable.connect("cellClicked(int,int)", lambda row, _column: self.go(row))
        # By the keyboard: Return.
        ui.reviewTable.connect("cellActivated(int,int)", lambda row, _column: self.go(row))
        ui.reviewTable.connect("itemChanged(QTableWidgetItem*)", self._onChecked)
        ui.previousPlaceButton.connect("clicked(bool)", lambda _checked: self.step(-1))
        ui.nextPlaceButton.connect("clicked(bool)", lambda _checked: self.step(1))
        ui.exportReviewButton.connect("clicked(bool)", lambda _checked: self._onExport())
        ui.statisticsButton.connect("clicked(bool)", lambda _checked: self._onStatistics())
        ui.reportButton.connect("clicked(bool)", lambda _checked: self._onReport())
        actions = {"P": lambda: self.step(-1), "N": lambda: self.step(1)}
        self._shortcuts = addShortcuts(section, actions)
        self.setShortcutsEnabled(False)

    @property
    def isBusy(self) -> bool:
        return self._work.isBusy

    def close(self) -> None:
        """Stop writing a report, because Slicer quits."""
        self._work.stop()

    def forget(self) -> None:
        """The scene is closed: stop writing a report, and do not show the statistics."""
        self.close()
        if self._showsStatistics:
            _withTable.hide()

    def setShortcutsEnabled(self, isEnabled: bool) -> None:
        """Whether N and P go to the next and the previous place; they do nothing without a list."""
        self._shortcutsWanted = isEnabled
        for shortcut in self._shortcuts:
            shortcut.enabled = isEnabled and bool(self._places)

    def show(self, segmentationNode) -> None:
        """Show the list of a result; None for no result."""
        tableNode = tableOf(segmentationNode, REVIEW)
        self._segmentationNode = segmentationNode
        self._showStatisticsOf(segmentationNode)
        self._ui.reportButton.enabled = hasReport(segmentationNode) and not self.isBusy
        self._ui.exportReviewButton.enabled = bool(tableNode or self._statisticsNode)
        if tableNode is self._tableNode:
            return
        self._tableNode = tableNode
        rows = rowsOf(tableNode) if tableNode else ()
        self._places = _placesIn([row for row in rows if row["kind"] != "slice" or row["segment"] == _ALL])
        # Unfolding shows all widgets again, hidden ones too.
        self._section.collapsed = not self._places
        self._sort()
        self._fill()
        self._count()
        for widget in (self._ui.previousPlaceButton, self._ui.nextPlaceButton):
            widget.enabled = bool(self._places)
        self.setShortcutsEnabled(self._shortcutsWanted)

    def refresh(self) -> None:
        """Show the result again after a table was removed."""
        node = self._segmentationNode
        self.show(node if node is not None and node.GetScene() is not None else None)

    def step(self, by: int) -> None:
        """Go to the next (1) or the previous (-1) place of the list."""
        if self._places:
            row = self._ui.reviewTable.currentRow() + by
            self.go(min(max(row, 0), len(self._places) - 1))

    def go(self, row: int) -> None:
        """Go to the place in a row, from 0. For several slices, go to the worst one by the column used for sorting."""
        self._ui.reviewTable.setCurrentCell(row, 0)
        byDice = self._sorting[0] == _DICE_COLUMN
        goTo(min(self._places[row], key=_dice) if byDice else self._places[row][0], self._segmentationNode)

    def _onHeaderClicked(self, column: int) -> None:
        """Sort by a column, or reverse the order if the list is already sorted by it."""
        row = self._ui.reviewTable.currentRow()
        current = self._places[row] if row >= 0 else None
        # The column of errors begins with the most.
        sameColumn, isAscending = column == self._sorting[0], self._sorting[1]
        self._sorting = column, not isAscending if sameColumn else column != _ERRORS_COLUMN
        self._sort()
        self._fill()
        if current is not None:
            self._ui.reviewTable.setCurrentCell(self._places.index(current), 0)

    def _sort(self) -> None:
        column, isAscending = self._sorting
        keys = {
            _SEEN_COLUMN: lambda place: all(row[SEEN] for row in place),
            _PLACE_COLUMN: lambda place: (place[0]["kind"] != "slice", min(row["slice"] for row in place)),
            _ERRORS_COLUMN: lambda place: place[0]["expected_wrong_voxels"],
            # Spots have no Dice.
            _DICE_COLUMN: lambda place: min(map(_dice, place)),
            _REASON_COLUMN: lambda place: place[0]["reason"],
        }
        self._places.sort(key=lambda place: place[0]["rank"])
        self._places.sort(key=keys[column], reverse=not isAscending)
        header = self._ui.reviewTable.horizontalHeader()
        arrow = "\N{BLACK UP-POINTING TRIANGLE}" if isAscending else "\N{BLACK DOWN-POINTING TRIANGLE}"
        for number, title in enumerate(self._titles):
            # Below the title, since Qt's own indicator would need room in every column.
            line = "" if "\n" in title else "\n"
            text = f"{title}{line} {arrow}" if number == column else title
            self._ui.reviewTable.horizontalHeaderItem(number).setText(text)
            header.resizeSection(number, max(header.sectionSize(number), header.sectionSizeHint(number)))

    def _fill(self) -> None:
        table = self._ui.reviewTable
        table.blockSignals(True)
        table.rowCount = 0
        table.rowCount = len(self._places)
        for number, place in enumerate(self._places):
            row, slices, seen = place[0], [row["slice"] for row in place], [row[SEEN] for row in place]
            if row["kind"] != "slice":
                where = _("Spot: {segment}")
            else:
                where = _("Slices {first}-{last}") if len(place) > 1 else _("Slice {first}")
            dice = "" if row["expected_dice"] is None else f"{min(map(_dice, place)):.2f}"
            # Ranks refer to the whole table, of which this list shows only some rows, so they would be confusing here.
            texts = [
                "",
                where.format(first=min(slices), last=max(slices), segment=row["segment"]),
                f"{row['expected_wrong_voxels']:.0f}",
                dice,
                _reasonShown(row),
            ]
            for column, text in enumerate(texts):
                item = textItem(text)
                if column == _SEEN_COLUMN:
                    item.setToolTip(_("Rank {rank} in the exported list").format(rank=row["rank"]))
                    some = qt.Qt.PartiallyChecked if any(seen) else qt.Qt.Unchecked
                    item.setCheckState(qt.Qt.Checked if all(seen) else some)
                table.setItem(number, column, item)
        table.blockSignals(False)

    def _onChecked(self, item) -> None:
        if item.column() != _SEEN_COLUMN:
            return
        isSeen, changed = item.checkState() == qt.Qt.Checked, set()
        for row in self._places[item.row()]:
            row[SEEN] = isSeen
            changed.add(tuple(row[name] for name in _PLACE))
        # The user may have removed columns, and removed or moved rows, in the Tables module.
        column = self._tableNode.GetTable().GetColumnByName(SEEN)
        for index, other in enumerate(rowsOf(self._tableNode) if column is not None else ()):
            if tuple(other.get(name) for name in _PLACE) in changed:
                column.SetValue(index, int(isSeen))
        # So that the scene asks to be saved.
        self._tableNode.Modified()
        self._tableNode.StorableModified()
        self._count()

    def _count(self) -> None:
        """Show in the title how many places were checked."""
        title, text, note = _("Review"), _("Segment with “Review list” checked to list the places worth checking."), ""
        if self._places:
            seen, text = sum(all(row[SEEN] for row in place) for place in self._places), ""
            title = _("Review: {seen} of {count} places seen").format(seen=seen, count=len(self._places))
            note = self._tableNode.GetAttribute(NOTE_ATTRIBUTE) or ""
        self._section.text = title
        say(self._ui.reviewLabel, text)
        hint(self._ui.reviewNoteLabel, note)
        explained = _("Places worth checking. Click one to go there, or click a column header to sort by it.")
        self._ui.reviewTable.toolTip = plain(explained)

    @property
    def _showsStatistics(self) -> bool:
        """Whether Slicer's table view shows the statistics, or did until they were removed."""
        if self._statisticsNode is None or not _withTable.isShown:
            return False
        shownID = slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID()
        return not shownID or shownID == self._statisticsNode.GetID()

    def _showStatisticsOf(self, segmentationNode) -> None:
        """Replace shown statistics with those of a new result, or return to the earlier layout if it has none."""
        tableNode, wereShown = tableOf(segmentationNode, STATISTICS), self._showsStatistics
        isSame, self._statisticsNode = tableNode is self._statisticsNode, tableNode
        self._ui.statisticsButton.enabled = tableNode is not None
        if wereShown and not isSame:
            showTable(tableNode) if tableNode else _withTable.hide()

    def _onStatistics(self) -> None:
        """Show the statistics in Slicer's table view. If they are shown already, return to the earlier layout."""
        if tableOf(self._segmentationNode, STATISTICS) is None:
            self.refresh()
        elif self._showsStatistics:
            _withTable.hide()
        elif _withTable.isPossible:
            _withTable.show()
            showTable(self._statisticsNode)

    def _onExport(self) -> None:
        """Save the statistics if they are shown, otherwise the list."""
        tableNode = self._statisticsNode if self._showsStatistics or not self._tableNode else self._tableNode
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

    def _onReport(self) -> None:
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


def _dice(row: dict) -> float:
    """Expected Dice of a slice. A spot has none and gets a value above 1."""
    return 2.0 if row["expected_dice"] is None else row["expected_dice"]


def _reasonShown(row: dict) -> str:
    """Why a place is in the list, without reasons that do not call for checking it."""
    text = row["reason"]
    for code in _NO_REASONS:
        words = reason((code,), translate)
        text = text.removeprefix(f"{words}; ").replace(f"; {words}", "").removeprefix(words)
    return text.strip()


def _placesIn(rows: list[dict]) -> list[list[dict]]:
    """One place per spot and per run of similar adjacent slices, with the slice with the most errors first."""
    places = [[row] for row in rows if row["kind"] != "slice"]
    last = None
    for row in sorted((row for row in rows if row["kind"] == "slice"), key=lambda row: row["slice"]):
        alike = _reasonShown(row), _dice(row) < _BAD_DICE
        if last == (row["slice"] - 1, alike):
            places[-1].append(row)
        else:
            places.append([row])
        last = row["slice"], alike
    return [sorted(place, key=lambda row: row["rank"]) for place in places]


def _askPath(title: str, name: str, ending: str, kind: str) -> Path | None:
    path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, f"{name}{ending}", f"{kind} (*{ending})")
    if not path or path.lower().endswith(ending):
        return Path(path) if path else None
    # The dialog has asked about the file without the ending.
    completed = Path(f"{path}{ending}")
    question = _("{path} already exists. Replace it?").format(path=completed)
    if completed.exists() and not slicer.util.confirmYesNoDisplay(plain(question)):
        return None
    return completed
