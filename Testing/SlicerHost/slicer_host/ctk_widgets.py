"""Stand-ins for the CTK widgets that scripted modules use, with only CTK's properties, signals and slots."""

from __future__ import annotations

import enum
import os

from PySide6 import QtCore, QtGui, QtWidgets

from .standin import stored

_Alignment = QtCore.Qt.AlignmentFlag


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A titled section that can be collapsed."""

    _closed = True
    SLOTS = ("setCollapsed(bool)",)
    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, *arguments: object) -> None:
        title = arguments[0] if arguments and isinstance(arguments[0], str) else None
        super().__init__(arguments[-1] if arguments and not isinstance(arguments[-1], str) else None)
        self._maximum_height = self.maximumHeight
        self.checkable = self.checked = True
        self.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Preferred)
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.toggled.connect(lambda on: self.setCollapsed(not on))
        if title is not None:
            self.text = title

    def _header_height(self) -> int:
        return self.fontMetrics().height() + 10

    def _collapsed_changed(self) -> None:
        self.checked = not self.collapsed
        if self.collapsed:
            self._maximum_height = self.maximumHeight
            self.maximumHeight = self.sizeHint().height()
        else:
            self.maximumHeight = self._maximum_height
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                if self.collapsed and not child.isHidden():
                    child.setProperty("ctkHiddenByCollapse", True)
                    child.hide()
                elif not self.collapsed and child.property("ctkHiddenByCollapse"):
                    child.setProperty("ctkHiddenByCollapse", False)
                    child.show()
        self.updateGeometry()
        self.contentsCollapsed.emit(self.collapsed)

    collapsed, setCollapsed = stored("collapsed", bool, False, _collapsed_changed)
    collapsedHeight, setCollapsedHeight = stored("collapsedHeight", int, 10)
    flat, setFlat = stored("flat", bool, False)
    contentsFrameShape, setContentsFrameShape = stored("contentsFrameShape", object, QtWidgets.QFrame.NoFrame)
    contentsFrameShadow, setContentsFrameShadow = stored("contentsFrameShadow", object, QtWidgets.QFrame.Plain)
    contentsLineWidth, setContentsLineWidth = stored("contentsLineWidth", int, 1)
    contentsMidLineWidth, setContentsMidLineWidth = stored("contentsMidLineWidth", int, 0)
    buttonTextAlignment, setButtonTextAlignment = stored("buttonTextAlignment", object, _Alignment.AlignLeft)
    indicatorAlignment, setIndicatorAlignment = stored("indicatorAlignment", object, _Alignment.AlignLeft)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        if event.added() and self.collapsed and event.child().isWidgetType():
            event.child().setProperty("ctkHiddenByCollapse", True)
            event.child().hide()

    def sizeHint(self) -> QtCore.QSize:
        size = QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text) + 40, self._header_height())
        layout = self.layout()
        if layout is not None and not self.collapsed:
            inner = layout.totalSizeHint()
            size = QtCore.QSize(max(size.width(), inner.width()), inner.height())
        return size

    minimumSizeHint = sizeHint

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < self._header_height()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._header_height())
        painter.drawControl(QtWidgets.QStyle.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(7, (option.rect.height() - 9) // 2, 9, 9)
        element = QtWidgets.QStyle.PE_IndicatorArrowRight if self.collapsed else QtWidgets.QStyle.PE_IndicatorArrowDown
        painter.drawPrimitive(element, arrow)
        where = option.rect.adjusted(24, 0, -6, 0)
        painter.drawItemText(where, _Alignment.AlignVCenter, self.palette, self.enabled, self.text)
        painter.end()


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that can be collapsed."""

    _closed = True
    SLOTS = ("setCollapsed(bool)",)

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.checkable = True
        self.toggled.connect(lambda on: self.setCollapsed(not on))

    def _collapsed_changed(self) -> None:
        self.checked = not self.collapsed
        self.setMaximumHeight(22 if self.collapsed else 16777215)

    collapsed, setCollapsed = stored("collapsed", bool, False, _collapsed_changed)
    collapsedHeight, setCollapsedHeight = stored("collapsedHeight", int, 14)


class ctkComboBox(QtWidgets.QComboBox):
    """A combo box that shows a default text if nothing is selected."""

    _closed = True

    class ScrollEffect(enum.IntFlag):
        NeverScroll = 0
        AlwaysScroll = 1
        ScrollWithFocus = 2
        ScrollWithNoVScrollBar = 4

    NeverScroll, AlwaysScroll, ScrollWithFocus, ScrollWithNoVScrollBar = 0, 1, 2, 4
    defaultText, setDefaultText = stored("defaultText", str, "", lambda self: self.setPlaceholderText(self.defaultText))
    forceDefault = stored("forceDefault", bool, False)[0]
    elideMode, setElideMode = stored("elideMode", object, QtCore.Qt.TextElideMode.ElideNone, lambda self: self.update())
    scrollWheelEffect, setScrollWheelEffect = stored("scrollWheelEffect", object, 1)

    def _get_user_data(self) -> str:
        data = self.currentData
        return "" if data is None else str(data)

    def setCurrentUserDataAsString(self, data: str) -> None:
        self.currentIndex = next((i for i in range(self.count) if str(self.itemData(i)) == data), -1)

    currentUserDataAsString = QtCore.Property(str, _get_user_data, setCurrentUserDataAsString)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter, option = QtWidgets.QStylePainter(self), QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        if self.currentIndex < 0:
            option.currentText = self.defaultText
        option.currentText = option.fontMetrics.elidedText(option.currentText, self.elideMode, self._text_width())
        painter.drawComplexControl(QtWidgets.QStyle.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.CE_ComboBoxLabel, option)
        painter.end()

    def _text_width(self) -> int:
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        field = QtWidgets.QStyle.SC_ComboBoxEditField
        return self.style().subControlRect(QtWidgets.QStyle.CC_ComboBox, option, field, self).width()

    # Not in CTK.

    def shown_text(self) -> str:
        """The text as drawn, elided to the available width."""
        text = self.currentText if self.currentIndex >= 0 else self.defaultText
        return self.fontMetrics().elidedText(text, self.elideMode, self._text_width())


class ctkCheckBox(QtWidgets.QCheckBox):
    """A check box with its own icon."""

    _closed = True


class ctkPushButton(QtWidgets.QPushButton):
    """A push button with alignments."""

    _closed = True
    buttonTextAlignment, setButtonTextAlignment = stored("buttonTextAlignment", object, _Alignment.AlignCenter)
    iconAlignment, setIconAlignment = stored("iconAlignment", object, _Alignment.AlignLeft)


class ctkSearchBox(QtWidgets.QLineEdit):
    """A line edit for searching."""

    _closed = True
    showSearchIcon, setShowSearchIcon = stored("showSearchIcon", bool, False)


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as tall as its text."""

    _closed = True
    SLOTS = ("setCollapsibleText(QString)", "setCollapsibleHtml(QString)", "setCollapsiblePlainText(QString)")
    collapsed, setCollapsed = stored("collapsed", bool, True)
    disableMouseScroll, setDisableMouseScroll = stored("disableMouseScroll", bool, False)
    showDetailsText, setShowDetailsText = stored("showDetailsText", str, "Show details...")
    hideDetailsText, setHideDetailsText = stored("hideDetailsText", str, "Hide details.")

    def setCollapsibleText(self, text: str) -> None:
        self.setText(text)

    setCollapsibleHtml = setCollapsiblePlainText = setCollapsibleText

    def sizeHint(self) -> QtCore.QSize:
        height = int(self.document().size().height()) + 2 * self.frameWidth
        return QtCore.QSize(200, height)

    minimumSizeHint = sizeHint

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        super().resizeEvent(event)
        self.updateGeometry()


class ctkColorPickerButton(QtWidgets.QPushButton):
    """A button that shows and picks a color."""

    _closed = True
    SLOTS = ("setColor(QColor)", "changeColor()")
    colorChanged = QtCore.Signal(QtGui.QColor)
    color, setColor = stored("color", QtGui.QColor, QtGui.QColor(), lambda self: self.colorChanged.emit(self.color))
    displayColorName, setDisplayColorName = stored("displayColorName", bool, True)


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box with "don't show again"."""

    _closed = True
    dontShowAgain, setDontShowAgain = stored("dontShowAgain", bool, False)
    dontShowAgainVisible, setDontShowAgainVisible = stored("dontShowAgainVisible", bool, False)
    dontShowAgainSettingsKey, setDontShowAgainSettingsKey = stored("dontShowAgainSettingsKey", str, "")


class ctkDirectoryButton(QtWidgets.QWidget):
    """A button that shows a folder and asks for another one."""

    _closed = True
    directoryChanged, directorySelected = QtCore.Signal(str), QtCore.Signal(str)
    SLOTS = ("setDirectory(QString)", "browse()")

    def setDirectory(self, path: str) -> None:
        if os.path.abspath(path) != os.path.abspath(self.directory):
            self._directory = os.path.abspath(path)
            self.directoryChanged.emit(self._directory)

    directory = QtCore.Property(str, lambda self: self.__dict__.get("_directory", "."), setDirectory)

    def browse(self) -> None:
        """Ask for a folder, as a click does."""
        path = QtWidgets.QFileDialog.getExistingDirectory(self, self.caption, self.directory)
        if path:
            self.setDirectory(path)
            self.directorySelected.emit(path)

    caption, setCaption = stored("caption", str, "")
    text, setText = stored("text", str, "")
