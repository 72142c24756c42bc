"""Stand-in for CTK's path field, which emits its signal only for paths that its validator accepts."""

from __future__ import annotations

import enum
import os
import re

from PySide6 import QtCore, QtGui, QtWidgets

from .standin import stored

# ctkNameFilterRegExp, ctkValidWildCard and the expression of extensionToRegExp in CTK's Libs/Core/ctkUtils.cpp.
_NAMED_FILTER = re.compile(r"^(.*)\(([a-zA-Z0-9_.*? +;#\-\[\]@{}/!<>$%&=^~:|]*)\)$", re.ASCII)
_WILDCARD = re.compile(r"^[\w\s.*_~$\[\]]+$", re.ASCII)
_EXTENSION = re.compile(r"\*\.(\w+)", re.ASCII)


def _accepted(name_filters: tuple[str, ...]) -> str:
    """nameFiltersToRegExpPattern in ctkUtils.cpp, which uses only the first extension of an unnamed filter."""
    patterns = []
    for name_filter in name_filters:
        named = _NAMED_FILTER.match(name_filter)
        extensions = named[2].split() if named else [name_filter] if _WILDCARD.match(name_filter) else []
        found = filter(None, map(_EXTENSION.search, extensions))
        patterns += [rf".*\.{extension[1]}?$" for extension in found]
    return f"({'|'.join(patterns)})" if patterns else ".+"


class ctkPathLineEdit(QtWidgets.QWidget):
    """A line edit for a path, with a browse button."""

    _closed = True
    SLOTS = ("setCurrentPath(QString)", "browse()", "addCurrentPathToHistory()")
    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)

    class Filters(enum.IntFlag):
        Dirs = 1
        Files = 2
        Drives = 4
        Executable = 0x40
        Readable = 0x10
        Writable = 0x20

    Dirs, Files, Drives = Filters.Dirs, Filters.Files, Filters.Drives
    Executable, Readable, Writable = Filters.Executable, Filters.Readable, Filters.Writable

    class SizeAdjustPolicy(enum.IntEnum):
        AdjustToContents = 0
        AdjustToContentsOnFirstShow = 1
        AdjustToMinimumContentsLength = 2

    AdjustToContents, AdjustToContentsOnFirstShow = 0, 1
    AdjustToMinimumContentsLength = 2

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._hints: dict[bool, QtCore.QSize] = {}
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._combo, self._button = QtWidgets.QComboBox(), QtWidgets.QToolButton()
        self._combo.editable = True
        self._combo.insertPolicy = QtWidgets.QComboBox.NoInsert
        self._edit, self._isValid = self._combo.lineEdit(), False
        self._edit.setCompleter(None)
        self._validator = QtGui.QRegularExpressionValidator(self)
        self._edit.setValidator(self._validator)
        self._update_filter()
        self._button.text = "..."
        row.addWidget(self._combo, 1)
        row.addWidget(self._button)
        self._edit.textChanged.connect(self._update_has_valid_input)
        self._button.clicked.connect(self.browse)

    def _update_filter(self) -> None:
        self._validator.setRegularExpression(QtCore.QRegularExpression(_accepted(self.nameFilters)))

    def _update_has_valid_input(self, text: str) -> None:
        """updateHasValidInput in ctkPathLineEdit.cpp, which emits no signal for an empty path, for example."""
        was_valid, self._isValid = self._isValid, self._edit.hasAcceptableInput()
        if self._isValid:
            self.currentPathChanged.emit(text)
        if self._isValid != was_valid:
            self.validInputChanged.emit(self._isValid)

    filters, setFilters = stored("filters", object, Filters.Files)
    nameFilters, setNameFilters = stored("nameFilters", "QStringList", (), lambda self: self._update_filter())
    label, setLabel = stored("label", str, "")
    settingKey, setSettingKey = stored("settingKey", str, "")
    options, setOptions = stored("options", object, 0)
    sizeAdjustPolicy, setSizeAdjustPolicy = stored("sizeAdjustPolicy", object, 1)
    minimumContentsLength, setMinimumContentsLength = stored("minimumContentsLength", int, 0)
    showHistoryButton, setShowHistoryButton = stored("showHistoryButton", bool, True)
    showBrowseButton, setShowBrowseButton = stored(
        "showBrowseButton", bool, True, lambda self: self._button.setVisible(self.showBrowseButton)
    )

    def comboBox(self) -> QtWidgets.QComboBox | None:
        """The combo box with earlier paths (Q_INVOKABLE in CTK); None if its button is hidden."""
        return self._combo if self.showHistoryButton else None

    def setCurrentPath(self, path: str) -> None:
        self._edit.text = path

    currentPath = QtCore.Property(str, lambda self: self._edit.text, setCurrentPath)

    def minimumSizeHint(self) -> QtCore.QSize:
        """The width of the first path, computed once, unless a minimum number of letters is set."""
        return self._hint(False)

    def sizeHint(self) -> QtCore.QSize:
        """The same, unless the policy depends only on the number of letters."""
        return self._hint(True)

    def _hint(self, is_preferred: bool) -> QtCore.QSize:
        if is_preferred not in self._hints:
            metrics, width = self._edit.fontMetrics(), 0
            letters = self.minimumContentsLength
            uses_text = self.sizeAdjustPolicy != self.AdjustToMinimumContentsLength
            if uses_text and (is_preferred or not letters):
                width = metrics.horizontalAdvance(self.currentPath or "xxxxxxx") + 8
            width = max(width, letters * metrics.horizontalAdvance("X"))
            frame = 30 + (self._button.minimumSizeHint.width() if self.showBrowseButton else 0)
            self._hints[is_preferred] = QtCore.QSize(width + frame, self._combo.minimumSizeHint.height())
        return self._hints[is_preferred]

    def addCurrentPathToHistory(self) -> None:
        """Do nothing. CTK would offer the path again in the next session."""

    def browse(self) -> None:
        """Ask for a path, as the button does."""
        ask = QtWidgets.QFileDialog
        chosen = ask.getExistingDirectory if self.filters & self.Dirs else ask.getOpenFileName
        path = chosen(self, self.label, os.path.dirname(self.currentPath), ";;".join(self.nameFilters))
        if path:
            self.setCurrentPath(path)
