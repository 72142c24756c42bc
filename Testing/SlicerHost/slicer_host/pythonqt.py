"""Makes PySide6's classes behave like those of PythonQt, Slicer's Qt binding.

PythonQt reads Qt properties as attributes (``button.checked = True``, ``label.text``), connects by signature
(``button.connect("clicked(bool)", f)``), drops arguments that a slot does not accept, and refuses attributes that a Qt
object does not have. Modules written for PySide fail in Slicer and vice versa, so the classes themselves are patched.
"""

from __future__ import annotations

import inspect
import math
import sys
import traceback
import weakref

from PySide6 import QtCore, QtGui, QtWidgets

# Exceptions raised in slots and observers. Slicer only prints them, but tests must not miss them.
slot_errors: list[str] = []

_CHECKED_KINDS = ("int", "uint", "qlonglong", "double", "float", "QString", "QStringList")

# Signals that Qt 5.15, which Slicer is built with, does not have.
_NOT_IN_QT5 = {"checkStateChanged"}

# True while PySide loads a .ui file, because its loader sets the children as attributes, unlike Slicer's.
loading_ui = False

# The connections of each object's signals: (receiver, function that calls it). They do not keep the object alive.
_connections: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def report_exception(kind: type, value: BaseException, trace: object) -> None:
    """Print an uncaught exception, as Slicer's console does, and store it in ``slot_errors``."""
    text = "".join(traceback.format_exception(kind, value, trace))
    slot_errors.append(text)
    sys.stderr.write(text)


def is_plain_qt(obj: object) -> bool:
    """True for an instance of a Qt class itself, not of a Python class derived from it."""
    return type(obj).__module__.startswith("PySide6.")


class QtProperty:
    """A Qt property as an attribute of instances; the class attribute is still the method of that name, if any."""

    def __init__(self, prop: QtCore.QMetaProperty, getter: object, setter: object, class_attribute: object) -> None:
        self.name = prop.name()
        self.kind = prop.typeName()
        self.getter, self.setter, self.class_attribute = getter, setter, class_attribute

    def __get__(self, obj: object, owner: type | None = None) -> object:
        if obj is None:
            return self if self.class_attribute is None else self.class_attribute
        return self.getter(obj)

    def __set__(self, obj: object, value: object) -> None:
        if self.setter is None:
            raise AttributeError(f"Property '{self.name}' of {type(obj).__name__} can not be written")
        self.setter(obj, convert(value, self.kind, self.name))


def convert(value: object, kind: str, name: str) -> object:
    """Convert ``value`` for a property of the C++ type ``kind``; raise AttributeError where PythonQt would.

    PythonQt converts anything to a string (``label.text = None`` shows "None"). Here, only a string is accepted.
    """
    number = isinstance(value, (bool, int, float))
    if kind == "bool":
        return bool(value)
    if kind in ("int", "uint", "qlonglong") and number:
        return math.floor(value)
    if kind in ("double", "float") and number:
        return float(value)
    texts = kind == "QStringList" and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    if (kind == "QString" and isinstance(value, str)) or texts or kind not in _CHECKED_KINDS:
        return value
    raise AttributeError(f"Property '{name}' of type '{kind}' does not accept an object of type {type(value).__name__}")


def _accessors(cls: type, prop: QtCore.QMetaProperty) -> tuple[object, object, object]:
    name, capitalized = prop.name(), prop.name()[0].upper() + prop.name()[1:]
    own = inspect.getattr_static(cls, name, None)
    method = getattr(cls, name, None) if own is not None and not isinstance(own, QtProperty) else None
    getters = ["is" + capitalized, "has" + capitalized] if prop.typeName() == "bool" else []
    getter = next((getattr(cls, g) for g in getters if callable(getattr(cls, g, None))), None)
    if getter is None and callable(method):
        getter = (lambda obj: method()) if isinstance(own, staticmethod) else method
    if getter is None:

        def getter(obj: object) -> object:
            return QtCore.QObject.property(obj, name)

    setter = None
    if prop.isWritable() and hasattr(cls, "set" + capitalized):

        def setter(obj: object, value: object) -> None:
            getattr(obj, "set" + capitalized)(value)
    elif prop.isWritable():

        def setter(obj: object, value: object) -> None:
            QtCore.QObject.setProperty(obj, name, value)

    return getter, setter, method


def _patch_properties(cls: type) -> None:
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        prop = meta.property(index)
        if cls is QtCore.QTimer and prop.name() == "singleShot":
            continue  # in PythonQt, this is only a static function; instances have setSingleShot(True)
        # A class that overrides the method of an inherited property (QPushButton.sizeHint) would hide the property.
        if index >= meta.propertyOffset() or prop.name() in cls.__dict__:
            setattr(cls, prop.name(), QtProperty(prop, *_accessors(cls, prop)))
            if prop.name() == "objectName":
                cls.name = cls.__dict__["objectName"]


def _is_dynamic_property(obj: QtCore.QObject, name: str) -> bool:
    return name in [bytes(n.data()).decode() for n in QtCore.QObject.dynamicPropertyNames(obj)]


def _attribute_getter(original: object) -> object:
    def get_attribute(self: QtCore.QObject, name: str) -> object:
        # PySide resolves "connect" and "disconnect" of instances before it looks at the class, so a class attribute has
        # no effect. Its own code (QTimer.singleShot) calls connect, too, with a sender or a SIGNAL() string, "2...".
        if name == "connect":
            qt_connect = original(self, name)
            return lambda *a: connect(self, *a) if isinstance(a[0], str) and a[0][:1] != "2" else qt_connect(*a)
        if name == "disconnect":
            return disconnect.__get__(self)
        try:
            return original(self, name)
        except AttributeError:
            if not name.startswith("_") and _is_dynamic_property(self, name):
                return QtCore.QObject.property(self, name)
            raise

    return get_attribute


def _set_attribute(self: object, name: str, value: object) -> None:
    own = inspect.getattr_static(type(self), name, None)
    closed = is_plain_qt(self) or (getattr(type(self), "_closed", False) and not name.startswith("_"))
    if type(own) is QtCore.Property:  # not a Python descriptor; PySide's __setattr__, replaced here, handles it
        own.fset(self, value)
    elif hasattr(type(own), "__set__"):
        type(own).__set__(own, self, value)
    elif type(value) is QtCore.SignalInstance or (not closed and (name.startswith("_") or not loading_ui)):
        self.__dict__[name] = value  # PySide also stores an object's signals there on first use
    elif _is_dynamic_property(self, name):
        QtCore.QObject.setProperty(self, name, value)
    elif not loading_ui:
        raise AttributeError(f"'{name}' of {type(self).__name__} can not be set: it is not a property")


def _arity(receiver: object) -> int | None:
    """Return the number of arguments of a Python function; None for any number, or if it is not a Python function."""
    function = receiver.__func__ if inspect.ismethod(receiver) else receiver
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - inspect.ismethod(receiver)


def _argument_count(signature: str) -> int:
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    return 0 if not inside else inside.count(",") - inside.count("<") + 1 if "<" not in inside else 1


def find_signal(obj: QtCore.QObject, signature: str) -> tuple[str, object]:
    """Return the normalized signature and the bound signal; ValueError if the object has no such signal."""
    if "(" not in signature:
        raise ValueError(f"'{signature}' is not a signal's signature: it needs argument types, e.g. clicked(bool)")
    normalized = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    name = normalized[: normalized.index("(")]
    declared = getattr(type(obj), "SIGNALS", {})
    if normalized in declared:
        return normalized, getattr(obj, declared[normalized])
    # Looked up in the class, because an object's meta-object may be deleted with it, which breaks the whole class.
    known = type(obj).staticMetaObject.indexOfSignal(normalized) >= 0 and name not in _NOT_IN_QT5
    if not known or "PyObject" in normalized:
        raise ValueError(f"{type(obj).__name__} has no signal {normalized}")
    signal = getattr(obj, name)
    if hasattr(signal, "__getitem__"):
        arguments = normalized[normalized.index("(") + 1 : -1]
        try:
            signal = signal[arguments] if arguments else signal
        except (IndexError, KeyError, TypeError):
            pass
    return normalized, signal


def connections_of(obj: QtCore.QObject, normalized: str) -> list[tuple[object, object]]:
    """Return the connections of a signal: (receiver, function that calls it)."""
    if obj not in _connections:
        # Receivers usually lead to the object, so that after it was destroyed they would stay in memory with it.
        obj.destroyed.connect(lambda *_, known=weakref.WeakSet([obj]): [_connections.pop(each, None) for each in known])
    return _connections.setdefault(obj, {}).setdefault(normalized, [])


def connect(self: QtCore.QObject, signature: str, receiver: object, slot: str | None = None) -> bool:
    """Connect a signal, named by its C++ signature, to a Python callable (or to a receiver's slot)."""
    if slot is not None:
        receiver = find_slot(receiver, slot)
    normalized, signal = find_signal(self, signature)
    if not callable(receiver):
        raise ValueError(f"{signature}: {receiver!r} is not callable")
    count = _argument_count(normalized)

    def deliver(*arguments: object) -> None:
        limit = _arity(receiver)
        kept = arguments[: count if limit is None else min(count, limit)]
        try:
            receiver(*kept)
        except Exception:
            report_exception(*sys.exc_info())

    signal.connect(deliver)
    connections_of(self, normalized).append((receiver, deliver))
    return True


def disconnect(self: QtCore.QObject, signature: str, receiver: object = None, slot: str | None = None) -> bool:
    """Undo ``connect``; without a receiver, remove all connections of the signal. Returns False if there was none."""
    if slot is not None:
        receiver = find_slot(receiver, slot)
    normalized, signal = find_signal(self, signature)
    listed = connections_of(self, normalized)
    gone = [entry for entry in listed if receiver is None or entry[0] == receiver]
    for entry in gone:
        signal.disconnect(entry[1])
        listed.remove(entry)
    return bool(gone)


def find_slot(obj: object, signature: str) -> object:
    """Return the bound method for a slot's signature; ValueError if the object has no such slot."""
    name = signature.split("(")[0].strip()
    normalized = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    known = normalized in getattr(type(obj), "SLOTS", ())
    if isinstance(obj, QtCore.QObject):
        known = known or type(obj).staticMetaObject.indexOfMethod(normalized) >= 0
    if not known:
        raise ValueError(f"{type(obj).__name__} has no slot {normalized}")
    return getattr(obj, name)


def _class_name(self: QtCore.QObject) -> str:
    return self.metaObject().className()


def install() -> None:
    """Patch the classes of PySide6, once per process."""
    if isinstance(inspect.getattr_static(QtCore.QObject, "objectName"), QtProperty):
        return
    classes = {
        cls
        for module in (QtCore, QtGui, QtWidgets)
        for cls in (getattr(module, name) for name in dir(module))  # PySide fills its modules' dictionaries lazily
        if inspect.isclass(cls) and issubclass(cls, QtCore.QObject)
    }
    for cls in sorted(classes, key=lambda c: len(c.__mro__)):
        _patch_properties(cls)
        if "__setattr__" in cls.__dict__:
            cls.__setattr__ = _set_attribute
        if "__getattribute__" in cls.__dict__:
            cls.__getattribute__ = _attribute_getter(cls.__getattribute__)
    QtCore.QObject.className = _class_name
    sys.excepthook = report_exception
