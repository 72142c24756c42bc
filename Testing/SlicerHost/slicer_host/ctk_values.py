"""Stand-ins for CTK's sliders, spin boxes and ranges of floating-point numbers."""

from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from .pythonqt import convert
from .standin import stored

_STEPS = 1000  # positions of the inner integer slider


def _clamped(self: QtWidgets.QWidget) -> None:
    self._bounds_changed()


class _Number(QtWidgets.QWidget):
    """A number within bounds: the base class of the sliders and the spin box."""

    _closed = True
    SLOTS = ("setValue(double)",)
    valueChanged = QtCore.Signal(float)

    minimum, setMinimum = stored("minimum", float, 0.0, _clamped)
    maximum, setMaximum = stored("maximum", float, 99.0, _clamped)
    singleStep, setSingleStep = stored("singleStep", float, 1.0, _clamped)

    def setRange(self, minimum: float, maximum: float) -> None:
        """Set both bounds."""
        self.setMinimum(minimum)
        self.setMaximum(maximum)

    def setValue(self, value: float) -> None:
        """Set the value, clamped to the bounds; emits ``valueChanged`` if it has changed."""
        value = min(max(convert(value, "double", "value"), self.minimum), self.maximum)
        if value != self.value:
            self._value = value
            self._show()
            self.valueChanged.emit(value)

    value = QtCore.Property(float, lambda self: self.__dict__.get("_value", 0.0), setValue)

    def _bounds_changed(self) -> None:
        self.setValue(self.value)
        self._show()

    def _show(self) -> None:
        raise NotImplementedError


class ctkDoubleSlider(_Number):
    """A slider for a floating-point number."""

    sliderMoved = QtCore.Signal(float)
    sliderPressed, sliderReleased = QtCore.Signal(), QtCore.Signal()
    rangeChanged = QtCore.Signal(float, float)
    pageStep, setPageStep = stored("pageStep", float, 10.0)
    tracking, setTracking = stored("tracking", bool, True)
    tickInterval, setTickInterval = stored("tickInterval", float, 0.0)
    orientation, setOrientation = stored(
        "orientation", object, QtCore.Qt.Vertical, lambda self: self._slider.setOrientation(self.orientation)
    )

    def __init__(self, *arguments: object) -> None:
        parent = arguments[-1] if arguments and isinstance(arguments[-1], QtWidgets.QWidget) else None
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Vertical)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider)
        self._slider.maximum = _STEPS
        self._slider.valueChanged.connect(self._moved)
        if arguments and arguments[0] is not parent:
            self.setOrientation(arguments[0])

    def _moved(self, position: int) -> None:
        self.setValue(self.minimum + (self.maximum - self.minimum) * position / _STEPS)
        self.sliderMoved.emit(self.value)

    def _show(self) -> None:
        span = self.maximum - self.minimum
        self._slider.blockSignals(True)
        self._slider.value = round((self.value - self.minimum) / span * _STEPS) if 0 < span < float("inf") else 0
        self._slider.blockSignals(False)


class ctkDoubleSpinBox(_Number):
    """A spin box for a floating-point number."""

    SLOTS = ("setValue(double)", "setDecimals(int)", "setReadOnly(bool)", "stepUp()", "stepDown()")
    editingFinished, decimalsChanged = QtCore.Signal(), QtCore.Signal(int)
    decimals, setDecimals = stored("decimals", int, 2, lambda self: self._spin.setDecimals(self.decimals))
    prefix, setPrefix = stored("prefix", str, "", lambda self: self._spin.setPrefix(self.prefix))
    suffix, setSuffix = stored("suffix", str, "", lambda self: self._spin.setSuffix(self.suffix))
    readOnly, setReadOnly = stored("readOnly", bool, False, lambda self: self._spin.setReadOnly(self.readOnly))

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._spin = QtWidgets.QDoubleSpinBox()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._spin)
        self._spin.valueChanged.connect(self.setValue)
        self._spin.editingFinished.connect(self.editingFinished)

    def stepUp(self) -> None:
        """Add one single step."""
        self.setValue(self.value + self.singleStep)

    def stepDown(self) -> None:
        """Subtract one single step."""
        self.setValue(self.value - self.singleStep)

    def _show(self) -> None:
        _show_in(self._spin, self)


class ctkSliderWidget(_Number):
    """A slider with a spin box next to it."""

    SLOTS = ("setValue(double)", "setDecimals(int)", "setSpinBoxVisible(bool)", "reset()")
    valueIsChanging, decimalsChanged = QtCore.Signal(float), QtCore.Signal(int)
    decimals, setDecimals = stored("decimals", int, 2, lambda self: self._spin.setDecimals(self.decimals))
    prefix, setPrefix = stored("prefix", str, "", lambda self: self._spin.setPrefix(self.prefix))
    suffix, setSuffix = stored("suffix", str, "", lambda self: self._spin.setSuffix(self.suffix))
    pageStep, setPageStep = stored("pageStep", float, 10.0)
    tickInterval, setTickInterval = stored("tickInterval", float, 0.0)
    tickPosition, setTickPosition = stored("tickPosition", object, QtWidgets.QSlider.NoTicks)
    spinBoxAlignment, setSpinBoxAlignment = stored("spinBoxAlignment", object, QtCore.Qt.AlignmentFlag.AlignRight)
    tracking, setTracking = stored("tracking", bool, True)
    popupSlider, setPopupSlider = stored("popupSlider", bool, False)
    invertedAppearance, setInvertedAppearance = stored("invertedAppearance", bool, False)
    invertedControls, setInvertedControls = stored("invertedControls", bool, False)
    spinBoxVisible, setSpinBoxVisible = stored(
        "spinBoxVisible", bool, True, lambda self: self._spin.setVisible(self.spinBoxVisible)
    )

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._spin = ctkDoubleSlider(QtCore.Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._spin)
        self._slider.valueChanged.connect(self.setValue)
        self._spin.valueChanged.connect(self.setValue)
        self._show()

    def reset(self) -> None:
        """Set the value to 0, clamped to the bounds."""
        self.setValue(0.0)

    def _show(self) -> None:
        _show_in(self._spin, self)
        self._slider.blockSignals(True)
        self._slider.setRange(self.minimum, self.maximum)
        self._slider.setValue(self.value)
        self._slider.blockSignals(False)


def _show_in(spin: QtWidgets.QDoubleSpinBox, number: _Number) -> None:
    spin.blockSignals(True)
    spin.setRange(max(number.minimum, -1e9), min(number.maximum, 1e9))
    spin.singleStep = number.singleStep
    spin.value = number.value
    spin.blockSignals(False)
