"""A stand-in for the Slicer application: slicer-core's real MRML with PySide6, for the tests and the demo.

Importing it makes ``qt``, ``ctk`` and Slicer's Python modules importable. ``start_application()`` then starts the
application, which is also ``slicer.app``.
"""

from .application import install, start_application
from .dialogs import UnexpectedDialog, dialogs
from .pythonqt import slot_errors

install()

__all__ = ["UnexpectedDialog", "dialogs", "slot_errors", "start_application"]
